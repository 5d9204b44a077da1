"""The interface between the device and its sources of events."""

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
        """Makes one more origin of reports."""

    def watch(self, call: Callable[[bool], None], /) -> None:
        """Calls `call` with whether the guest's driver listens: now, and at every change."""

    async def room(self) -> None:
        """Waits until the guest's driver listens and the backlog has room for a delivery."""


class Source(Protocol):
    """A place where events come from, opened when it is made."""

    description: Description

    def greet(self) -> None:
        """A front-end has connected: the driver of another virtual machine may listen soon."""

    def grants(self) -> Grants:
        """What the source still needs from the system, besides the fds that it has open."""

    async def run(self, sink: Sink) -> None:
        """Feeds `sink`; returns when there will be no more events.

        Raises SetupError when the source is gone and the device is useless without it.
        """

    def write(self, events: bytes) -> None:
        """Hands the driver's LEDs, sounds and repeat rates to the source: one packed report."""

    def close(self) -> None:
        """Closes what the source has open; idempotent."""
