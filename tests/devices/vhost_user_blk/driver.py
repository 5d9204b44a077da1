"""A guest's virtio-blk driver to script: many requests at a time, over one queue or several.

Requests are packed here by hand from virtio 1.3, 5.2.6, and not with the device's own layouts, so that each
checks the other. Places are in sectors of 512 bytes, as in the specification.
"""

import asyncio
import os
import struct
from collections.abc import Sequence
from itertools import cycle
from typing import Self

from vhostd.frontend import Frontend, Queue, SharedMemory

SECTOR = 512

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13  # types of requests
OK, IOERR, UNSUPP = range(3)  # their ends
UNMAP = 1  # a segment's flag

# Feature bits of the device.
RO, BLK_SIZE, FEATURE_FLUSH, TOPOLOGY, CONFIG_WCE, MQ = 5, 6, 9, 10, 11, 12
FEATURE_DISCARD, FEATURE_WRITE_ZEROES = 13, 14

HEADER = struct.Struct("<IIQ")  # type, reserved, sector
SEGMENT = struct.Struct("<QII")  # sector, sectors, flags
ID_SIZE = 20

Range = tuple[int, int]  # sector, sectors


class FailedRequest(Exception):
    """The device ended a request with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


class Driver:
    """Drives a disk over its queues, which it owns; requests take turns on them.

    Requests wait for room in their queue. Every one raises FailedRequest if the device says no.
    """

    def __init__(self, queues: Sequence[Queue]) -> None:
        self._ports = [Port(queue) for queue in queues]
        self._turns = cycle(self._ports)

    @classmethod
    async def start(
        cls, frontend: Frontend, memory: SharedMemory, *, queues: int = 1, size: int = 128
    ) -> Self:
        """Starts the queues, of `size` descriptors each, of which a request takes two."""
        return cls([await frontend.start(memory, index, size) for index in range(queues)])

    async def read(self, sector: int, size: int) -> bytes:
        return await self.request(IN, sector, room=size)

    async def write(self, sector: int, data: bytes) -> None:
        await self.request(OUT, sector, data)

    async def flush(self) -> None:
        await self.request(FLUSH)

    async def discard(self, *ranges: Range) -> None:
        await self.request(DISCARD, data=segments(ranges))

    async def write_zeroes(self, *ranges: Range, unmap: bool = False) -> None:
        await self.request(WRITE_ZEROES, data=segments(ranges, UNMAP if unmap else 0))

    async def get_id(self) -> str:
        """The serial number, which ends at its first zero byte, if it has one."""
        return (await self.request(GET_ID, room=ID_SIZE)).partition(b"\0")[0].decode()

    async def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        """What the device wrote into `room` bytes, before the status."""
        answer = await next(self._turns).request(HEADER.pack(kind, 0, sector) + data, room + 1)
        assert answer, "the device wrote no status"
        if answer[-1] != OK:
            raise FailedRequest(answer[-1])
        assert len(answer) == room + 1, f"{len(answer)} bytes where {room + 1} were due"
        return answer[:-1]

    def collect(self) -> None:
        """Takes what the device has used without a word, as before it was killed."""
        for port in self._ports:
            port.collect()

    def close(self) -> None:
        """Closes the queues; requests that still wait are cancelled. Idempotent."""
        for port in self._ports:
            port.close()


class Port:
    """A queue, which it owns, with a future for everything that the device has yet to use."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._room = asyncio.Semaphore(queue.size // 2)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._kicking = False
        self._closed = False
        self._loop.add_reader(queue.call_fd.fileno(), self._called)

    async def request(self, data: bytes, room: int) -> bytes:
        """What the device writes into `room` bytes when it gets these."""
        async with self._room:
            if self._closed:
                raise asyncio.CancelledError
            head = self._queue.add(data, room)
            answer: asyncio.Future[bytes] = self._loop.create_future()
            self._waiting[head] = answer
            self._kick_soon()
            return await answer

    def collect(self) -> None:
        """Hands out all that the device has used."""
        while used := self._queue.poll():
            head, data = used
            answer = self._waiting.pop(head)
            if not answer.done():
                answer.set_result(data)

    def close(self) -> None:
        """Closes the queue; idempotent."""
        self._closed = True
        if self._queue.call_fd:
            self._loop.remove_reader(self._queue.call_fd.fileno())
        self._queue.close()
        for answer in self._waiting.values():
            answer.cancel()

    def _kick_soon(self) -> None:
        """Kicks once for all that is added in this turn of the loop."""
        if not self._kicking:
            self._kicking = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kicking = False
        if self._queue.kick_fd:
            self._queue.kick()

    def _called(self) -> None:
        os.eventfd_read(self._queue.call_fd.fileno())
        self.collect()
        while self._queue.driver.arm():
            self.collect()


def segments(ranges: Sequence[Range], flags: int = 0) -> bytes:
    """The data of DISCARD and of WRITE_ZEROES."""
    return b"".join(SEGMENT.pack(sector, sectors, flags) for sector, sectors in ranges)
