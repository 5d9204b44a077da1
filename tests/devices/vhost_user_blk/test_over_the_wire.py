"""The installed program between a scripted front-end and a real file."""

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, Run
from tests.devices.vhost_user_blk.guest import (
    SERIAL,
)
from tests.programs import Program, connected, executable, is_quick, listening
from tests.sessions import backend_requests
from tests.storage.images import (
    ENGINES,
    noise,
)
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.block import (
    CONFIG_WCE,
    FEATURE_DISCARD,
    FEATURE_FLUSH,
    FEATURE_WRITE_ZEROES,
    FLUSH,
    HEADER,
    IN,
    IOERR,
    MQ,
    OUT,
    RO,
    SECTOR,
    UNSUPP,
    BlockDriver,
    FailedRequest,
    read_config,
)
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    GET_QUEUE_NUM,
    SET_CONFIG,
    SET_VRING_KICK,
    ConfigSpace,
    VringFd,
)
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

SIZE = 4 << 20
PAGE = 4096
QUEUES = 4
WAYS = [*((aio, "writeback") for aio in ENGINES), ("io_uring", "writethrough"), ("io_uring", "direct")]
EXIT_LIMIT = 0.1  # seconds from SIGTERM to the end, on an idle machine, of a program that has nothing to do
LOADED_EXIT_LIMIT = 0.25  # of one that has very much to do
PROGRAM = executable("vhost-user-blk")


@dataclass
class Machine:
    """A program, and a guest with its hands on it."""

    program: Program
    frontend: Frontend
    memory: SharedMemory
    driver: BlockDriver


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk.img"
    file.write_bytes(noise(SIZE))
    return file


@pytest.fixture
def run_async() -> Run:
    """Runs a coroutine function; on one loop, as it is the program that is tested, which has its own."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE):
                await main()

        asyncio.run(bounded())

    return run


def command(*options: str) -> list[str]:
    return [PROGRAM, "--log-level=warning", *options]


@asynccontextmanager
async def machine(*options: str, queues: int = QUEUES, size: int = 128) -> AsyncIterator[Machine]:
    """A guest that has started its driver."""
    with ExitStack() as stack:
        arguments = command(f"--num-queues={QUEUES}", *options)
        program, sock = stack.enter_context(connected(arguments))
        frontend = stack.enter_context(closing(Frontend(sock)))
        async with driven(frontend, queues, size) as (memory, driver):
            yield Machine(program, frontend, memory, driver)


@asynccontextmanager
async def driven(
    frontend: Frontend, queues: int = 1, size: int = 128
) -> AsyncIterator[tuple[SharedMemory, BlockDriver]]:
    """A driver of what the front-end is connected to."""
    with closing(SharedMemory(16 << 20)) as memory:
        await frontend.negotiate()
        await frontend.share(memory)
        with closing(
            await BlockDriver.start(frontend, memory, queues=queues, size=size, lasting=True)
        ) as driver:
            yield memory, driver


def open_fds(program: Program) -> int:
    """How many; `Program.fds` may not be asked while they are being closed."""
    return len(os.listdir(program.proc / "fd"))


def end(program: Program) -> float:
    """Ends it with SIGTERM; the seconds until it was gone, to the millisecond."""
    with Fd(os.pidfd_open(program.pid)) as gone:
        start = time.monotonic()
        program.send(signal.SIGTERM)
        select.select([gone.fileno()], [], [], PATIENCE)
        took = time.monotonic() - start
    assert program.wait() == 0
    return took


async def capacity(frontend: Frontend) -> int:
    """The bytes that a driver is told of."""
    return (await read_config(frontend)).capacity * SECTOR


def has(frontend: Frontend, *bits: int) -> list[bool]:
    return [bool(frontend.features >> bit & 1) for bit in bits]


# --- Requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aio", "cache"), WAYS)
def test_every_request_on_several_queues(run_async: Run, path: Path, aio: str, cache: str) -> None:
    async def main() -> None:
        async with machine(
            f"--blk-file={path}", f"--aio={aio}", f"--cache={cache}", f"--serial={SERIAL}"
        ) as guest:
            assert all(
                has(guest.frontend, FEATURE_FLUSH, CONFIG_WCE, MQ, FEATURE_DISCARD, FEATURE_WRITE_ZEROES)
            )
            assert has(guest.frontend, RO) == [False]
            assert (await guest.frontend.call(GET_QUEUE_NUM, Empty())).value == QUEUES
            assert await capacity(guest.frontend) == SIZE
            driver, places = guest.driver, range(0, SIZE // SECTOR, 16)
            assert await driver.get_id() == SERIAL
            await asyncio.gather(*(driver.write(place, noise(PAGE, place)) for place in places))
            await asyncio.gather(*(driver.flush() for _ in range(8)))
            await driver.discard((16, 8), (48, 8))
            await driver.write_zeroes((32, 8))
            await driver.write_zeroes((64, 8), unmap=True)
            wanted = bytearray(noise(SIZE))
            for place in places:
                data = bytes(PAGE) if place in (16, 32, 48, 64) else noise(PAGE, place)
                wanted[place * SECTOR : place * SECTOR + PAGE] = data
            read = await asyncio.gather(*(driver.read(place, 2 * PAGE) for place in places))
            assert b"".join(read) == wanted
            assert path.read_bytes() == wanted
            for request, status in (
                (driver.read(SIZE // SECTOR, SECTOR), IOERR),
                (driver.request(99), UNSUPP),
            ):
                with pytest.raises(FailedRequest) as raised:
                    await request
                assert raised.value.status == status
            guest.frontend.close()
            assert guest.program.ends()[0] == 0

    run_async(main)


def test_memory_as_a_disk(run_async: Run) -> None:
    async def main() -> None:
        async with machine("--ram=64M") as guest:
            assert await capacity(guest.frontend) == 64 << 20
            assert await guest.driver.read(0, PAGE) == bytes(PAGE)
            await guest.driver.write((64 << 11) - 8, noise(PAGE))
            await guest.driver.flush()
            assert await guest.driver.read((64 << 11) - 8, PAGE) == noise(PAGE)

    run_async(main)


def test_a_read_only_disk(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}", "--read-only") as guest:
            assert has(guest.frontend, RO, FEATURE_DISCARD, FEATURE_WRITE_ZEROES) == [True, False, False]
            assert await guest.driver.read(0, PAGE) == noise(SIZE)[:PAGE]
            with pytest.raises(FailedRequest):
                await guest.driver.write(0, bytes(PAGE))
            await guest.driver.flush()
            assert path.read_bytes() == noise(SIZE)

    run_async(main)


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_what_is_quick_overtakes_what_is_not(run_async: Run, path: Path, aio: str) -> None:
    """A flush takes until the disk has all; what is in the page cache is read meanwhile."""

    async def main() -> None:
        async with machine(f"--blk-file={path}", f"--aio={aio}", queues=1) as guest:
            queue = await guest.frontend.start(guest.memory, 1)
            path.write_bytes(noise(SIZE, 1))
            flush = queue.add(HEADER.pack(FLUSH, 0, 0), 1)
            read = queue.add(HEADER.pack(IN, 0, 8), PAGE + 1)
            queue.kick()
            assert await queue.used() == (read, noise(SIZE, 1)[PAGE : 2 * PAGE] + b"\0")
            assert await queue.used() == (flush, b"\0")
            queue.close()

    run_async(main)


def test_a_driver_that_breaks_a_ring_breaks_that_one_only(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}", queues=2) as guest:
            broken = await guest.frontend.start(guest.memory, 2)
            whole = await guest.frontend.start(guest.memory, 3)
            broken.driver.descriptor(0, 0, 16, 1, 0xFFFF)  # the next is beyond the table
            broken.driver.offer(0)
            broken.driver.publish()
            os.eventfd_write(broken.kick_fd.fileno(), 1)
            guest.program.hear("vring 2 is broken")
            answer = await whole.request(HEADER.pack(IN, 0, 8), PAGE + 1)
            assert answer == noise(SIZE)[PAGE : 2 * PAGE] + b"\0"
            assert await guest.driver.read(0, PAGE) == noise(SIZE)[:PAGE]
            broken.close()
            whole.close()

    run_async(main)


def test_a_hostile_guest_cannot_flood_the_log(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}") as guest:
            for _ in range(200):
                with pytest.raises(FailedRequest):
                    await guest.driver.read(SIZE // SECTOR, SECTOR)
            guest.frontend.close()
            status, lines = guest.program.ends()
            assert status == 0
            assert 0 < len(lines) <= 25
            assert all(line.startswith("vhost-user-blk: WARNING: vring ") for line in lines)

    run_async(main)


def test_a_memory_table_that_is_refused_changes_nothing(run_async: Run, path: Path) -> None:
    """The first ring would break where the table puts it, but the second has no place there."""

    async def main() -> None:
        with ExitStack() as stack:
            _, sock = stack.enter_context(connected(command(f"--blk-file={path}")))
            frontend = stack.enter_context(closing(Frontend(sock)))
            await frontend.negotiate()
            places: list[dict[str, int]] = [
                {},
                {},
                {"guest_addr": 0x2000_0000, "user_addr": 0x7F10_0000_0000},
            ]
            other, *memories = [
                stack.enter_context(closing(SharedMemory(1 << 22, **place))) for place in places
            ]
            await frontend.share(*memories)
            queues = [await frontend.start(memory, i, 64) for i, memory in enumerate(memories)]
            drivers = [stack.enter_context(closing(BlockDriver([queue]))) for queue in queues]
            for driver in drivers:
                await driver.read(0, SECTOR)
            other.map.write(queues[0].driver.avail_addr + 2, (5000).to_bytes(2, "little"))
            with pytest.raises(RefusedRequest):
                await frontend.share(other)
            for driver in drivers:
                assert await driver.read(8, SECTOR) == noise(SIZE)[8 * SECTOR : 9 * SECTOR]

    run_async(main)


# --- Stops and ends -------------------------------------------------------------------------------------


@pytest.mark.parametrize("aio", ENGINES)
def test_a_queue_that_stops_with_requests_in_flight_goes_on_where_it_was(
    run_async: Run, path: Path, aio: str
) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}", f"--aio={aio}", "--cache=writethrough", queues=1) as guest:
            queue = await guest.frontend.start(guest.memory, 1)
            for i in range(20):
                queue.add(HEADER.pack(OUT, 0, i) + noise(SECTOR, i), 1)
            queue.kick()
            base = await guest.frontend.stop(queue)
            done = [queue.poll() for _ in range(base)]
            assert all(each is not None and each[1] == b"\0" for each in done)
            assert queue.poll() is None
            await guest.frontend.set_up(queue, base)
            await guest.frontend.call(SET_VRING_KICK, VringFd(1), queue.kick_fd)
            for _ in range(20 - base):
                assert (await queue.used())[1] == b"\0"
            assert path.read_bytes()[: 20 * SECTOR] == b"".join(noise(SECTOR, i) for i in range(20))
            queue.close()

    run_async(main)


@pytest.mark.parametrize(("aio", "cache"), WAYS)
def test_sigterm_under_load(run_async: Run, path: Path, aio: str, cache: str) -> None:
    """The program ends with status 0, at once, and what it has acknowledged is in the file."""
    took = []

    async def main() -> None:
        async with machine(f"--blk-file={path}", f"--aio={aio}", f"--cache={cache}") as guest:
            acknowledged: set[int] = set()
            enough = asyncio.Event()

            async def write(worker: int) -> None:
                for place in range(worker * 16, SIZE // SECTOR, 16 * 16):
                    await guest.driver.write(place, noise(PAGE, place))
                    acknowledged.add(place)
                    if not worker % 4:
                        await guest.driver.flush()
                    if len(acknowledged) > 40:
                        enough.set()

            workers = [asyncio.create_task(write(worker)) for worker in range(16)]
            await enough.wait()
            took.append(end(guest.program))
            guest.driver.collect()
            for worker in workers:
                worker.cancel()
            await asyncio.wait(workers)
            content = path.read_bytes()
            for place in acknowledged:
                assert content[place * SECTOR :][:PAGE] == noise(PAGE, place)

    def measure() -> float:
        path.write_bytes(noise(SIZE))
        run_async(main)
        return took.pop()

    assert is_quick(LOADED_EXIT_LIMIT, measure)


@pytest.mark.parametrize("aio", ["io_uring", "threads"])
def test_sigterm_with_very_many_flushes_under_way(run_async: Run, path: Path, aio: str) -> None:
    took = []

    async def main() -> None:
        async with machine(f"--blk-file={path}", f"--aio={aio}", "--num-queues=8") as guest:
            queues = [await guest.frontend.start(guest.memory, 4 + i, 1024) for i in range(4)]
            for queue in queues:
                for i in range(256):
                    queue.add(HEADER.pack(OUT, 0, i) + noise(SECTOR, i), 1)
                    queue.add(HEADER.pack(FLUSH, 0, 0), 1)
                queue.kick()
            await queues[0].used()
            took.append(end(guest.program))
            for queue in queues:
                queue.close()

    def measure() -> float:
        run_async(main)
        return took.pop()

    assert is_quick(LOADED_EXIT_LIMIT, measure)


def test_front_ends_come_and_go(run_async: Run, path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        sock = tmp_path / "sock"
        with listening(command(f"--blk-file={path}", "--cache=writethrough"), sock) as program:
            for i in range(4):
                with closing(await Frontend.connect(str(sock))) as frontend:
                    async with driven(frontend) as (_, driver):
                        if i:
                            assert await driver.read(8 * i - 8, PAGE) == noise(PAGE, i)
                        await frontend.call(SET_CONFIG, ConfigSpace(32, b"\1"))
                        await driver.write(8 * i, noise(PAGE, i + 1))
                program.until(lambda it: not any("guest-memory" in line for line in it.mappings()))
                if not i:
                    held = open_fds(program)
            with closing(await Frontend.connect(str(sock))) as frontend:
                async with driven(frontend) as (_, driver):
                    space = await read_config(frontend)
                    assert space.writeback == 0, "a new front-end, a new start"
                    await driver.flush()
            program.until(lambda it: open_fds(it) <= held)
            program.stop()
        assert path.read_bytes()[: 4 * PAGE] == b"".join(noise(PAGE, i + 1) for i in range(4))

    run_async(main)


def test_a_front_end_that_goes_under_load(run_async: Run, path: Path, tmp_path: Path) -> None:
    """Its requests are completed, or not; the next one is served either way."""
    took = []

    async def main() -> None:
        sock = tmp_path / "sock"
        with listening(command(f"--blk-file={path}"), sock) as program:
            for _ in range(3):
                frontend = await Frontend.connect(str(sock))
                async with driven(frontend) as (_, driver):
                    work = [asyncio.create_task(driver.write(8 * i, noise(PAGE, i))) for i in range(60)]
                    work += [asyncio.create_task(driver.flush()) for i in range(60)]
                    await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                    frontend.close()
                await asyncio.wait(work)
            with closing(await Frontend.connect(str(sock))) as frontend:
                async with driven(frontend) as (_, driver):
                    await driver.write(0, noise(PAGE, 77))
                    assert await driver.read(0, PAGE) == noise(PAGE, 77)
            took.append(end(program))

    def measure() -> float:
        run_async(main)
        return took.pop()

    assert is_quick(EXIT_LIMIT, measure)


# --- The image ------------------------------------------------------------------------------------------


def test_growth_at_sighup(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}") as guest, backend_requests(guest.frontend) as requests:
            await guest.driver.flush()  # it serves: the signal has its handler
            os.truncate(path, 2 * SIZE)
            guest.program.send(signal.SIGHUP)
            message = await requests.receive()
            assert message is not None
            assert message.request == CONFIG_CHANGE_MSG.request
            assert await capacity(guest.frontend) == 2 * SIZE
            await guest.driver.write(2 * SIZE // SECTOR - 8, noise(PAGE, 1))
            assert path.read_bytes()[-PAGE:] == noise(PAGE, 1)

    run_async(main)


def test_growth_is_noticed_without_a_word(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with machine(f"--blk-file={path}") as guest, backend_requests(guest.frontend) as requests:
            os.truncate(path, SIZE // 2)
            message = await requests.receive()
            assert message is not None
            assert await capacity(guest.frontend) == SIZE // 2

    run_async(main)


@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        ((), (), ""),
        (
            (),
            ("--read-only",),
            ", and writes to it: --share-rw lets both, if their guests know of each other",
        ),
        (("--read-only",), (), ", and lets nobody else write: --read-only goes with that"),
        (("--cache=direct",), (), ""),
    ],
)
def test_a_second_program_on_the_same_image(
    path: Path, tmp_path: Path, first: Sequence[str], second: Sequence[str], advice: str
) -> None:
    image = f"--blk-file={path}"
    with listening(command(image, *first), tmp_path / "first") as holder:
        with Program(command(image, *second, f"--socket-path={tmp_path / 'second'}")) as program:
            line = f"vhost-user-blk: error: {image}: another program has it in use{advice}"
            assert program.ends() == (1, [line])
        assert holder.process.poll() is None
        assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ((), 2, "one of the arguments --blk-file --ram is required"),
        (("--ram=1M", "--blk-file=x"), 2, "argument --blk-file: not allowed with argument --ram"),
        (("--blk-file=/missing",), 1, "--blk-file=/missing: No such file or directory"),
        (("--blk-file=/dev/zero",), 1, "--blk-file=/dev/zero: neither a file nor a block device"),
        (("--ram=1M", "--cache=direct"), 2, "--cache=direct makes no sense with --ram: it is for --blk-file"),
        (("--ram=1M", "--num-queues=0"), 2, "argument --num-queues: '0' is not a number from 1 to 256"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, options: Sequence[str], status: int, text: str) -> None:
    with Program(command(*options, f"--socket-path={tmp_path / 'sock'}")) as program:
        assert program.ends() == (status, [f"vhost-user-blk: error: {text}"])


def test_two_readers_of_one_image(path: Path, tmp_path: Path) -> None:
    image = (f"--blk-file={path}", "--read-only")
    with (
        listening(command(*image), tmp_path / "a") as one,
        listening(command(*image), tmp_path / "b") as other,
    ):
        end(one)
        end(other)
