"""Paths below another root, such as that of an image: their links do not lead out of it."""

import errno
import os
from collections import deque
from pathlib import Path

LINKS = 40  # on the way to a file, at most, as for the kernel
TOP = Path("/")


def real(root: Path, path: Path) -> Path:
    """Where a path that is absolute below `root` really is; what is not there ends it. Raises OSError."""
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
