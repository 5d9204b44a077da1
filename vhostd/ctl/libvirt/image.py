"""Paths below another root, such as that of an image. Links do not lead out of the root."""

import errno
import os
from collections import deque
from pathlib import Path

LINKS = 40  # links on the way to a file, at most; the kernel has the same limit
TOP = Path("/")


def real(root: Path, path: Path) -> Path:
    """The real place of an absolute path below `root`, with its links followed. Raises OSError."""
    place, left = root, deque(path.parts[1:])
    links = 0
    while left:
        part = left.popleft()
        if part == "..":
            place = place if place == root else place.parent
        elif (next_place := place / part).is_symlink():
            links += 1
            if links > LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = next_place.readlink()
            place = root if target.is_absolute() else place
            left.extendleft(reversed(target.parts[target.is_absolute() :]))
        else:
            place = next_place
    return place
