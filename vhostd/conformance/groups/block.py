"""The data plane of a disk (virtio 1.3, 5.2).

**What a request may not be.** The specification tells drivers that the data of a read or a write is a
multiple of 512 bytes. It says nothing of devices that get another. Here such a request must be answered, in
any way, or stop its ring.

**Reads need no permission.** Only the checks that write are kept for `--destructive`.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Self

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import GuestError
from vhostd.frontend import BlockDriver, Frontend, Queue, SharedMemory
from vhostd.frontend.drivers import block
from vhostd.frontend.drivers.block import (
    GET_ID,
    HEADER,
    ID_SIZE,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    UNSUPP,
    BlockConfig,
    segments,
)
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.wire.rows import Bit

BLOCK = Group("BLK", "Block device", "virtio 1.3, 5.2")

RO, FLUSH, CONFIG_WCE = Bit(block.RO), Bit(block.FEATURE_FLUSH), Bit(block.CONFIG_WCE)
MQ, SEG_MAX, BLK_SIZE = Bit(block.MQ), Bit(block.SEG_MAX), Bit(block.BLK_SIZE)
DISCARD, WRITE_ZEROES = Bit(block.FEATURE_DISCARD), Bit(block.FEATURE_WRITE_ZEROES)
for _name, _bit in list(vars().items()):
    if isinstance(_bit, Bit):
        _bit.name = f"VIRTIO_BLK_F_{_name}"
UNKNOWN = 0x7777  # no request has this type

HAS_CONFIG = Needs(kinds=("block",), protocol=(ProtocolFeature.CONFIG,))


def needs(*features: Bit, destructive: bool = False) -> Needs:
    """A disk whose config space can be read, with these features."""
    return HAS_CONFIG._replace(features=features, destructive=destructive)


class Disk:
    """A running disk with all the features that it offers, one request at a time; and its config space."""

    def __init__(self, frontend: Frontend, memory: SharedMemory, queue: Queue, config: BlockConfig) -> None:
        self.frontend = frontend
        self.memory = memory
        self.queue = queue
        self.config = config
        self.unit = max(config.blk_size, SECTOR)  # bytes
        self.sectors = self.unit // SECTOR  # of a unit

    @classmethod
    async def start(cls, trial: Trial) -> Self:
        """Connects, and starts the first queue."""
        frontend = await trial.negotiate()
        config = await block.read_config(frontend)
        memory = trial.memory()
        await frontend.share(memory)
        return cls(frontend, memory, await trial.start(frontend, memory), config)

    async def request(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0
    ) -> tuple[int, bytes]:
        """The status of a request, and what was written before it."""
        return ended(await self.queue.request((HEADER.pack(kind, 0, sector), data), (room, 1)))

    async def expect(
        self, status: int, what: str, kind: int, sector: int = 0, data: bytes = b"", room: int = 0
    ) -> bytes:
        """Expects a request to end so; what was written before the status."""
        found, written = await self.request(kind, sector, data, room)
        expect(found == status, f"{what} ended with status {found}, not {status}")
        return written

    async def read(self, sector: int, size: int) -> bytes:
        """Bytes of the disk, which is expected to give them."""
        return await self.expect(OK, f"a read of {size} bytes at sector {sector}", IN, sector, room=size)

    async def write(self, sector: int, data: bytes) -> None:
        """Writes to the disk, which is expected to take it."""
        await self.expect(OK, f"a write of {len(data)} bytes at sector {sector}", OUT, sector, data)

    async def chain(self, *parts: bytes | int) -> bytes | None:
        """Sends a chain with a descriptor for each part: bytes to read, or the size of room to write.

        Returns what was written, None if the device has stopped the ring or the connection.
        """
        self._offer(parts)
        try:
            return (await self.queue.used())[1]
        except (GuestError, ConnectionError):
            return None

    async def provoke(self, trial: Trial, *parts: bytes | int) -> None:
        """Sends such a chain that makes no sense, and sees to it that the device has looked at it."""
        self._offer(parts)
        await trial.provoke(self.frontend, self.queue)

    def _offer(self, parts: Sequence[bytes | int]) -> None:
        buffers = []
        for part in parts:
            data = part if isinstance(part, bytes) else bytes(part)
            addr = self.memory.allocate(max(len(data), 1))
            self.memory.map.write(addr, data)
            buffers.append((addr, len(data), isinstance(part, int)))
        self.queue.offer(buffers)
        self.queue.kick()


def ended(answer: bytes) -> tuple[int, bytes]:
    """The status byte of an answer, and what comes before it."""
    expect(answer, "a request came back without a status")
    return answer[-1], answer[:-1]


@BLOCK.must(1, "5.2.4", "The config space tells a capacity, and its values are possible.", HAS_CONFIG)
async def config_space(trial: Trial) -> None:
    """Reads the config space: blk_size is a power of two of 512 or more, num_queues and seg_max are not 0."""
    config = await block.read_config(await trial.negotiate())
    if trial.subject.has(BLK_SIZE):
        size = config.blk_size
        expect(size >= SECTOR and not size & size - 1, f"blk_size is {size}")
    expect(not trial.subject.has(MQ) or config.num_queues, "num_queues is 0, and MQ is offered")
    expect(not trial.subject.has(SEG_MAX) or config.seg_max, "seg_max is 0, and SEG_MAX is offered")


@BLOCK.must(2, "5.2.6", "The first and the last block can be read.", HAS_CONFIG)
async def ends_of_the_disk(trial: Trial) -> None:
    """Reads a block of blk_size at the start, and one at the end that the capacity tells."""
    disk = await Disk.start(trial)
    for sector in (0, disk.config.capacity - disk.sectors):
        await disk.read(sector, disk.unit)


@BLOCK.must(3, "5.2.6.2", "A request beyond the capacity fails.", HAS_CONFIG)
async def beyond_the_end(trial: Trial) -> None:
    """Reads right behind the end, across the end, and at sectors that overflow: each ends with IOERR."""
    disk = await Disk.start(trial)
    end = disk.config.capacity
    for sector in (end, end - disk.sectors, 2**55, 2**63, 2**64 - disk.sectors):
        what = f"a read of {2 * disk.unit} bytes at sector {sector} of {end}"
        await disk.expect(IOERR, what, IN, sector, room=2 * disk.unit)


@BLOCK.must(4, "5.2.6.2", "A request of an unknown type ends with UNSUPP.", HAS_CONFIG)
async def unknown_type(trial: Trial) -> None:
    """Sends a request of type 0x7777 without data."""
    await (await Disk.start(trial)).expect(UNSUPP, "a request of an unknown type", UNKNOWN)


@BLOCK.should(5, "5.2.6", "A disk has an id.", HAS_CONFIG)
async def get_id(trial: Trial) -> None:
    """Sends GET_ID with room for 20 bytes."""
    await (await Disk.start(trial)).expect(OK, "GET_ID", GET_ID, room=ID_SIZE)


@BLOCK.must(6, "5.2.6", "With FLUSH offered, flushes are done.", needs(FLUSH))
async def flush(trial: Trial) -> None:
    """Sends FLUSH."""
    await (await Disk.start(trial)).expect(OK, "FLUSH", block.FLUSH)


@BLOCK.must(7, "5.2.6.2", "A disk that may only be read fails writes.", needs(RO))
async def read_only(trial: Trial) -> None:
    """Writes the first block of a disk that offers RO: it ends with IOERR."""
    disk = await Disk.start(trial)
    await disk.expect(IOERR, "a write to a disk with RO", OUT, data=bytes(disk.unit))


@BLOCK.must(8, "2.7.4.1", "The device takes no meaning from where a descriptor ends.", HAS_CONFIG)
async def any_layout(trial: Trial) -> None:
    """Reads a block with the header in pieces of 7 and 9 bytes, and room in odd pieces; compares the data."""
    disk = await Disk.start(trial)
    expected = await disk.read(0, disk.unit)
    header = HEADER.pack(IN, 0, 0)
    answer = await disk.chain(header[:7], header[7:], 1, disk.unit - 4, 3, 1)
    if answer is None:
        raise Failed("a header in two descriptors, or data in three, stopped the ring")
    status, data = ended(answer)
    expect(status == OK, f"the read ended with status {status}")
    expect(data == expected, "the data differ from those of a read in one piece")


@BLOCK.must(9, "5.2.6", "The status may lie in one descriptor with the data.", HAS_CONFIG)
async def status_behind_data(trial: Trial) -> None:
    """Reads a block into a single descriptor of a block and one byte more."""
    disk = await Disk.start(trial)
    answer = await disk.chain(HEADER.pack(IN, 0, 0), disk.unit + 1)
    expect(answer is not None, "data and status in one descriptor stopped the ring")
    status, _ = ended(answer or b"")
    expect(status == OK, f"the read ended with status {status}")


@BLOCK.must(10, "5.2.6", "A request without room for a status costs the ring at most.", HAS_CONFIG)
async def no_status(trial: Trial) -> None:
    """Sends a header alone: it is given back, or the ring stops."""
    await (await Disk.start(trial)).provoke(trial, HEADER.pack(IN, 0, 0))


@BLOCK.must(11, "5.2.6", "A header that is cut costs the ring at most.", HAS_CONFIG)
async def cut_header(trial: Trial) -> None:
    """Sends the first 15 bytes of a header, and room for a status: it is given back, or the ring stops."""
    await (await Disk.start(trial)).provoke(trial, HEADER.pack(IN, 0, 0)[:-1], 1)


@BLOCK.must(12, "5.2.6.1", "Data that are no multiple of 512 bytes cost the ring at most.", HAS_CONFIG)
async def odd_size(trial: Trial) -> None:
    """Reads 100 bytes: it is given back, or the ring stops."""
    await (await Disk.start(trial)).provoke(trial, HEADER.pack(IN, 0, 0), 100, 1)


@BLOCK.must(13, "5.2.6", "Many requests may be under way at once, and each gets its own data.", HAS_CONFIG)
async def many_at_once(trial: Trial) -> None:
    """Reads the first 32 blocks one after the other, and then all at once: the data are the same."""
    disk = await Disk.start(trial)
    count = min(32, disk.config.capacity // disk.sectors)
    places = range(0, count * disk.sectors, disk.sectors)
    expected = [await disk.read(sector, disk.unit) for sector in places]
    await disk.frontend.stop(disk.queue)
    driver = await BlockDriver.start(disk.frontend, disk.memory)
    try:
        found = await asyncio.gather(*(driver.read(sector, disk.unit) for sector in places))
    finally:
        driver.close()
    wrong = [sector for sector, one, other in zip(places, expected, found, strict=True) if one != other]
    expect(not wrong, f"other data at sectors {wrong}")


@BLOCK.must(14, "5.2.2", "All queues that num_queues tells serve requests.", needs(MQ))
async def all_queues(trial: Trial) -> None:
    """Starts each queue, at most 64, and reads the first block on it."""
    disk = await Disk.start(trial)
    expected = await disk.read(0, disk.unit)
    for index in range(1, min(disk.config.num_queues, 64)):
        disk.queue = await trial.start(disk.frontend, disk.memory, index, size=8)
        expect(await disk.read(0, disk.unit) == expected, f"queue {index} read other data")


@BLOCK.must(15, "5.2.5", "A request may have as many segments as seg_max tells.", needs(SEG_MAX))
async def seg_max(trial: Trial) -> None:
    """Reads into seg_max descriptors of 512 bytes, as far as the disk and a ring of 256 have room."""
    disk = await Disk.start(trial)
    await disk.frontend.stop(disk.queue)
    disk.queue = await trial.start(disk.frontend, disk.memory, size=256)
    count = min(disk.config.seg_max, 254, disk.config.capacity) // disk.sectors * disk.sectors
    answer = await disk.chain(HEADER.pack(IN, 0, 0), *(SECTOR for _ in range(count)), 1)
    expect(answer is not None, f"{count} segments stopped the ring, and seg_max is {disk.config.seg_max}")
    status, data = ended(answer or b"")
    expect(status == OK and len(data) == count * SECTOR, f"{count} segments ended with status {status}")


@BLOCK.should(16, "2.7.8.2", "The used length is what was written: data and status.", HAS_CONFIG)
async def used_length(trial: Trial) -> None:
    """Reads a block: its length in the used ring is that of the block and one byte."""
    disk = await Disk.start(trial)
    data = await disk.read(0, disk.unit)
    expect(
        len(data) == disk.unit,
        f"the used length is {len(data) + 1}, where {disk.unit + 1} bytes were written",
    )


@BLOCK.must(17, "5.2.6", "What was written is read.", needs(destructive=True))
async def writes(trial: Trial) -> None:
    """Writes random data in sizes from a block to 1 MiB, flushes, and reads them on a new connection."""
    disk = await writable(trial)
    sizes = [size for size in (disk.unit, 8 * disk.unit, 1 << 20) if size <= disk.config.capacity * SECTOR]
    for size in sizes:
        data = os.urandom(size)
        await disk.write(0, data)
        expect(await disk.read(0, size) == data, f"other data than the {size} bytes that were written")
    if trial.subject.has(FLUSH):
        await disk.expect(OK, "FLUSH", block.FLUSH)


@BLOCK.must(18, "5.2.6.2", "A write beyond the end writes nothing.", needs(destructive=True))
async def write_across_the_end(trial: Trial) -> None:
    """Writes two blocks where one is left: it ends with IOERR, and the last block is as before."""
    disk = await writable(trial)
    last = disk.config.capacity - disk.sectors
    before = await disk.read(last, disk.unit)
    await disk.expect(IOERR, "a write across the end", OUT, last, os.urandom(2 * disk.unit))
    expect(await disk.read(last, disk.unit) == before, "a write that failed has changed the last block")


@BLOCK.must(
    19,
    "5.2.6.2",
    "WRITE_ZEROES makes zeroes of its range and of nothing else.",
    needs(WRITE_ZEROES, destructive=True),
)
async def write_zeroes(trial: Trial) -> None:
    """Writes three blocks and makes zeroes of the middle one, without and with the unmap flag."""
    disk = await writable(trial)
    for flags in (0, UNMAP) if disk.config.write_zeroes_may_unmap else (0,):
        data = os.urandom(3 * disk.unit)
        await disk.write(0, data)
        what = segments([(disk.sectors, disk.sectors)], flags)
        await disk.expect(OK, f"WRITE_ZEROES with flags {flags}", block.WRITE_ZEROES, data=what)
        expected = data[: disk.unit] + bytes(disk.unit) + data[-disk.unit :]
        expect(
            await disk.read(0, 3 * disk.unit) == expected, f"other data after WRITE_ZEROES with flags {flags}"
        )


@BLOCK.must(20, "5.2.6.2", "DISCARD changes nothing outside its range.", needs(DISCARD, destructive=True))
async def discard(trial: Trial) -> None:
    """Writes three units of discard_sector_alignment, discards the middle one, and reads the others."""
    disk = await writable(trial)
    sectors = max(disk.config.discard_sector_alignment, disk.sectors)
    size = sectors * SECTOR
    if 3 * sectors > disk.config.capacity or 3 * size > 4 << 20:
        skip("the disk is too small, or its units of discard are too large")
    data = os.urandom(3 * size)
    await disk.write(0, data)
    await disk.expect(OK, "DISCARD", block.DISCARD, data=segments([(sectors, sectors)]))
    found = await disk.read(0, 3 * size)
    expect(
        found[:size] == data[:size] and found[-size:] == data[-size:], "DISCARD has changed its neighbours"
    )


@BLOCK.must(
    21,
    "5.2.6.2",
    "A range of DISCARD or WRITE_ZEROES beyond the end fails.",
    needs(DISCARD, WRITE_ZEROES, destructive=True),
)
async def ranges_beyond_the_end(trial: Trial) -> None:
    """Sends both with ranges behind the end, across it, and such that overflow: each ends with IOERR."""
    disk = await writable(trial)
    end = disk.config.capacity
    for kind in (block.DISCARD, block.WRITE_ZEROES):
        for sector in (end, end - disk.sectors, 2**64 - disk.sectors):
            what = segments([(sector, 2 * disk.sectors)])
            await disk.expect(IOERR, f"request {kind} at sector {sector} of {end}", kind, data=what)


@BLOCK.must(
    22, "5.2.6.2", "A DISCARD with the unmap flag ends with UNSUPP.", needs(DISCARD, destructive=True)
)
async def discard_with_a_flag(trial: Trial) -> None:
    """Discards a block with the unmap flag set, which only WRITE_ZEROES has."""
    disk = await writable(trial)
    what = segments([(0, disk.sectors)], UNMAP)
    await disk.expect(UNSUPP, "DISCARD with the unmap flag", block.DISCARD, data=what)


@BLOCK.must(
    23, "5.2.6.2", "An unknown flag of WRITE_ZEROES ends with UNSUPP.", needs(WRITE_ZEROES, destructive=True)
)
async def unknown_flag(trial: Trial) -> None:
    """Sends WRITE_ZEROES with flag 0x80."""
    disk = await writable(trial)
    what = segments([(0, disk.sectors)], 0x80)
    await disk.expect(UNSUPP, "WRITE_ZEROES with flag 0x80", block.WRITE_ZEROES, data=what)


@BLOCK.should(
    24,
    "5.2.5",
    "With CONFIG_WCE a driver may switch the write cache, and read what is in force.",
    needs(CONFIG_WCE),
)
async def write_cache(trial: Trial) -> None:
    """Writes both values of `writeback` and reads each again; then puts back what was there."""
    frontend = await trial.negotiate()
    before = (await block.read_config(frontend)).writeback
    for value in (0, 1, before):
        await frontend.write_config(block.WRITEBACK, bytes([value]))
        found = (await block.read_config(frontend)).writeback
        expect(found == value, f"writeback is {found} after {value} was written")


@BLOCK.must(25, "2.7.8.2", "The used length of a write is no more than its status.", needs(destructive=True))
async def used_length_of_a_write(trial: Trial) -> None:
    """Writes a block, with room for nothing but the status."""
    disk = await writable(trial)
    await disk.write(0, bytes(disk.unit))
    surplus = disk.queue.surplus
    expect(not surplus, f"the used length is {surplus + 1}, where there was room for the status only")


@BLOCK.must(26, "2.7", "The data of a request may lie at any address.", HAS_CONFIG)
async def any_address(trial: Trial) -> None:
    """Reads a block to an odd address; compares the data."""
    disk = await Disk.start(trial)
    expected = await disk.read(0, disk.unit)
    header, room = (disk.memory.allocate(size) for size in (HEADER.size, disk.unit + 2))
    disk.memory.map.write(header, HEADER.pack(IN, 0, 0))
    buffers = [(header, HEADER.size, False), (room + 1, disk.unit, True), (room + 1 + disk.unit, 1, True)]
    disk.queue.offer(buffers)
    disk.queue.kick()
    status, data = ended((await disk.queue.used())[1])
    expect(status == OK, f"a read to an odd address ended with status {status}")
    expect(data == expected, "the data differ from those of a read to an even address")


async def writable(trial: Trial) -> Disk:
    """A running disk that takes writes."""
    if trial.subject.has(RO):
        skip("the disk may only be read")
    return await Disk.start(trial)
