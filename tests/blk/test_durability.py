"""What is on the disk after vhost-user-blk was killed, or the machine it ran on lost its power.

A program that is killed leaves its writes in the host's page cache, so what a kill alone shows is that
nothing was acknowledged too early. That FLUSH asks the host to keep what was written, in whatever way, shows
on the lossy disk, which forgets everything else.
"""

import asyncio
import random
import signal
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.blk.fuse import CHECKOUT, on_disk, why_not
from tests.blk.scripted import Guest, guest
from tests.conftest import Run
from tests.programs import Program, executable, listening
from vhostd.frontend.drivers.block import (
    CONFIG_WCE,
    FEATURE_FLUSH,
    IOERR,
    SECTOR,
    BlockDriver,
    FailedRequest,
)
from vhostd.vhost_user.messages import GET_FEATURES, SET_CONFIG, ConfigSpace
from vhostd.wire.rows import Empty

SIZE = 1 << 20
BLOCK = 4096
SLOTS = SIZE // BLOCK
STAMP = struct.Struct("<QQ")  # slot, version
WRITEBACK = 32  # the offset of `writeback` in the config space
ENGINES = ("io_uring", "threads", "sync")
CACHES = ("writeback", "direct")


class Lossy:
    """A program whose disk loses what was not flushed; `stable` is what it keeps."""

    def __init__(self, program: Program, path: Path, stable: Path) -> None:
        self.program = program
        self.path = path
        self._stable = stable

    @property
    def stable(self) -> bytes:
        return self._stable.read_bytes()

    async def hears_of_sync(self) -> None:
        """Waits until the disk is asked for a sync, which it does not do yet."""
        stream = self.program.process.stdout
        assert stream is not None
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(stream.fileno(), heard.set)
        try:
            await heard.wait()
        finally:
            loop.remove_reader(stream.fileno())

    def let_sync(self) -> None:
        """Has the disk go on with the sync that it was asked for."""
        stream = self.program.process.stdin
        assert stream is not None
        stream.write(b"\n")
        stream.flush()

    def lose_power(self) -> bytes:
        """Ends program and disk at once, and returns what is left of the image."""
        self.program.send(signal.SIGKILL)
        self.program.wait()
        return self.stable


def on_lossy_disk(folder: Path, *options: str) -> list[str]:
    """The beginning of a command that has a lossy disk."""
    return on_disk("tests.blk.lossy", *options, folder / "lossy.img", folder / "stable.img")


@contextmanager
def lossy(folder: Path, *options: str, disk: str | None = None) -> Iterator[Lossy]:
    """Starts the program on such a disk, of zeros."""
    path, stable, target = folder / "disk.sock", folder / "stable.img", folder / "lossy.img"
    stable.write_bytes(bytes(SIZE))
    target.touch()
    command = [*on_lossy_disk(folder, *([disk] if disk else [])), executable("vhost-user-blk")]
    with listening(
        [*command, f"--blk-file={target}", *options],
        path,
        cwd=str(CHECKOUT),
        stderr=2,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as program:
        yield Lossy(program, path, stable)


@pytest.fixture(scope="session")
def _lossy_disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where nobody may mount a FUSE file system: a container without privileges, for example."""
    folder = tmp_path_factory.mktemp("probe")
    for name in ("lossy.img", "stable.img"):
        (folder / name).write_bytes(bytes(SIZE))
    if reason := why_not(on_lossy_disk(folder)):
        pytest.skip(reason)


class Writers:
    """Write stamps all over a disk, many at a time, and flush it again and again.

    Each block of 4 KiB is one slot, which has one version after the other.
    """

    def __init__(self, driver: BlockDriver, rng: random.Random) -> None:
        self._driver = driver
        self._rng = rng
        self.issued = [0] * SLOTS
        self.acknowledged = [0] * SLOTS
        self.flushed = [0] * SLOTS
        self.flushes = 0
        self._moved = asyncio.Event()

    async def run(self) -> None:
        """Writes and flushes until it is cancelled."""
        slots = list(range(SLOTS))
        self._rng.shuffle(slots)
        tasks = [asyncio.create_task(self._write(slots[start::40])) for start in range(40)]
        try:
            while True:
                await self._flush()
        finally:
            await self._end(tasks)

    async def until(self, flushes: int, writes: int) -> None:
        """Waits until so much has been acknowledged."""
        while self.flushes < flushes or sum(self.acknowledged) < writes:
            self._moved.clear()
            await self._moved.wait()

    async def run_into(self, end: asyncio.Task[None]) -> None:
        """Writes and flushes until `end` is done, and takes what the device has used by then."""
        running = asyncio.create_task(self.run())
        await asyncio.wait([running, end], return_when=asyncio.FIRST_COMPLETED)
        self._driver.collect()
        for _ in range(4):  # those who wait for what was collected have their turn
            await asyncio.sleep(0)
        await self._end([running])

    async def _write(self, slots: list[int]) -> None:
        while True:
            for slot in slots:
                self.issued[slot] += 1
                data = STAMP.pack(slot, self.issued[slot]) * (BLOCK // STAMP.size)
                await self._driver.write(slot * (BLOCK // SECTOR), data)
                self.acknowledged[slot] = self.issued[slot]
                self._moved.set()

    async def _flush(self) -> None:
        before = list(self.acknowledged)
        await self._driver.flush()
        self.flushed = before
        self.flushes += 1
        self._moved.set()

    async def _end(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    def check(self, image: bytes, least: list[int]) -> None:
        """Fails unless each slot has a version that was written, and is no older than `least`."""
        for slot in range(SLOTS):
            for found, version in STAMP.iter_unpack(image[slot * BLOCK : (slot + 1) * BLOCK]):
                assert found == slot or (found, version) == (0, 0), f"slot {slot} has a stamp of {found}"
                assert least[slot] <= version <= self.issued[slot], (
                    f"slot {slot} has version {version}, of {least[slot]} to {self.issued[slot]}"
                )


async def write_until_killed(program: Program, writers: Writers, rng: random.Random) -> None:
    """Kills the program in the middle of its requests."""

    async def kill() -> None:
        await writers.until(flushes=rng.randrange(2, 12), writes=rng.randrange(500))
        program.send(signal.SIGKILL)
        await asyncio.to_thread(program.wait)

    killing = asyncio.create_task(kill())
    try:
        await writers.run_into(killing)
    finally:
        killing.cancel()


@pytest.mark.parametrize("aio", ENGINES)
@pytest.mark.parametrize("cache", CACHES)
def test_what_was_acknowledged_survives_the_program(
    tmp_path: Path, run_async: Run, cache: str, aio: str
) -> None:
    rng = random.Random(f"{cache} {aio}")
    image, path = tmp_path / "disk.img", tmp_path / "disk.sock"
    command = [executable("vhost-user-blk"), f"--blk-file={image}", f"--cache={cache}", f"--aio={aio}"]

    async def main() -> None:
        image.write_bytes(bytes(SIZE))
        with listening(command, path, stderr=2) as program:
            async with guest(path, size=128) as (_, driver):
                writers = Writers(driver, rng)
                await write_until_killed(program, writers, rng)
                writers.check(image.read_bytes(), writers.acknowledged)
        path.unlink(missing_ok=True)

    for _ in range(3):
        run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ENGINES)
@pytest.mark.parametrize("cache", CACHES)
def test_what_was_flushed_survives_a_power_failure(
    tmp_path: Path, run_async: Run, cache: str, aio: str
) -> None:
    rng = random.Random(f"{cache} {aio}")

    async def main() -> None:
        with lossy(tmp_path, f"--cache={cache}", f"--aio={aio}") as disk:
            async with guest(disk.path) as (_, driver):
                writers = Writers(driver, rng)
                await write_until_killed(disk.program, writers, rng)
                writers.check(disk.stable, writers.flushed)
        disk.path.unlink(missing_ok=True)

    for _ in range(3):
        run_async(main)


@asynccontextmanager
async def lossy_guest(folder: Path, *options: str, without: int = 0) -> AsyncIterator[tuple[Lossy, Guest]]:
    """A guest on a lossy disk."""
    with lossy(folder, *options) as disk:
        async with guest(disk.path, without=without) as of_disk:
            yield disk, of_disk


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ENGINES)
@pytest.mark.parametrize("cache", CACHES)
def test_what_was_not_flushed_is_lost(tmp_path: Path, run_async: Run, cache: str, aio: str) -> None:
    """The instrument measures: without a flush nothing is kept."""

    async def main() -> None:
        async with lossy_guest(tmp_path, f"--cache={cache}", f"--aio={aio}") as (disk, (_, driver)):
            await driver.write(0, b"1" * BLOCK)
            await driver.flush()
            await driver.write(8, b"2" * BLOCK)
            assert disk.lose_power() == (b"1" * BLOCK).ljust(SIZE, b"\0")

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ENGINES)
def test_zeroes_are_flushed_too(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        async with lossy_guest(tmp_path, f"--aio={aio}") as (disk, (_, driver)):
            await driver.write(0, b"1" * 4 * BLOCK)
            await driver.write_zeroes((0, 8))
            await driver.write_zeroes((8, 8), unmap=True)
            await driver.discard((16, 8))
            await driver.flush()
            assert disk.lose_power() == (bytes(3 * BLOCK) + b"1" * BLOCK).ljust(SIZE, b"\0")

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ENGINES)
def test_write_through_needs_no_flush(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        async with lossy_guest(tmp_path, "--cache=writethrough", f"--aio={aio}") as (disk, (_, driver)):
            await asyncio.gather(*(driver.write(slot * 8, bytes([slot + 1]) * BLOCK) for slot in range(64)))
            await driver.write_zeroes((0, 8))
            kept = bytes(BLOCK) + b"".join(bytes([slot + 1]) * BLOCK for slot in range(1, 64))
            assert disk.lose_power() == kept.ljust(SIZE, b"\0")

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("cache", CACHES)
def test_a_driver_that_knows_no_flush_needs_none(tmp_path: Path, run_async: Run, cache: str) -> None:
    """virtio 1.3, 5.2.6.2: what it wrote is stable if neither FLUSH nor CONFIG_WCE is negotiated."""
    unknown = 1 << FEATURE_FLUSH | 1 << CONFIG_WCE

    async def main() -> None:
        async with lossy_guest(tmp_path, f"--cache={cache}", without=unknown) as (disk, (_, driver)):
            await driver.write(0, b"1" * BLOCK)
            assert disk.lose_power() == (b"1" * BLOCK).ljust(SIZE, b"\0")

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("cache", CACHES)
def test_the_driver_may_turn_the_cache_off(tmp_path: Path, run_async: Run, cache: str) -> None:
    """virtio 1.3, 5.2.6.2: what was written while `writeback` was 0 is stable."""

    async def main() -> None:
        async with lossy_guest(tmp_path, f"--cache={cache}") as (disk, (frontend, driver)):
            assert (await frontend.call(GET_FEATURES, Empty())).value >> CONFIG_WCE & 1
            await driver.write(0, b"1" * BLOCK)
            await frontend.call(SET_CONFIG, ConfigSpace(WRITEBACK, b"\0"))
            await driver.write(8, b"2" * BLOCK)
            assert disk.lose_power()[BLOCK : 2 * BLOCK] == b"2" * BLOCK

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_a_flush_ends_when_the_disk_has_it(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with lossy(tmp_path, f"--aio={aio}", disk="--ask") as disk:
            async with guest(disk.path) as (frontend, driver):
                await driver.write(0, b"1" * BLOCK)
                flush = asyncio.ensure_future(driver.flush())
                await disk.hears_of_sync()
                await frontend.call(GET_FEATURES, Empty())  # a turn of the program's, which is not stuck
                driver.collect()
                await asyncio.sleep(0)
                assert not flush.done()
                disk.let_sync()
                await flush
                assert disk.lose_power() == (b"1" * BLOCK).ljust(SIZE, b"\0")

    run_async(main)


@pytest.mark.usefixtures("_lossy_disks")
@pytest.mark.parametrize("aio", ENGINES)
def test_a_flush_that_fails_says_so(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with lossy(tmp_path, f"--aio={aio}", disk="--fail") as disk:
            async with guest(disk.path) as (_, driver):
                await driver.write(0, b"1" * BLOCK)
                with pytest.raises(FailedRequest) as failure:
                    await driver.flush()
                assert failure.value.status == IOERR
                assert await driver.read(0, BLOCK) == b"1" * BLOCK

    run_async(main)
