"""What the device knows of 3D. What does it is loaded where 3D is asked for (virgl/acceleration.py)."""

from collections.abc import Callable, Mapping
from typing import Protocol

from vhost_user_gpu.card import Card
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.scanout import Scanout
from vhostd import Grants


class Accelerator(Protocol):
    """Executes 3D commands."""

    @property
    def features(self) -> int:
        """The feature bits that it gives to its device."""

    @property
    def exports(self) -> bool:
        """Whether it makes dmabufs of what it draws."""

    @property
    def capsets(self) -> int:
        """How many capability sets it has."""

    def card(self, outputs: Outputs, memory: int, changed: Callable[[Scanout], None]) -> Card:
        """A card with 3D, in place of a `Card` of the same arguments."""

    def grants(self) -> Grants:
        """What it needs of the system later on."""

    def counts(self) -> Mapping[str, int]:
        """What it counts, for the metrics."""

    def listen(self) -> None:
        """Logs what it has to say; the event loop runs."""

    async def eased(self) -> None:
        """Waits until it can take another command."""

    async def settle(self) -> None:
        """Waits until all commands have their answers: a ring stops. It does not take long."""

    def close(self) -> None:
        """Ends it."""
