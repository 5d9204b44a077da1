"""What was asked for, on stdout: all of it, or one line that says why not."""

import os
import select
import sys

from vhostd.errors import SetupError


def say(text: str) -> None:
    """Writes a text; what the encoding lacks is escaped, and whoever stops reading misses the rest.

    Raises SetupError if it cannot be written; sys.stdout would find that out when the program exits.
    """
    if sys.stdout is None:  # as Python has it when it is closed
        raise SetupError("stdout is closed")
    data = text.encode(sys.stdout.encoding or "utf-8", "backslashreplace")
    fd = sys.stdout.fileno()
    try:
        while data:
            data = data[_write(fd, data) :]
    except BrokenPipeError:
        pass
    except OSError as error:
        raise SetupError(f"stdout: {error.strerror}") from None


def _write(fd: int, data: bytes) -> int:
    """How many bytes there was room for."""
    try:
        return os.write(fd, data)
    except BlockingIOError:  # whoever shares it has made it non-blocking
        room = select.poll()
        room.register(fd, select.POLLOUT)
        room.poll()
        return 0
