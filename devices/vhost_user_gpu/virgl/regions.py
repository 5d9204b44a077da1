"""Regions: the files of the guest's memory that the renderer has mapped."""

import os
from collections import Counter

from vhost_user_gpu.virgl.messages import DROP_REGION, Entry, Region
from vhost_user_gpu.virgl.remote import Remote
from vhostd import Gather

FIRST = 1  # region 0 is the arena


class Regions:
    """Gives each file a number, and shares it with the renderer as long as a backing lies in it."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._numbers: dict[tuple[int, int], int] = {}  # by device and inode
        self._uses: Counter[tuple[int, int]] = Counter()
        self._next = FIRST

    def share(self, backing: Gather) -> tuple[bytes, set[tuple[int, int]]]:
        """The entries of a backing, and the files that they are in, for `release`."""
        by_fd: dict[int, tuple[int, int]] = {}
        entries = []
        for fd, offset, length in backing.files():
            file = by_fd.get(fd)
            if file is None:
                file = by_fd[fd] = self._know(fd)
            entries.append(Entry(self._numbers[file], 0, offset, length).pack())
        files = set(by_fd.values())
        self._uses.update(files)
        return b"".join(entries), files

    def share_picture(self, fd: int) -> int:
        """Shares the file of a picture that is read back; returns its number, for `forget`."""
        return self._add(fd)

    def release(self, files: set[tuple[int, int]]) -> None:
        """A backing is gone; the renderer forgets files that no other one is in."""
        self._uses.subtract(files)
        for file in files:
            if not self._uses[file]:
                del self._uses[file]
                self.forget(self._numbers.pop(file))

    def forget(self, number: int) -> None:
        """The renderer unmaps a file."""
        self._remote.tell(DROP_REGION, Region(number))

    def _know(self, fd: int) -> tuple[int, int]:
        status = os.fstat(fd)
        file = (status.st_dev, status.st_ino)
        if file not in self._numbers:
            self._numbers[file] = self._add(fd)
        return file

    def _add(self, fd: int) -> int:
        number, self._next = self._next, self._next + 1
        self._remote.add_region(number, fd, os.fstat(fd).st_size)
        return number
