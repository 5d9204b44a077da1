"""A guest that comes by postcopy: pages of its memory are missing until they are brought."""

import asyncio
import fcntl
import mmap
import os
import struct
from collections import defaultdict
from contextlib import suppress

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import PAGE, SharedMemory
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    POSTCOPY_ADVISE,
    POSTCOPY_END,
    POSTCOPY_LISTEN,
    SET_MEM_TABLE,
    MemoryTable,
    SingleRegion,
)
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty, Row

# Linux, include/uapi/linux/userfaultfd.h
UFFDIO_WAKE = 0x8010_AA02
RANGE = struct.Struct("=QQ")  # struct uffdio_range: an address, a length
MESSAGE = struct.Struct("=B7xQQ8x")  # struct uffd_msg of a page fault: event, flags, address
# Their answers, which they have while pages may be missing: where the back-end sees the memory.
TABLE = Row(SET_MEM_TABLE.request, MemoryTable, reply=MemoryTable, fds=SET_MEM_TABLE.fds)
REGION = Row(ADD_MEM_REG.request, SingleRegion, reply=SingleRegion, fds=ADD_MEM_REG.fds)


class Postcopy:
    """Takes pages away, and brings them when the back-end touches them, as QEMU does.

    `faults` are the guest addresses of the missing pages that it has touched, in this order. They are only
    noted while `brings` is False.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.faults: list[int] = []
        self.brings = True
        self.faulted = asyncio.Event()
        self._frontend = frontend
        self._uffd = Fd(-1)
        self._seen: list[tuple[SharedMemory, int]] = []  # and at which address of the back-end's
        self._away: defaultdict[SharedMemory, dict[int, bytes]] = defaultdict(dict)  # pages by their offset

    async def advise(self) -> None:
        """Has the back-end make a userfaultfd, and answers it from now on, until `close`."""
        _, (self._uffd,) = await self._frontend.call_for_fds(POSTCOPY_ADVISE, Empty())
        asyncio.get_running_loop().add_reader(self._uffd.fileno(), self._answer)

    async def listen(self) -> None:
        """Tells the back-end that pages may be missing in all memory that is shared from now on."""
        await self._frontend.call(POSTCOPY_LISTEN, Empty())

    async def share(self, *memories: SharedMemory, ack: bool = True) -> None:
        """Makes these memories the guest's, in place of any before."""
        table = MemoryTable(tuple(memory.region for memory in memories))
        reply = await self._frontend.call(TABLE, table, *(memory.fd for memory in memories))
        if len(reply.regions) != len(memories):
            raise DeviceError(
                f"SET_MEM_TABLE was answered with {len(reply.regions)} regions, not {len(memories)}"
            )
        self._seen = [(memory, at.user_addr) for memory, at in zip(memories, reply.regions, strict=True)]
        if ack:
            await self.ack()

    async def ack(self) -> None:
        """Tells the back-end that it may touch what was shared."""
        await self._frontend.call(SET_MEM_TABLE, MemoryTable(()))

    async def add(self, memory: SharedMemory) -> None:
        """Adds a memory to the guest's."""
        region = memory.region
        named = SingleRegion(0, region.guest_addr, region.size, region.user_addr, region.mmap_offset)
        reply = await self._frontend.call(REGION, named, memory.fd)
        self._seen.append((memory, reply.user_addr))
        await self.ack()

    async def end(self) -> None:
        """Brings all pages that are left, and ends it."""
        for memory, pages in self._away.items():
            for offset in list(pages):
                self._bring(memory, offset)
        await self._frontend.call(POSTCOPY_END, Empty())
        self.close()

    def take(self, memory: SharedMemory, guest_addr: int, size: int) -> None:
        """Takes the pages of these bytes away. Nobody may touch them before they are brought."""
        first = (guest_addr - memory.guest_addr) // PAGE * PAGE
        with mmap.mmap(memory.fd.fileno(), memory.size) as mapped:
            for offset in range(first, guest_addr - memory.guest_addr + size, PAGE):
                self._away[memory][offset] = mapped[offset : offset + PAGE]
                mapped.madvise(mmap.MADV_REMOVE, offset, PAGE)

    def bring(self) -> None:
        """Brings the pages that were touched, and all that will be."""
        self.brings = True
        for address in self.faults:
            self._bring(*self._find_guest(address))

    def close(self) -> None:
        """Answers nothing any more."""
        if self._uffd:
            asyncio.get_running_loop().remove_reader(self._uffd.fileno())
            self._uffd.close()

    def _answer(self) -> None:
        with suppress(BlockingIOError):
            _event, _flags, address = MESSAGE.unpack(os.read(self._uffd.fileno(), MESSAGE.size))
            memory, offset = self._find_seen(address)
            self.faults.append(memory.guest_addr + offset)
            self.faulted.set()
            if self.brings:
                self._bring(memory, offset)

    def _bring(self, memory: SharedMemory, offset: int) -> None:
        """Puts a page where it is missing, and wakes who waits. A page that nobody ever touched is zeros."""
        page = self._away[memory].pop(offset, bytes(PAGE))
        if os.lseek(memory.fd.fileno(), offset, os.SEEK_HOLE) == offset:
            os.pwrite(memory.fd.fileno(), page, offset)
        for seen, at in self._seen:
            if seen is memory:
                fcntl.ioctl(self._uffd.fileno(), UFFDIO_WAKE, RANGE.pack(at + offset, PAGE))

    def _find_seen(self, address: int) -> tuple[SharedMemory, int]:
        """The memory, and the offset in it, that the back-end sees at an address."""
        return next((memory, address - at) for memory, at in self._seen if 0 <= address - at < memory.size)

    def _find_guest(self, guest_addr: int) -> tuple[SharedMemory, int]:
        return next(
            (memory, guest_addr - memory.guest_addr)
            for memory, _ in self._seen
            if 0 <= guest_addr - memory.guest_addr < memory.size
        )
