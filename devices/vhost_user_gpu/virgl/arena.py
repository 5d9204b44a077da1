"""Memory that this program shares with its renderer, for requests that are too long for a packet."""

import mmap
import os
from collections import deque

from vhostd import Fd

SIZE = 16 << 20
# What one request may take. As long as no more than half of the arena is used, there is room for that in one
# piece, whether before the end or at the beginning.
MOST = SIZE // 4
HALF = SIZE // 2


class Arena:
    """Places bytes one after the other, and frees them in the same order."""

    def __init__(self) -> None:
        self.fd = Fd(os.memfd_create("vhost-user-gpu requests", os.MFD_CLOEXEC))
        os.ftruncate(self.fd.fileno(), SIZE)
        self._map = mmap.mmap(self.fd.fileno(), SIZE)
        self._begin = self._end = 0  # of what is used, counted without an end of the memory
        self._placed: deque[tuple[int, int]] = deque()  # serials, and where what they have ends

    @property
    def has_room(self) -> bool:
        """Whether any one request can be placed."""
        return self._end - self._begin <= HALF

    def put(self, serial: int, data: bytes) -> int:
        """Places bytes for a request; returns their offset."""
        offset = self._place(serial, len(data))
        self._map[offset : offset + len(data)] = data
        return offset

    def free(self, serial: int) -> None:
        """Frees all that was placed for requests up to this one."""
        while self._placed and self._placed[0][0] <= serial:
            self._begin = self._placed.popleft()[1]

    def close(self) -> None:
        """Gives the memory back."""
        self._map.close()
        self.fd.close()

    def _place(self, serial: int, size: int) -> int:
        """A place in one piece, after `has_room`; `size` is at most MOST."""
        offset = self._end % SIZE
        if offset + size > SIZE:  # what is left before the end stays empty
            self._end += SIZE - offset
            offset = 0
        self._end += size
        self._placed.append((serial, self._end))
        return offset
