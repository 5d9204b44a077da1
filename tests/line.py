"""A device that has what the test writes, and lets its reader wait for that: a terminal."""

import os
import tty
from collections.abc import Iterator
from contextlib import contextmanager


class Line:
    """The line to a terminal, which passes bytes on as they are; `path` is the device's."""

    def __init__(self) -> None:
        self._ours, self._theirs = os.openpty()
        tty.setraw(self._theirs)
        self.path = os.ttyname(self._theirs)

    def write(self, data: bytes) -> None:
        """Gives the reader something."""
        os.write(self._ours, data)

    def hang_up(self) -> None:
        """Ends it for the reader."""
        os.dup2(self._theirs, self._ours)

    def close(self) -> None:
        """Ends it for both."""
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def opened_line() -> Iterator[Line]:
    """A line for the block's time."""
    line = Line()
    try:
        yield line
    finally:
        line.close()
