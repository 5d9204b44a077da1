"""How long something may take, on a machine that has other things to do."""

import os
import time

MOST = 10.0  # times the wall-clock time that is waited at most


class Patience:
    """So many seconds; then as many again, without those in which either process waited for a processor.

    So what is in time costs no look at /proc, and a busy machine gives no false alarm.
    """

    def __init__(self, seconds: float, pid: int) -> None:
        self._seconds = seconds
        self._processes = (pid, os.getpid())
        self._begin = time.monotonic()
        self._waited: float | None = None  # until the second time has begun

    @property
    def left(self) -> float:
        """Seconds that are left at least."""
        wall = time.monotonic() - self._begin
        if wall < self._seconds:
            return self._seconds - wall
        waits = sum(map(_waited, self._processes))
        if self._waited is None:
            self._waited = waits
        allowed = 2 * self._seconds + waits - self._waited
        return max(0.0, min(allowed, self._seconds * MOST) - wall)

    @property
    def is_over(self) -> bool:
        """Whether it has taken too long."""
        return self.left <= 0


def _waited(pid: int) -> float:
    """Seconds that a process was ready to run, and did not (proc(5), schedstat)."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
