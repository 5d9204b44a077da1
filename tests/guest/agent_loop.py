"""The agent's event loop: descriptors to watch, and waiting for a condition until a deadline."""

import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

NETLINK_KOBJECT_UEVENT = 15
KERNEL_UEVENTS = 1
UEVENT_SIZE = 65536


class Loop:
    """Calls back for readable descriptors while somebody waits.

    The kernel's uevents are watched from the start: a condition about devices is tested again
    whenever one comes or goes.
    """

    def __init__(self) -> None:
        self.deadline = float("inf")
        self._selector = selectors.DefaultSelector()
        self._uevents = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_KOBJECT_UEVENT)
        self._uevents.bind((0, KERNEL_UEVENTS))
        self.watch(self._uevents.fileno(), self._drop_uevent)

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Calls `ready` when `fd` is readable or hung up, until `unwatch`."""
        self._selector.register(fd, selectors.EVENT_READ, ready)

    def unwatch(self, fd: int) -> None:
        """Stops watching `fd`: call it before closing the descriptor."""
        self._selector.unregister(fd)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Runs callbacks until `condition` holds. Raises TimeoutError at `self.deadline`."""
        while not condition():
            left = self.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"waited in vain for {what}")
            self._step(None if left == float("inf") else left)

    def drain(self) -> None:
        """Runs the callbacks of everything that is ready now."""
        while self._step(0):
            pass

    def _step(self, timeout: float | None) -> bool:
        ready = self._selector.select(timeout)
        for key, _ in ready:
            key.data()
        return bool(ready)

    def _drop_uevent(self) -> None:
        # ENOBUFS: some were lost, which is as good a reason to look again.
        with suppress(OSError):
            self._uevents.recv(UEVENT_SIZE)
