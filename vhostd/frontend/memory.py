"""Guest memory made by the front-end: one memfd, handed out piece by piece."""

import os

from vhostd.ring import GuestMemory, Region
from vhostd.vhost_user.messages import MemoryRegion
from vhostd.wire.fds import Fd

PAGE = 4096


class SharedMemory:
    """A memory region of `size` bytes, mapped here as well; owns its memfd.

    Guest and user addresses differ on purpose: a back-end that confuses them shows it. It begins `offset`
    bytes after the beginning of its file.
    """

    def __init__(
        self,
        size: int,
        *,
        guest_addr: int = 0x1000_0000,
        user_addr: int = 0x7F00_0000_0000,
        offset: int = 0,
    ) -> None:
        self.fd = Fd(os.memfd_create("guest-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(self.fd.fileno(), offset + size)
        self.size = size
        self.offset = offset
        self.guest_addr = guest_addr
        self.user_addr = user_addr
        self.map = GuestMemory(
            [Region(self.fd.fileno(), guest_addr=guest_addr, user_addr=user_addr, size=size, offset=offset)]
        )
        self._next = guest_addr

    @property
    def region(self) -> MemoryRegion:
        """The region's description for SET_MEM_TABLE."""
        return MemoryRegion(self.guest_addr, self.size, self.user_addr, self.offset)

    def allocate(self, size: int, align: int = 16) -> int:
        """The guest address of `size` fresh bytes; they are never freed. MemoryError if none are left."""
        addr = -(-self._next // align) * align
        if addr + size > self.guest_addr + self.size:
            raise MemoryError(f"{size} bytes of guest memory")
        self._next = addr + size
        return addr

    def user(self, guest_addr: int) -> int:
        """The user address of a guest address."""
        return guest_addr - self.guest_addr + self.user_addr

    def close(self) -> None:
        """Closes the memfd; the mapping goes with the last that uses it."""
        self.fd.close()
