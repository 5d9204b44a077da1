"""Launcher: has renderers started, and knows what all of them can do."""

import select
import socket
from collections.abc import Callable
from typing import NamedTuple

from vhost_user_gpu.virgl.messages import MOST_PACKET, Capset, Hello
from vhost_user_gpu.virgl.remote import Remote
from vhostd import SetupError, pause
from vhostd.host.helper import Helper

TICK = 0.01  # seconds between two looks at whether the first renderer is there
TICKS = 3000
# A renderer may write no files. What it compiles is the guest's own.
ENVIRONMENT = {"MESA_SHADER_CACHE_DISABLE": "true", "MESA_GLSL_CACHE_DISABLE": "true"}


class Abilities(NamedTuple):
    """What renderers can do."""

    capsets: dict[int, tuple[int, bytes]]  # by their numbers: the latest version, and the content
    has_context_init: bool
    exports: bool  # textures as dmabufs
    renderer: str  # what GL says of itself
    version: str


class Launcher:
    """Starts renderers, one at a time.

    The first one is started at once, and says what all can do: `abilities`. SetupError if there is none.
    """

    def __init__(self, node: str | None, memory: int, *, sandbox: bool, dmabuf: bool = False) -> None:
        """Renders on this node, or where EGL finds something; a guest's resources may take `memory` bytes.

        With `dmabuf` renderers export textures, if they can.
        """
        arguments = [f"--memory={memory}"]
        arguments += ["--dmabuf"] if dmabuf else []
        arguments += [] if node is None else [f"--node={node}"]
        arguments += [] if sandbox else ["--sandbox=none"]
        self._helper = Helper("renderer", "vhost_user_gpu.virgl.renderer", arguments, ENVIRONMENT)
        self._first: socket.socket | None = self._helper.connect()
        try:
            self.abilities = _abilities(_hello(self._first))
        except SetupError as error:
            said = self._helper.last_line()
            self.close()
            option = "--virgl" if node is None else f"--render-node={node}"
            raise SetupError(f"{option}: {error}{f': {said}' if said else ''}") from None

    def start(self, lost: Callable[[str], None]) -> Remote:
        """A new renderer. The one before ends, if it has not yet. `lost` is told why this one has."""
        first, self._first = self._first, None
        if first is not None:
            return Remote(first, lost, greeted=True)
        return Remote(self._helper.connect(), lost)

    def end(self) -> None:
        """Ends the renderer that runs, if there is one, whatever it is at."""
        self._helper.end()

    def listen(self) -> None:
        """Logs from now on how renderers end, and what they print; the event loop runs."""
        self._helper.listen()

    def close(self) -> None:
        """Ends the renderer, and starts none any more."""
        if self._first is not None:
            self._first.close()
        self._helper.close()


def _hello(sock: socket.socket) -> bytes:
    """The first packet of the first renderer; raises SetupError if it says that there can be none."""
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    for _ in range(TICKS):
        if ready.poll(0):
            break
        pause(TICK)
    else:
        raise SetupError("the renderer does not start")
    data = sock.recv(MOST_PACKET)
    if not data:
        raise SetupError("the renderer has ended at its start")
    if not Hello.unpack(data[: Hello.SIZE]).ready:
        raise SetupError(data[Hello.SIZE :].decode(errors="replace"))
    return data


def _abilities(hello: bytes) -> Abilities:
    head = Hello.unpack(hello[: Hello.SIZE])
    capsets, at = {}, Hello.SIZE
    for _ in range(head.capsets):
        capset = Capset.unpack(hello[at : at + Capset.SIZE])
        at += Capset.SIZE
        capsets[capset.number] = (capset.version, hello[at : at + capset.size])
        at += capset.size
    names = (name.rstrip(b"\0").decode(errors="replace") for name in (head.renderer, head.version))
    has_context_init = bool(head.features & Hello.CONTEXT_INIT)
    return Abilities(capsets, has_context_init, bool(head.features & Hello.EXPORTS), *names)
