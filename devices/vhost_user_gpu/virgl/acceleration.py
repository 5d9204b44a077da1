"""Acceleration: 3D, as the device sees it (accelerator.py)."""

import logging
from collections.abc import Callable, Mapping

from vhost_user_gpu.commands import GpuFeature
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.scanout import Scanout
from vhost_user_gpu.virgl.adoption import AdoptingCard
from vhost_user_gpu.virgl.engine import Engine
from vhost_user_gpu.virgl.launcher import Launcher
from vhostd import Grants
from vhostd.host.helper import Helper

log = logging.getLogger(__name__)


class Acceleration:
    """An engine that runs, and what it gives to its device."""

    def __init__(self, node: str | None, memory: int, *, sandbox: bool, dmabuf: bool = False) -> None:
        """Renders on this node, or where EGL finds something; raises SetupError if there is no GL for it.

        A guest's resources may take `memory` bytes. With `dmabuf` textures are exported, where that is
        possible.
        """
        launcher = Launcher(node, memory, sandbox=sandbox, dmabuf=dmabuf)
        abilities = launcher.abilities
        how = ", shown as dmabufs" if abilities.exports else ""
        log.info("3D by %s, OpenGL %s%s", abilities.renderer, abilities.version, how)
        self.exports = abilities.exports
        self._engine = Engine(launcher)
        self.capsets = len(abilities.capsets)
        self.features = 1 << GpuFeature.VIRGL | int(abilities.has_context_init) << GpuFeature.CONTEXT_INIT

    def card(self, outputs: Outputs, memory: int, changed: Callable[[Scanout], None]) -> AdoptingCard:
        """A card that has the engine, in place of a `Card` of the same arguments."""
        return AdoptingCard(outputs, memory, changed, self._engine)

    def grants(self) -> Grants:
        """What starting another renderer takes."""
        return Helper.grants()

    def counts(self) -> Mapping[str, int]:
        """Requests to renderers, and how many renderers have come and gone wrong."""
        engine = self._engine
        return {
            "renderer_requests": engine.requests,
            "renderers_started": engine.started,
            "renderers_lost": engine.lost,
        }

    def listen(self) -> None:
        """Logs what renderers have to say; the event loop runs."""
        self._engine.listen()

    async def eased(self) -> None:
        """Waits until the renderer can take another command."""
        await self._engine.eased()

    async def settle(self) -> None:
        """Waits until all commands have their answers."""
        await self._engine.settle()

    def close(self) -> None:
        """Ends the renderer."""
        self._engine.close()
