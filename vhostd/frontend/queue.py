"""The driver's end of one virtqueue, with the eventfds that a front-end gives to a back-end."""

import os
import select
import socket
from collections import defaultdict
from typing import Any

from vhostd.errors import GuestError
from vhostd.frontend.memory import PAGE, SharedMemory
from vhostd.frontend.pipe import readable
from vhostd.ring import ring_format
from vhostd.ring.driver import driver_format
from vhostd.wire.fds import Fd


class Queue:
    """A virtqueue in shared memory and its kick, call and err eventfds, which it owns."""

    def __init__(
        self,
        memory: SharedMemory,
        index: int,
        size: int,
        features: int,
        connection: socket.socket | None = None,
    ) -> None:
        """Whoever waits for the device notices when the `connection` to it ends."""
        self.memory = memory
        self.index = index
        self.size = size
        footprint = ring_format(features).footprint(size)
        where = memory.allocate(sum(footprint) + 8, PAGE)  # 8 at most for alignment
        # A SplitDriver or a PackedDriver. Whoever writes nonsense into a ring knows its format.
        self.driver: Any = driver_format(features)(memory.map, where, size, features=features)
        self.kick_fd, self.call_fd, self.err_fd = (
            Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)) for _ in range(3)
        )
        self._watched = select.epoll()
        for fd in (self.call_fd, self.err_fd):
            self._watched.register(fd, select.EPOLLIN)
        if connection is not None:
            self._watched.register(connection, select.EPOLLRDHUP)
        self._held: dict[int, list[tuple[int, int, bool]]] = {}  # the buffers of each head that is out
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # addresses by size

    def add(self, data: bytes = b"", room: int = 0) -> int:
        """Offers a chain that holds `data`, then `room` bytes for the device to fill; returns its head."""
        buffers = []
        if data:
            buffers.append((self._take(len(data)), len(data), False))
            self.memory.map.write(buffers[0][0], data)
        if room:
            buffers.append((self._take(room), room, True))
        head: int = self.driver.add(buffers)
        self._held[head] = buffers
        return head

    def kick(self) -> None:
        """Tells the device of what was added, if it wants to be told."""
        if self.driver.must_kick():
            os.eventfd_write(self.kick_fd.fileno(), 1)

    def poll(self) -> tuple[int, bytes] | None:
        """The next chain that the device has used: its head, and what the device wrote."""
        if (used := self.driver.used()) is None:
            return None
        head, written = used
        buffers = self._held.pop(head)
        answer = self.memory.map.read(buffers[-1][0], written) if written else b""
        for addr, size, _ in buffers:
            self._free[size].append(addr)
        return head, answer

    async def used(self) -> tuple[int, bytes]:
        """As `poll`, but waits for the device's interrupt.

        Raises GuestError if the device has stopped the ring since it is broken, ConnectionResetError if the
        back-end has closed the connection.
        """
        while (answer := self.poll()) is None:
            if not self.driver.arm():
                await self._interrupt()
        return answer

    async def _interrupt(self) -> None:
        await readable(self._watched.fileno())
        ready = dict(self._watched.poll(0))
        if self.call_fd.fileno() in ready:
            os.eventfd_read(self.call_fd.fileno())
        elif self.err_fd.fileno() in ready:
            raise GuestError(f"the device has stopped ring {self.index}, since it is broken: see its log")
        else:
            raise ConnectionResetError("the back-end has closed the connection")

    async def request(self, data: bytes = b"", room: int = 0) -> bytes:
        """Sends a chain, waits until it is used, and returns what the device wrote; raises as `used` does."""
        self.add(data, room)
        self.kick()
        return (await self.used())[1]

    def close(self) -> None:
        """Closes the eventfds."""
        self._watched.close()
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            fd.close()

    def _take(self, size: int) -> int:
        return self._free[size].pop() if self._free[size] else self.memory.allocate(size)


async def signalled(eventfd: Fd) -> int:
    """Waits for an eventfd and returns its count."""
    await readable(eventfd.fileno())
    return os.eventfd_read(eventfd.fileno())
