"""The sources of a ring's kicks: an fd that the driver signals, or polling."""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from vhostd.vhost_user.notification import Notification

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.001  # seconds between two polls of a ring without a kick fd


class Kicks(Protocol):
    """A source of kicks, until it is closed."""

    name: str  # for the log; empty once there are no kicks any more

    def close(self) -> None:
        """Ends the kicks; idempotent."""


class KickFd:
    """Calls `kicked` whenever the fd of SET_VRING_KICK is signalled; owns the fd."""

    def __init__(self, fd: Notification, ring: str, kicked: Callable[[], None]) -> None:
        """`ring` is the ring's name in the log."""
        self.name = "kick"
        self._fd: Notification | None = fd
        self._ring = ring
        self._kicked = kicked
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd.fileno(), self._readable, fd)

    def close(self) -> None:
        """Takes the fd off the event loop, then closes it."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd.fileno())
            self._fd.close()
            self._fd = None
            self.name = ""

    def _readable(self, fd: Notification) -> None:
        try:
            kicked = fd.clear()
        except OSError as error:
            log.warning("%s: the kick fd is of no use any more: %s", self._ring, error)
            self.close()
        else:
            if kicked:
                self._kicked()


class Polling:
    """Calls `look` every millisecond. A front-end asks for that by SET_VRING_KICK without an fd."""

    name = "poll"

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_soon(self._poll)

    def close(self) -> None:
        """Ends the polling."""
        self._timer.cancel()

    def _poll(self) -> None:
        self._timer = self._loop.call_later(POLL_INTERVAL, self._poll)
        self._look()
