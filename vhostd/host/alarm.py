"""A timer of microseconds; those of event loops have milliseconds."""

import asyncio
import os
import struct
import time
from collections.abc import Callable

from vhostd.host.syscall import TIMERFD_CREATE, TIMERFD_SETTIME, syscall

NANOSECONDS = 1_000_000_000


class Alarm:
    """Calls a function on the event loop, so many seconds after it was set; once for each time.

    Raises OSError if there are no more fds.
    """

    def __init__(self, seconds: float, call: Callable[[], None]) -> None:
        # struct itimerspec: no interval, and the time until it rings
        self._time = struct.pack("4q", 0, 0, *divmod(max(1, round(seconds * NANOSECONDS)), NANOSECONDS))
        self._call = call
        self._is_set = False
        self._loop = asyncio.get_running_loop()
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = syscall(TIMERFD_CREATE, time.CLOCK_MONOTONIC, flags)
        self._loop.add_reader(self._fd, self._ring)

    def set(self) -> None:
        """Sets it, unless it is set already."""
        if not self._is_set:
            syscall(TIMERFD_SETTIME, self._fd, 0, self._time, 0)
            self._is_set = True

    def close(self) -> None:
        """Has it never ring again."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._is_set = False
        self._call()
