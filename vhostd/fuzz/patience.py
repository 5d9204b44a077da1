"""How long something may take, on a machine that has other things to do."""

import select

TURN = 0.01  # seconds


class Patience:
    """So many seconds, counted in turns of waiting, without those in which the process had no processor.

    On a busy machine the turns come late, and so does the end of it. What is in time costs nothing.
    """

    def __init__(self, seconds: float, pid: int) -> None:
        self._left = seconds
        self._pid = pid
        self._waited: float | None = None  # by the process, when the first turn was over

    def wait(self, poll: select.poll) -> bool:
        """Waits for one turn, or until one of the fds of `poll` is ready; whether one is."""
        if poll.poll(TURN * 1000):
            return True
        self._left -= TURN
        if self._waited is None:
            self._waited = _waited(self._pid)
        return False

    @property
    def is_over(self) -> bool:
        """Whether it has taken too long."""
        if self._left > 0:
            return False
        if self._waited is not None:
            waited = _waited(self._pid)
            self._left += waited - self._waited
            self._waited = waited
        return self._left <= 0


def _waited(pid: int) -> float:
    """Seconds that a process was ready to run, and did not (proc(5), schedstat)."""
    try:
        with open(f"/proc/{pid}/schedstat", "rb") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0
