"""What stands between the device and the places where events come from."""

from typing import Protocol

from vhost_user_input.description import Description
from vhost_user_input.state import State
from vhostd import Grants


class Sink(Protocol):
    """Where a source's reports go."""

    def deliver(self, reports: bytes) -> None:
        """Takes whole reports, packed; they reach the guest if its driver listens."""

    def replace(self, state: State) -> None:
        """The device is in this state now, whatever was delivered before."""

    async def room(self) -> None:
        """Waits until the guest's driver listens and nothing that is delivered now will be dropped."""


class Source(Protocol):
    """A place where events come from, opened when it is made."""

    description: Description

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
