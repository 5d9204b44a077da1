"""Hears that somebody opens or closes a file, such as a terminal (inotify(7))."""

import os
from contextlib import suppress

from vhostd import INOTIFY_ADD_WATCH, INOTIFY_INIT1, Fd, syscall

IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN = 0x8, 0x10, 0x20
EVENTS = 4096  # bytes of events that are read at a time


class Openings:
    """An fd that is readable when the file at `path` was opened or closed; OSError if there is none."""

    def __init__(self, path: str) -> None:
        self._fd = Fd(syscall(INOTIFY_INIT1, os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            events = IN_OPEN | IN_CLOSE_WRITE | IN_CLOSE_NOWRITE
            syscall(INOTIFY_ADD_WATCH, self._fd.fileno(), os.fsencode(path) + b"\0", events)
        except OSError:
            self._fd.close()
            raise

    def fileno(self) -> int:
        """The number of the fd."""
        return self._fd.fileno()

    def clear(self) -> None:
        """Has the fd readable no more until the file is opened or closed again."""
        with suppress(BlockingIOError):
            while os.read(self._fd.fileno(), EVENTS):
                pass

    def close(self) -> None:
        """Closes the fd; idempotent."""
        self._fd.close()
