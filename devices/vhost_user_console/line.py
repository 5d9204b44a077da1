"""The host's end of a port, and who is there."""

import termios
from collections.abc import Callable
from typing import NamedTuple, Self

from vhostd import Grants, Signals


class Size(NamedTuple):
    """The size of a terminal, in characters."""

    cols: int
    rows: int

    @classmethod
    def of_terminal(cls, fd: int) -> Self:
        """That of the terminal at `fd`; 0 x 0 if nobody has set one. It takes the ioctl TIOCGWINSZ."""
        rows, cols = termios.tcgetwinsize(fd)
        return cls(cols, rows)


class Line:
    """Where a port leads to on the host.

    `is_open` says whether somebody is there, and `fd` how to reach them. `has_input` says whether more may
    come from there. When somebody hangs up, the line stays open until the guest has taken what they had sent.
    If the guest does not listen, it closes at once.

    `changed` is called whenever any of these is another one than before, or `size` may be.
    """

    fd = -1
    is_open = False
    has_input = False

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._guest_listens = False
        self._hung_up = False

    @property
    def place(self) -> str:
        """What a person has to open to be there."""
        raise NotImplementedError

    @property
    def size(self) -> Size | None:
        """The terminal's size as it is now; None for what is no terminal."""
        return None

    def grants(self) -> Grants:
        """What it needs of the system later on."""
        return Grants()

    def signals(self) -> Signals:
        """The signals that it takes."""
        return {}

    async def run(self) -> None:
        """Sees who comes and goes, until cancelled."""

    def close(self) -> None:
        """Gives up what it holds; the program ends."""

    def guest_listens(self, *, on: bool) -> None:
        """Whether the guest takes what comes from here, now or later."""
        self._guest_listens = on
        self._settle()

    def input_ended(self) -> None:
        """The fd has no more to read, and never will."""
        self.has_input = False
        self._settle()

    def _opened(self, fd: int) -> None:
        """Somebody has come."""
        self.fd, self.is_open, self.has_input, self._hung_up = fd, True, True, False
        self.changed()

    def _hang_up(self) -> None:
        """Whoever was there has gone."""
        self._hung_up = True
        self._settle()

    def _settle(self) -> None:
        if self.is_open and self._hung_up and not (self.has_input and self._guest_listens):
            self._drop()
        else:
            self.changed()

    def _drop(self) -> None:
        """Nobody is there any more. Who has the fd closes it after that."""
        self.fd, self.is_open, self.has_input = -1, False, False
        self.changed()
