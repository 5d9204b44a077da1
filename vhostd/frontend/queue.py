"""The driver's end of one virtqueue, with the eventfds that a front-end gives to a back-end."""

import asyncio
import os
import select
import socket
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from vhostd.errors import DeviceError, GuestError
from vhostd.frontend.memory import PAGE, SharedMemory
from vhostd.frontend.pipe import readable
from vhostd.ring import ring_format
from vhostd.ring.driver import driver_format
from vhostd.wire.fds import Fd

DESCRIPTOR_SIZE = 16
SECTOR = 512  # what is at least that long is aligned to it: a disk may read and write it past the page cache

Buffer = tuple[int, int, bool]  # guest address, size, whether the device writes it


class Queue:
    """A virtqueue in shared memory and its kick, call and err eventfds, which it owns.

    `add`, `kick` and `used` are what an honest driver does. `offer` takes buffers from anywhere. `driver` is
    the ring itself, a SplitDriver or a PackedDriver of `vhostd.ring`: its `descriptor`, `offer` and `publish`
    write whatever they are given, as a hostile driver would.

    `patience` is how many seconds `used` waits for the device. `surplus` is how many bytes more than there
    was room for the device says that it has written.
    """

    def __init__(
        self,
        memory: SharedMemory,
        index: int,
        size: int,
        features: int,
        connection: socket.socket | None = None,
        base: int | None = None,
    ) -> None:
        """The ring begins at `base`, as SET_VRING_BASE has it; by default at its start.

        Whoever waits for the device notices when the `connection` to it ends.
        """
        self.memory = memory
        self.index = index
        self.size = size
        self.patience: float | None = None
        self.surplus = 0
        footprint = ring_format(features).footprint(size)
        where = memory.allocate(sum(footprint) + 8, PAGE)  # 8 at most for alignment
        # A SplitDriver or a PackedDriver. Whoever writes nonsense into a ring knows its format.
        begin = {} if base is None else {"base": base}
        self.driver: Any = driver_format(features)(memory.map, where, size, features=features, **begin)
        self.kick_fd, self.call_fd, self.err_fd = (
            Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(3)
        )
        self._watched = select.epoll()
        for fd in (self.call_fd, self.err_fd):
            self._watched.register(fd, select.EPOLLIN)
        if connection is not None:
            self.watch(connection)
        self._held: dict[int, Sequence[Buffer]] = {}  # the buffers of each head that is out
        self._taken: dict[int, list[Buffer]] = {}  # those of them that were taken from the memory here
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # addresses by size

    def add(
        self,
        data: bytes | Sequence[bytes] = b"",
        room: int | Sequence[int] = 0,
        *,
        indirect: bool = False,
    ) -> int:
        """Offers a chain that holds `data`, then `room` bytes for the device to fill; returns its head.

        Each is a buffer, or several; those of no bytes are left out. With `indirect` (INDIRECT_DESC) the
        descriptors lie in a table of their own. Raises IndexError if the ring is full, MemoryError if the
        memory is.
        """
        taken = []
        for part in (data,) if isinstance(data, bytes) else data:
            if part:
                taken.append((self._take(len(part)), len(part), False))
                self.memory.map.write(taken[-1][0], part)
        taken += [
            (self._take(size), size, True) for size in ((room,) if isinstance(room, int) else room) if size
        ]
        table = None
        if indirect:
            size = DESCRIPTOR_SIZE * len(taken)
            table = self._take(size)
            head = self.offer(taken, indirect=table)
            taken = [*taken, (table, size, False)]
        else:
            head = self.offer(taken)
        self._taken[head] = taken
        return head

    def offer(self, buffers: Sequence[Buffer], *, indirect: int | None = None) -> int:
        """Offers a chain of these buffers, wherever they are; returns its head.

        With `indirect` the descriptors go into a table at that guest address.
        """
        head: int = self.driver.add(buffers, indirect=indirect)
        self._held[head] = buffers
        return head

    def kick(self) -> None:
        """Tells the device of what was added, if it wants to be told."""
        if self.driver.must_kick():
            os.eventfd_write(self.kick_fd.fileno(), 1)

    def poll(self) -> tuple[int, bytes] | None:
        """The next chain that the device has used: its head, and what the device wrote.

        Raises DeviceError for a chain that the device did not have. More bytes than there was room add to the
        `surplus`.
        """
        if (used := self.driver.used()) is None:
            return None
        head, written = used
        buffers = self._held.pop(head, None)
        if buffers is None:
            raise DeviceError(f"ring {self.index}: the device has returned {head}, which it did not have")
        answer = self._written(buffers, written)
        for addr, size, _ in self._taken.pop(head, ()):
            self._free[size].append(addr)
        return head, answer

    async def used(self) -> tuple[int, bytes]:
        """As `poll`, but waits for the device's interrupt.

        Raises GuestError if the device has stopped the ring since it is broken, ConnectionResetError if the
        back-end has closed the connection, TimeoutError when the `patience` is over.
        """
        ending = None
        async with asyncio.timeout(self.patience):
            while (answer := self.poll()) is None:
                if ending is not None:
                    raise ending
                if not self.driver.arm():
                    await readable(self.fileno())
                    ending = self._heard()
        return answer

    def fileno(self) -> int:
        """An fd that is readable when there is something to `heed`."""
        return self._watched.fileno()

    def heed(self) -> None:
        """Takes the device's interrupt, if there is one; raises as `used` if that has ended."""
        if (ending := self._heard()) is not None:
            raise ending

    def watch(self, connection: socket.socket) -> None:
        """Whoever waits for the device notices the end of this connection as well."""
        with suppress(FileExistsError):  # it is watched already
            self._watched.register(connection, select.EPOLLRDHUP)

    async def request(self, data: bytes | Sequence[bytes] = b"", room: int | Sequence[int] = 0) -> bytes:
        """Sends a chain, waits until it is used, and returns what the device wrote; raises as `used` does."""
        self.add(data, room)
        self.kick()
        return (await self.used())[1]

    def close(self) -> None:
        """Closes the eventfds."""
        self._watched.close()
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()

    def _heard(self) -> Exception | None:
        """Takes the interrupt; or the error that says that none can come. The last answers may have come."""
        ready = dict(self._watched.poll(0))
        if self.call_fd.fileno() in ready:
            os.eventfd_read(self.call_fd.fileno())
        elif self.err_fd.fileno() in ready:
            return GuestError(f"the device has stopped ring {self.index}, since it is broken: see its log")
        elif ready:
            return ConnectionResetError("the back-end has closed the connection")
        return None

    def _take(self, size: int) -> int:
        if self._free[size]:
            return self._free[size].pop()
        return self.memory.allocate(size, SECTOR if size >= SECTOR else 16)

    def _written(self, buffers: Sequence[Buffer], written: int) -> bytes:
        """The first bytes of the buffers that the device may write."""
        parts, left = [], written
        for addr, size, writes in buffers:
            if writes and left:
                parts.append(self.memory.map.read(addr, min(size, left)))
                left -= len(parts[-1])
        self.surplus += left
        return b"".join(parts)


async def signalled(eventfd: Fd) -> int:
    """Waits for an eventfd and returns its count."""
    await readable(eventfd.fileno())
    return os.eventfd_read(eventfd.fileno())
