"""A disk that loses what was not flushed, as a power failure does; to run a command with.

    unshare --map-root-user --mount python -m tests.blk.lossy [--ask | --fail] DISK STABLE COMMAND...

mounts a FUSE file system that is a single file over DISK, as long as STABLE, and becomes COMMAND. What
COMMAND writes to DISK reaches STABLE at fsync and fdatasync only, by whatever way it asks for them. When
COMMAND ends, the disk ends at once, and STABLE is what a power failure has left.

With --ask every fsync is told as a line on stdout and waits for one on stdin; with --fail each fails.
"""

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path

from tests.blk.fuse import Disk, Refused, run


class Lossy(Disk):
    """What a guest sees is in `contents`, what is safe in the file `stable`."""

    def __init__(self, stable: Path, synced: Callable[[], None]) -> None:
        super().__init__()
        self._contents = bytearray(stable.read_bytes())
        self._stable = os.open(stable, os.O_WRONLY | os.O_CLOEXEC)
        self._dirty: list[tuple[int, int]] = []  # offset, size
        self._synced = synced

    def size(self) -> int:
        return len(self._contents)

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self._contents[offset : offset + size])

    def change(self, offset: int, data: bytes) -> None:
        self._contents[offset : offset + len(data)] = data
        self._dirty.append((offset, len(data)))

    def sync(self) -> None:
        self._synced()
        for offset, size in self._dirty:
            os.pwrite(self._stable, self._contents[offset : offset + size], offset)
        self._dirty.clear()


def ask() -> None:
    """Tells of an fsync, and waits until it may happen."""
    os.write(1, b"fsync\n")
    os.read(0, 1)


def fail() -> None:
    """What a disk says that cannot keep what it has."""
    raise Refused(errno.EIO)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ask", dest="synced", action="store_const", const=ask, default=lambda: None)
    parser.add_argument("--fail", dest="synced", action="store_const", const=fail)
    parser.add_argument("disk", type=Path)
    parser.add_argument("stable", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    run(Lossy(options.stable, options.synced), options.disk, options.command)


if __name__ == "__main__":
    main()
