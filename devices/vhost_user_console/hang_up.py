"""Hears that the other end of an fd has gone, without reading what it has sent before."""

import asyncio
import select
from collections.abc import Callable


class HangUp:
    """Calls `gone` when the other end of the watched fd hangs up.

    An event loop tells of an fd again and again while it has input. So the fd is in an epoll of its own,
    which tells of nothing but a hang-up, and of each only once (EPOLLET).
    """

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone
        self._epoll = select.epoll()

    def add(self, fd: int) -> None:
        """Watches this fd too, until it is closed."""
        self._epoll.register(fd, select.EPOLLET)  # EPOLLHUP comes without being asked for

    def start(self) -> None:
        """Begins to tell the running event loop; call it once."""
        asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._tell)

    def stop(self) -> None:
        """Tells nothing more."""
        asyncio.get_running_loop().remove_reader(self._epoll.fileno())

    def close(self) -> None:
        """Gives the epoll up; idempotent."""
        self._epoll.close()

    def _tell(self) -> None:
        if self._epoll.poll(0, 1):
            self._gone()
