"""Files that are read without waiting for anybody: no fifos, and no devices."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; raises OSError if it is of another kind."""
    return open(path, "rb", opener=_open)


def _open(path: str, flags: int) -> int:
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)  # a fifo would wait for somebody who writes
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # open() itself refuses folders
        return fd
    os.close(fd)
    raise OSError(errno.EINVAL, "it is no regular file", path)
