"""Bouncing: reads and writes past the page cache that the host cannot do as they are.

The host may want memory, offsets and sizes in units that a guest does not know of. So the data go by way of
memory that suits, and what is only a part of a unit is read, modified and written. Everything here waits for
the disk: it is for threads.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager


def read(fd: int, unit: int, offset: int, size: int) -> bytes:
    """The `size` bytes at this offset, or fewer where the file ends."""
    with _cover(unit, offset, size) as (memory, begin):
        skipped = offset - begin
        done = _fill(fd, unit, memory, 0, len(memory), begin)
        return memory[skipped : max(min(done, skipped + size), skipped)]


def write(fd: int, unit: int, offset: int, data: bytes, flags: int) -> int:
    """Writes all of it; returns how many bytes that are. Nobody else may write in these units meanwhile.

    A file grows up to the end of the data only.
    """
    with _cover(unit, offset, len(data)) as (memory, begin):
        skipped, behind = offset - begin, offset - begin + len(data)
        if skipped:
            _fill(fd, unit, memory, 0, unit, begin)
        if behind % unit and not (skipped and behind <= unit):
            last = len(memory) - unit
            _fill(fd, unit, memory, last, unit, begin + last)
        memory[skipped:behind] = data
        end = os.lseek(fd, 0, os.SEEK_END) if behind % unit else 0
        _pour(fd, memory, begin, flags)
        if end < begin + len(memory) == os.lseek(fd, 0, os.SEEK_END) and behind % unit:
            os.ftruncate(fd, max(end, begin + behind))
    return len(data)


@contextmanager
def _cover(unit: int, offset: int, size: int) -> Iterator[tuple[mmap.mmap, int]]:
    """Memory for all units that have a part of the range, and where they begin."""
    begin = offset - offset % unit
    end = -(-(offset + size) // unit) * unit
    with closing(mmap.mmap(-1, end - begin, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) as memory:
        yield memory, begin


def _fill(fd: int, unit: int, memory: mmap.mmap, at: int, size: int, offset: int) -> int:
    """Reads into a part of the memory, up to where the file ends; returns how many bytes that were."""
    done = 0
    while done < size:
        with memoryview(memory) as whole, whole[at + done : at + size] as rest:
            step = os.preadv(fd, [rest], offset + done)
        done += step
        if not step or step % unit:  # the file ends there, where the host lets nobody begin to read
            break
    return done


def _pour(fd: int, memory: mmap.mmap, offset: int, flags: int) -> None:
    """Writes all of the memory."""
    done = 0
    while done < len(memory):
        with memoryview(memory) as whole, whole[done:] as rest:
            done += os.pwritev(fd, [rest], offset + done, flags)
