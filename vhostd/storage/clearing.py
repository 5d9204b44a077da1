"""Discards, zeroes and erasures of any size, a step at a time.

Each function is a generator, which yields after about one system call how many bytes that has done. Whoever
goes through it may look in between whether to go on; who leaves it has done the range's beginning only. All
raise OSError.
"""

import errno
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vhostd.storage.image import PUNCH_HOLE, ZERO_RANGE, Image

STEP = 128 << 20  # bytes that the host does by itself, and fast
WRITTEN_STEP = 1 << 20  # bytes that are written
NEVER = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.ENOTTY)  # what the host does not know at all


class Way(NamedTuple):
    """A way to have zeros, `step` bytes at a time."""

    name: str
    do: Callable[[Image, int, int], None]
    step: int = STEP


PUNCH = Way("punch", lambda image, offset, size: image.fallocate(PUNCH_HOLE, offset, size))
ZERO = Way("zero", lambda image, offset, size: image.fallocate(ZERO_RANGE, offset, size))
SLOW_ZERO = ZERO._replace(step=WRITTEN_STEP)  # the kernel writes them, past the page cache
REFILL = Way("refill", lambda image, offset, size: _refill(image, offset, size))
WRITE = Way("write", lambda image, offset, size: image.write_zeroes(offset, size), WRITTEN_STEP)


def discarding(image: Image, offset: int, size: int) -> Iterator[int]:
    """Gives space back. On a device the parts of blocks at either end stay as they are: it is but a hint."""
    start, end = whole_blocks(image, offset, size) if image.is_device else (offset, offset + size)
    while start < end:
        cut = _cut(image, start, end, max(STEP, image.abilities.discard_granularity))
        image.discard(start, cut - start)
        yield cut - start
        start = cut


def zeroing(image: Image, offset: int, size: int, *, may_unmap: bool) -> Iterator[int]:
    """Zeroes a range in the best way that the host has; the space is given back only if it may be.

    What is no whole block of a device is written. Nobody else may write to the rest of these blocks meanwhile
    if the image is written past the page cache.
    """
    end = offset + size
    first, last = whole_blocks(image, offset, size) if image.is_device else (offset, end)
    yield from _zeroing(image, offset, first, [WRITE])
    yield from _zeroing(image, first, last, _ways(image, may_unmap=may_unmap))
    yield from _zeroing(image, last, end, [WRITE])


def erasing(image: Image, offset: int, size: int) -> Iterator[int]:
    """Erases a range of a block device beyond recovery, of whole blocks; EINVAL for any other."""
    end = offset + size
    while offset < end:
        cut = _cut(image, offset, end, STEP)
        image.erase_securely(offset, cut - offset)
        yield cut - offset
        offset = cut


def whole_blocks(image: Image, offset: int, size: int) -> tuple[int, int]:
    """Where the whole blocks of the host begin and end in a range; both are its end if it has none."""
    end, block = offset + size, image.abilities.logical_block_size
    first, last = -(-offset // block) * block, end - end % block
    return (first, last) if first < last else (end, end)


def _ways(image: Image, *, may_unmap: bool) -> list[Way]:
    """From the best on; the last one always works."""
    has = image.abilities
    # What is in memory only needs no room that is kept for it.
    ways = [PUNCH] if has.unmaps and (may_unmap or image.is_memory) else []
    if image.is_device:
        return [*ways, ZERO if has.zeroes_fast else SLOW_ZERO, WRITE]
    return [*ways, ZERO, REFILL, WRITE]


def _zeroing(image: Image, start: int, end: int, ways: list[Way]) -> Iterator[int]:
    while start < end:
        way = next(way for way in ways if way.name not in image.lacking)
        cut = _cut(image, start, end, way.step)
        try:
            way.do(image, start, cut - start)
        except OSError as error:
            if way is WRITE or error.errno not in (*NEVER, errno.EINVAL):
                raise
            if error.errno == errno.EINVAL:  # some file systems want it aligned
                ways = ways[ways.index(way) + 1 :]
            else:
                image.lacking.add(way.name)
            continue
        yield cut - start
        start = cut


def _refill(image: Image, offset: int, size: int) -> None:
    """Makes a hole, and fills it with space again, as QEMU does on file systems without ZERO_RANGE."""
    image.fallocate(PUNCH_HOLE, offset, size)
    image.fallocate(0, offset, size)


def _cut(image: Image, start: int, end: int, step: int) -> int:
    """Where a step ends: between two of the host's units, if it can, and after `step` bytes at most."""
    if end - start <= step:
        return end
    has = image.abilities
    cut = start + step
    whole = cut - (cut - has.discard_alignment) % has.discard_granularity
    return whole if whole > start else cut
