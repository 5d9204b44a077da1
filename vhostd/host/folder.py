"""A folder that is held open: whoever may change the path to it cannot lead us into another one."""

import os
import stat

from vhostd.wire.fds import Fd

FDS = "/proc/self/fd"


class Folder:
    """Holds the folder at `path`, where an empty one is the current folder; raises OSError if there is none.

    What is put in its place later, such as a link, is not followed.
    """

    def __init__(self, path: str) -> None:
        self._fd = Fd(os.open(path or os.curdir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def fileno(self) -> int:
        """The number of its descriptor, for the `dir_fd` of system calls."""
        return self._fd.fileno()

    @property
    def path(self) -> str:
        """A path that leads to it, and to nothing else, while it is held."""
        return reopened(self._fd)

    @property
    def is_open_to_others(self) -> bool:
        """Whether others than root and this process's user may put a file in another one's place."""
        status = os.fstat(self.fileno())
        if status.st_uid not in (0, os.geteuid()):
            return True
        return not status.st_mode & stat.S_ISVTX and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))

    @property
    def is_sticky(self) -> bool:
        """Whether many may write to it, and each only remove what is its own, as in /tmp."""
        return bool(os.fstat(self.fileno()).st_mode & stat.S_ISVTX)

    def pin(self, name: str) -> Fd:
        """Holds what is there under a name now, even a link, without opening it; raises OSError."""
        return Fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fileno()))

    def has(self, name: str, pinned: Fd) -> bool:
        """Whether the pinned file is still there under this name."""
        try:
            there = os.stat(name, dir_fd=self.fileno(), follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(pinned.fileno()))

    def make(self, name: str) -> int:
        """Makes a file, to be written; raises OSError if there is anything of that name, be it a link."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(name, flags, 0o666, dir_fd=self.fileno())

    def rename(self, name: str, other: str) -> None:
        """Gives a file another name, and takes that away from whatever has it; raises OSError."""
        os.rename(name, other, src_dir_fd=self.fileno(), dst_dir_fd=self.fileno())

    def remove(self, name: str) -> None:
        """Removes a name, and whatever file that has no other; raises OSError."""
        os.unlink(name, dir_fd=self.fileno())

    def close(self) -> None:
        """Lets it go; idempotent."""
        self._fd.close()


def reopened(fd: Fd) -> str:
    """A path by which system calls that take no descriptor reach what it is of."""
    return f"{FDS}/{fd.fileno()}"
