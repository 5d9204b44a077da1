"""The terminal that the program was started at, as a port's line."""

import logging
import os
import termios
import tty
from contextlib import suppress

from vhost_user_console.line import Line, Size
from vhostd import Fd, Grants, Ioctl, SetupError, Signals

log = logging.getLogger(__name__)

STDIN = 0
ESCAPE = b"\x1d"  # Control-], which ends the program, as that of telnet does
TCGETS, TCSETS = 0x5401, 0x5402  # Linux, include/uapi/asm-generic/ioctls.h
LOCAL, CHARACTERS = 3, 6  # in what tcgetattr gives


class TerminalLine(Line):
    """Takes stdin, which must be a terminal, in raw mode. Only Control-] does not go to the guest.

    A terminal that hangs up, as when its window is closed, never comes back: each call fails with EIO from
    then on. The guest goes on without it.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            # A file description of our own: whoever else has the terminal open does not expect O_NONBLOCK.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            self._terminal = Fd(os.open(os.ttyname(STDIN), flags))
        except OSError as error:
            raise SetupError(f"--port=stdio: stdin is no terminal of ours: {error.strerror}") from None
        self._before = termios.tcgetattr(self._terminal)
        self._size = Size.of_terminal(self._terminal.fileno())
        _set_raw(self._terminal)

    @property
    def place(self) -> str:
        return "this terminal; Control-] ends the program"

    @property
    def size(self) -> Size | None:
        """What it is, or was before it hung up."""
        with suppress(termios.error):
            self._size = Size.of_terminal(self._terminal.fileno())
        return self._size

    def grants(self) -> Grants:
        """To ask for the size, and to set the terminal back."""
        return Grants(ioctls=tuple(Ioctl(number) for number in (termios.TIOCGWINSZ, TCGETS, TCSETS)))

    def signals(self) -> Signals:
        """The kernel tells us when the size changes."""
        return {"SIGWINCH": lambda: self.changed()}

    async def run(self) -> None:
        """Somebody is there, always."""
        self._opened(self._terminal.fileno())

    def input_ended(self) -> None:
        """It has hung up."""
        log.warning("this terminal has hung up; nobody is at its port any more")
        self._hung_up = True
        super().input_ended()

    def close(self) -> None:
        """Sets the terminal back; idempotent."""
        if self._terminal:
            with suppress(termios.error):  # it has hung up
                termios.tcsetattr(self._terminal, termios.TCSANOW, self._before)
            self._terminal.close()


def _set_raw(terminal: Fd) -> None:
    """Has each byte come to us as it is, but for ESCAPE, at which the kernel sends SIGINT."""
    tty.setraw(terminal.fileno(), termios.TCSANOW)
    mode = termios.tcgetattr(terminal)
    mode[LOCAL] |= termios.ISIG
    mode[CHARACTERS][termios.VINTR] = ESCAPE
    for unused in (termios.VQUIT, termios.VSUSP):
        mode[CHARACTERS][unused] = b"\0"  # _POSIX_VDISABLE
    termios.tcsetattr(terminal, termios.TCSANOW, mode)
