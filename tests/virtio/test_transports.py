"""A real disk behind transports that have no socket, through its whole life."""

import asyncio
import struct
from collections.abc import Iterator

import pytest

from tests.conftest import Run
from tests.virtio.transports import (
    ACKNOWLEDGE,
    DRIVER,
    DRIVER_OK,
    FEATURES_OK,
    Driver,
    Line,
    OneByOne,
    Registers,
)
from vhost_user_blk.device import Blk
from vhostd.frontend import SharedMemory
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.vocabulary import DeviceStatus, Feature, mask

SECTOR = 512
IN, OUT, FLUSH = 0, 1, 4  # virtio 1.3, 5.2.6
OK = b"\0"
CONFIG_WCE = 1 << 11
DATA = bytes(range(256)) * 2


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(1 << 20)
    yield made
    made.close()


def make_disk() -> Blk:
    return Blk.from_options(
        parse(Blk, CommandLine(["blk", "--socket-path=unused", "--ram=1M", "--num-queues=2"]))
    )


def request(kind: int, sector: int, data: bytes = b"") -> bytes:
    return struct.pack("<IIQ", kind, 0, sector) + data


async def writes_and_reads(driver: Driver, runner: QueueRunner, line: Line, sector: int) -> None:
    assert await driver.request(runner, line, request(OUT, sector, DATA), 1) == OK
    assert await driver.request(runner, line, request(FLUSH, 0), 1) == OK
    assert await driver.request(runner, line, request(IN, sector), SECTOR + 1) == DATA + OK


FORMATS = {"split": mask(Feature.RING_PACKED), "packed": 0}  # what the driver does not want
formats = pytest.mark.parametrize("unwanted", FORMATS.values(), ids=FORMATS)


@formats
def test_rings_that_start_one_by_one(unwanted: int, run_async: Run, memory: SharedMemory) -> None:
    async def main() -> None:
        disk = make_disk()
        transport = OneByOne(disk, memory)
        state, line = transport.state, transport.line
        assert state.offered & mask(Feature.VERSION_1)
        transport.negotiate(unwanted)
        assert disk.negotiated == disk.features
        assert struct.unpack("<Q", state.read_config(0, 8))[0] == (1 << 20) // SECTOR

        driver = transport.start(1)
        assert [queue.started for queue in state.queues] == [False, True]
        await writes_and_reads(driver, state.queues[1], line, 3)
        base = await transport.stop(1)
        assert base == (3 if unwanted else 0x8006_8006)  # in descriptors: two each
        assert not state.is_running
        transport.go_on(driver, 1, base)  # with all that the driver knows
        await writes_and_reads(driver, state.queues[1], line, 4)
        other = transport.start(0)
        assert await other.request(state.queues[0], line, request(IN, 3), SECTOR + 1) == DATA + OK

        driver.queue.driver.add([(0xDEAD, 8, True), (0xBEEF, 8, False)])  # readable after writable
        assert state.queues[1].queue is not None
        state.queues[1].queue.kicked()
        while not line.is_broken:
            await asyncio.sleep(0)
        assert [queue.is_broken for queue in state.queues] == [False, True]
        assert await other.request(state.queues[0], line, request(IN, 4), SECTOR + 1) == DATA + OK

        await transport.close()
        assert (state.is_running, disk.negotiated) == (False, 0)
        for each in (driver, other):
            each.queue.close()
        disk.close()

    run_async(main)


@formats
def test_a_status_register_that_starts_them_all(unwanted: int, run_async: Run, memory: SharedMemory) -> None:
    async def main() -> None:
        disk = make_disk()
        transport = Registers(disk, memory)
        state, line = transport.state, transport.line
        queues = []
        for sector in (1, 2):  # as a guest that reboots
            await transport.write_status(0)
            await transport.write_status(ACKNOWLEDGE | DRIVER)
            transport.write_driver_features(transport.device_features & ~unwanted)
            await transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK)
            assert not state.is_running
            await transport.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)
            assert all(queue.started for queue in state.queues)
            for driver, runner in zip(transport.drivers, state.queues, strict=True):
                await writes_and_reads(driver, runner, line, sector)
            queues += [driver.queue for driver in transport.drivers]
        await transport.close()
        assert not state.is_running
        for queue in queues:
            queue.close()
        disk.close()

    run_async(main)


def test_a_broken_ring_asks_for_a_reset_and_gets_over_it(run_async: Run, memory: SharedMemory) -> None:
    async def main() -> None:
        disk = make_disk()
        transport = Registers(disk, memory)
        transport.write_driver_features(transport.device_features)
        await transport.write_status(DRIVER_OK)
        first = list(transport.drivers)
        first[0].queue.driver.add([(0xDEAD, 8, True), (0xBEEF, 8, False)])
        runner = transport.state.queues[0]
        assert runner.queue is not None
        runner.queue.kicked()
        while not transport.status & DeviceStatus.DEVICE_NEEDS_RESET:
            await asyncio.sleep(0)
        await transport.write_status(0)
        await transport.write_status(DRIVER_OK)
        assert not transport.status & DeviceStatus.DEVICE_NEEDS_RESET
        await writes_and_reads(transport.drivers[0], runner, transport.line, 5)
        second = list(transport.drivers)
        await transport.close()
        for driver in (*first, *second):
            driver.queue.close()
        disk.close()

    run_async(main)


def test_a_change_of_the_config_space_is_a_new_generation(run_async: Run, memory: SharedMemory) -> None:
    async def main() -> None:
        disk = make_disk()
        transport = Registers(disk, memory)
        transport.write_driver_features(transport.device_features)
        before = transport.config_generation
        writeback = 32  # the offset of that field
        assert transport.state.read_config(writeback, 1) == b"\1"
        transport.state.write_config(writeback, b"\0")
        assert transport.state.read_config(writeback, 1) == b"\0"
        assert transport.config_generation == before  # the driver knows what it wrote
        disk.config_changed()
        await transport.line.config.wait()
        assert transport.config_generation == before + 1
        await transport.close()
        disk.config_changed()  # nobody is there to be told
        disk.close()

    run_async(main)
