"""Names that nobody can change any more, so that a filter of system calls can tell one from another.

seccomp cannot read a name, but it sees where it lies. So the names of what may be removed lie in memory that
can only be read, below all other memory. The filter refuses to change, to move, to replace or to take away
memory that begins below `end`; what begins above does not reach down.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from itertools import accumulate

from vhostd.host.removal import Removal

MAP_FIXED_NOREPLACE = 0x10_0000  # Linux, include/uapi/asm-generic/mman-common.h
# Where a process has nothing else. The kernel's vm.mmap_min_addr is one of the first, as a rule.
PLACES = tuple(1 << bit for bit in range(16, 22))

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)


class FixedNames:
    """Fixes the names of what is removed, at `addresses` below `end`, for good; raises OSError."""

    def __init__(self, removals: Sequence[Removal]) -> None:
        names = [os.fsencode(removal.name) + b"\0" for removal in removals]
        ends = list(accumulate(map(len, names), initial=0))
        size = -(-ends[-1] // mmap.PAGESIZE) * mmap.PAGESIZE
        start = _lowest(b"".join(names), size) if names else 0
        self.addresses = [start + end for end in ends[:-1]]
        self.end = start + size
        for removal, address in zip(removals, self.addresses, strict=True):
            removal.take_name_from(address)


def _lowest(content: bytes, size: int) -> int:
    """The address of a read-only copy, at the lowest place that the host gives."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    for place in PLACES:
        start = _libc.mmap(place, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if start == place:
            break
    else:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    ctypes.memmove(place, content, len(content))
    if _libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(size), mmap.PROT_READ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return place
