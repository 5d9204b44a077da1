"""The removal of a file, to come: the only one that the sandbox lets through."""

import ctypes
import os

AT_FDCWD = -100  # Linux, include/uapi/linux/fcntl.h

_libc = ctypes.CDLL(None, use_errno=True)


class Removal:
    """Removes the file at `path` when it is called; raises OSError."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._address: int | None = None

    @property
    def folder(self) -> str:
        """Where the file is."""
        return os.path.dirname(self.path) or os.curdir

    def take_path_from(self, address: int) -> None:
        """From now on the kernel is to read the path here (sandbox/paths.py)."""
        self._address = address

    def __call__(self) -> None:
        if self._address is None:
            os.unlink(self.path)
        elif _libc.unlinkat(AT_FDCWD, ctypes.c_void_p(self._address), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
