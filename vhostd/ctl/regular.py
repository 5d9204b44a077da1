"""Opens regular files only: reading a fifo or a device may wait for ever."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; raises OSError if it is not a regular file."""
    return open(path, "rb", opener=_open_if_regular)


def _open_if_regular(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # opening a fifo would wait for a writer
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() itself refuses folders
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no regular file", path)
