"""What stands between the device and the places where events come from."""

from collections.abc import Callable
from typing import Protocol

from vhost_user_input.description import Description
from vhost_user_input.origin import Origin
from vhostd import Grants


class Sink(Protocol):
    """Where a source's reports go."""

    @property
    def listening(self) -> bool:
        """Whether the guest's driver takes events."""

    def origin(self) -> Origin:
        """One more of those who report."""

    def watch(self, call: Callable[[bool], None], /) -> None:
        """Has it called with whether the guest's driver listens: now, and when that changes."""

    async def room(self) -> None:
        """Waits until the guest's driver listens and nothing that is delivered now will be dropped."""


class Source(Protocol):
    """A place where events come from, opened when it is made."""

    description: Description

    def greet(self) -> None:
        """Another virtual machine has come, whose driver may listen soon."""

    def grants(self) -> Grants:
        """What it still needs of the system, beyond what it has open."""

    async def run(self, sink: Sink) -> None:
        """Feeds `sink`; returns when there will be no more events.

        Raises SetupError when the source is gone and the device is pointless without it.
        """

    def write(self, events: bytes) -> None:
        """Hands on what the driver said of LEDs, sounds and repeat rates: one packed report."""

    def close(self) -> None:
        """Lets go of what the source holds open; idempotent."""
