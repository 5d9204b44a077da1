"""Asks a terminal for its size."""

import fcntl
import struct
import termios

from vhost_user_console.line import Size

GET_SIZE = termios.TIOCGWINSZ
WINSIZE = struct.Struct("@HHHH")  # rows, columns, and two of which nobody knows anything


def terminal_size(fd: int) -> Size:
    """The size of the terminal at `fd`; 0 x 0 if nobody has set one."""
    rows, cols, _, _ = WINSIZE.unpack(fcntl.ioctl(fd, GET_SIZE, bytes(WINSIZE.size)))
    return Size(cols, rows)
