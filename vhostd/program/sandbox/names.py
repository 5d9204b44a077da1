"""Names that nobody can change any more, so that a filter of system calls can tell one from another.

seccomp cannot read a name, but it sees where it lies. So the names of what may be removed, and the addresses
of sockets that may be connected to, lie in memory that can only be read, below all other memory. The filter
refuses to change, to move, to replace or to take away memory that begins below `end`; what begins above does
not reach down.
"""

import fcntl
import mmap
import os
from collections.abc import Sequence
from itertools import accumulate

from vhostd.host.grants import FixedName
from vhostd.host.syscall import MMAP, syscall

MAP_FIXED_NOREPLACE = 0x10_0000  # Linux, include/uapi/asm-generic/mman-common.h
MAPPED = mmap.MAP_PRIVATE | MAP_FIXED_NOREPLACE
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
# Where a process has nothing else. The kernel's vm.mmap_min_addr is one of the first, as a rule.
PLACES = tuple(1 << bit for bit in range(16, 22))


class FixedNames:
    """Fixes names, one at each of `addresses` below `end`, for good; raises OSError."""

    def __init__(self, named: Sequence[FixedName]) -> None:
        names = [each.fixed for each in named]
        ends = list(accumulate(map(len, names), initial=0))
        size = -(-ends[-1] // mmap.PAGESIZE) * mmap.PAGESIZE
        start = _lowest(b"".join(names), size) if names else 0
        self.addresses = [start + end for end in ends[:-1]]
        self.end = start + size
        for each, address in zip(named, self.addresses, strict=True):
            each.take_name_from(address)


def _lowest(content: bytes, size: int) -> int:
    """The address of a copy that nobody can change, at the lowest place that the host gives."""
    with open(os.memfd_create("names", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
        file.write(content)
        file.flush()
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, SEALS)
        for place in PLACES:
            try:
                return syscall(MMAP, place, size, mmap.PROT_READ, MAPPED, file.fileno(), 0)
            except OSError as error:
                refused = error
    raise refused
