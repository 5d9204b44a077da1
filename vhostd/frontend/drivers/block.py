"""A guest's virtio-blk driver to script: many requests at a time, over one queue or several.

The numbers are those of virtio 1.3, 5.2, written down here once more, so that a device of ours and this
driver check each other. Places are in sectors of 512 bytes, as in the specification.
"""

import struct
from collections.abc import Sequence
from itertools import cycle
from typing import Annotated, Self

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.queue import Queue
from vhostd.wire.layout import Layout, array, u8, u16, u32, u64

SECTOR = 512

IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13  # types of requests
OK, IOERR, UNSUPP = range(3)  # their ends
UNMAP = 1  # a segment's flag

# Feature bits of the device.
SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE = 1, 2, 4, 5, 6
FEATURE_FLUSH, TOPOLOGY, CONFIG_WCE, MQ = 9, 10, 11, 12
FEATURE_DISCARD, FEATURE_WRITE_ZEROES = 13, 14

HEADER = struct.Struct("<IIQ")  # type, reserved, sector
SEGMENT = struct.Struct("<QII")  # sector, sectors, flags
ID_SIZE = 20
WRITEBACK = 32  # the offset of `writeback` in the config space

Range = tuple[int, int]  # sector, sectors


class BlockConfig(Layout):
    """struct virtio_blk_config, up to what WRITE_ZEROES needs. A device may have less of it."""

    capacity: u64
    size_max: u32
    seg_max: u32
    cylinders: u16
    heads: u8
    sectors: u8
    blk_size: u32
    physical_block_exp: u8
    alignment_offset: u8
    min_io_size: u16
    opt_io_size: u32
    writeback: u8
    unused0: u8
    num_queues: u16
    max_discard_sectors: u32
    max_discard_seg: u32
    discard_sector_alignment: u32
    max_write_zeroes_sectors: u32
    max_write_zeroes_seg: u32
    write_zeroes_may_unmap: u8
    unused1: Annotated[bytes, array(3)]


# How much of it there is at least: what the features have in it is at its end.
CONFIG_SIZES = {FEATURE_WRITE_ZEROES: 60, FEATURE_DISCARD: 48}
LEAST_CONFIG = 36


class FailedRequest(DeviceError):
    """The device ended a request with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"ended with status {status}")
        self.status = status


class BlockDriver:
    """Drives a disk over its queues, which it owns; requests take turns on them.

    Requests wait for room in their queue. Every one raises FailedRequest if the device says no, DeviceError
    if it says what no device may, and what a `Pipeline` raises. A `lasting` driver's requests are not over
    with its connection.
    """

    def __init__(self, queues: Sequence[Queue], *, lasting: bool = False) -> None:
        self._lines = [Pipeline(queue, descriptors=3, lasting=lasting) for queue in queues]
        self._turns = cycle(self._lines)

    @classmethod
    async def start(
        cls,
        frontend: Frontend,
        memory: SharedMemory,
        *,
        queues: int = 1,
        size: int = 128,
        lasting: bool = False,
    ) -> Self:
        """Starts the queues, of `size` descriptors each, of which a request takes three."""
        started = [await frontend.start(memory, index, size) for index in range(queues)]
        return cls(started, lasting=lasting)

    async def read(self, sector: int, size: int) -> bytes:
        """So many bytes from a sector on."""
        return await self.request(IN, sector, room=size)

    async def write(self, sector: int, data: bytes) -> None:
        """Writes bytes from a sector on."""
        await self.request(OUT, sector, data)

    async def flush(self) -> None:
        """Has all kept that was written before."""
        await self.request(FLUSH)

    async def discard(self, *ranges: Range) -> None:
        """Gives up the content of these ranges (DISCARD)."""
        await self.request(DISCARD, data=segments(ranges))

    async def write_zeroes(self, *ranges: Range, unmap: bool = False) -> None:
        """Has zeroes there (WRITE_ZEROES), and lets the space be given back with `unmap`."""
        await self.request(WRITE_ZEROES, data=segments(ranges, UNMAP if unmap else 0))

    async def get_id(self) -> str:
        """The serial number, which ends at its first zero byte, if it has one."""
        return (await self.request(GET_ID, room=ID_SIZE)).partition(b"\0")[0].decode()

    async def request(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        """What the device wrote into `room` bytes, before the status."""
        # In three buffers, as from Linux. Not every device takes others (2.7.4).
        answer = await next(self._turns).request((HEADER.pack(kind, 0, sector), data), (room, 1))
        if not answer:
            raise DeviceError("the device wrote no status")
        if answer[-1] != OK:
            raise FailedRequest(answer[-1])
        if len(answer) != room + 1:
            raise DeviceError(f"{len(answer)} bytes where {room + 1} were due")
        return answer[:-1]

    def collect(self) -> None:
        """Takes what the device has used without a word, as before it was killed."""
        for line in self._lines:
            line.collect()

    def close(self) -> None:
        """Closes the queues; requests that still wait are cancelled. Idempotent."""
        for line in self._lines:
            line.close()


async def read_config(frontend: Frontend) -> BlockConfig:
    """The config space, as much of it as goes with the features; the rest is zeroes."""
    size = next(
        (size for bit, size in CONFIG_SIZES.items() if frontend.features >> bit & 1),
        LEAST_CONFIG,
    )
    return BlockConfig.unpack((await frontend.read_config(0, size)).ljust(BlockConfig.SIZE, b"\0"))


def segments(ranges: Sequence[Range], flags: int = 0) -> bytes:
    """The data of DISCARD and of WRITE_ZEROES."""
    return b"".join(SEGMENT.pack(sector, sectors, flags) for sector, sectors in ranges)
