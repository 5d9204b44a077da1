"""vhost-user-blk while its disk hangs, as one on a network file system does whose server is away.

What must go on goes on: messages, other requests, other front-ends, the end of the program. What hung and
is carried out late never undoes what came after it.

On this disk, as on others, the kernel lets one write, FALLOCATE, FSYNC, or look at the size at a time into a
file that is opened as usual; whoever comes second waits in the kernel, and nothing can end that. A disk that
is `PARALLEL` takes writes at a time, so that only the program keeps them in order.

SOON is generous, for busy machines. What was measured is printed (`pytest -rP`), for figures.
"""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from tests.blk.fuse import on_disk, why_not
from tests.blk.hangable import SIZE, Hangable, hangable, until_gone
from tests.blk.scripted import FEATURES, MEMORY
from tests.conftest import Run
from tests.programs import notified
from tests.sessions import backend_requests
from vhost_user_blk.protocol import VirtioBlkConfig
from vhostd.frontend import Frontend, Queue, SharedMemory, signalled
from vhostd.frontend.drivers.block import (
    DISCARD,
    HEADER,
    IOERR,
    OK,
    OUT,
    SECTOR,
    SEGMENT,
    WRITE_ZEROES,
    BlockDriver,
    FailedRequest,
    segments,
)
from vhostd.ring.driver import INDIRECT, NEXT, WRITE
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    FRONT_END,
    GET_CONFIG,
    GET_FEATURES,
    GET_VRING_BASE,
    ConfigSpace,
    Inflight,
    VringState,
)
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

T = TypeVar("T")
Begin = Callable[[BlockDriver], Coroutine[Any, Any, None]]

PATIENCE = 120.0  # seconds for a whole test
SOON = 10.0  # seconds in which what must not hang is done, on a busy machine
ENDS_SOON = 10.0  # seconds from SIGTERM to the end of a program that has much to do
LOOK = 1.2  # seconds: one of the program's looks at the size of the disk
LONG = 3.0  # seconds: several of the program's looks at the size of the disk
BLOCK = 4096
BLOCK_SECTORS = BLOCK // SECTOR
MUCH = 2 << 20  # bytes: more than any engine is given at a time
MEMORY_LIMIT = 64 << 10  # KiB
OLD, NEW = b"old ", b"new!"
WAITS = "waits for"  # in the log: a ring that begins nothing while requests of before it hang
ENGINES = ("io_uring", "threads")
PARALLEL = ("--parallel",)

pytestmark = pytest.mark.usefixtures("_disks")


@pytest.fixture(scope="module")
def _disks(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where nobody may mount a FUSE file system: a container without privileges, for example."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "hanging.img").touch()
    (folder / "backing.img").write_bytes(bytes(SECTOR))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        disk = (f"--control={theirs.fileno()}", folder / "hanging.img", folder / "backing.img")
        if reason := why_not(on_disk("tests.blk.hanging", *disk), [theirs.fileno()]):
            pytest.skip(reason)


@pytest.fixture
def run_async() -> Run:
    """Runs a coroutine function; on one loop, as it is the program that is tested, which has its own."""

    def run(main: Callable[[], Awaitable[None]]) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(PATIENCE):
                await main()

        asyncio.run(bounded())

    return run


# --- Guests -----------------------------------------------------------------------------------------------


class Guest(NamedTuple):
    """A guest with one disk, of one queue."""

    frontend: Frontend
    memory: SharedMemory
    queue: Queue
    driver: BlockDriver


@asynccontextmanager
async def guest(path: Path, *, area: bool = False, size: int = 128) -> AsyncIterator[Guest]:
    """A guest that boots, with an inflight area or without; each step of that is done soon."""
    with closing(await Frontend.connect(str(path))) as frontend, closing(SharedMemory(MEMORY)) as memory:
        await soon(frontend.negotiate(FEATURES, inflight=area), "to negotiate")
        await soon(frontend.share(memory), "to share memory")
        if area:
            made, fd = await soon(frontend.get_inflight(1, size), "GET_INFLIGHT_FD")
            with fd:
                await soon(frontend.set_inflight(made, fd), "SET_INFLIGHT_FD")
        queue = await soon(frontend.start(memory, 0, size), "to start the ring")
        with closing(BlockDriver([queue], lasting=True)) as driver:
            yield Guest(frontend, memory, queue, driver)


async def soon(answer: Awaitable[T], what: str, limit: float = SOON) -> T:
    """What is awaited; fails if it takes longer than it may."""
    start, result = time.monotonic(), None
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            result = [await answer]
    took = time.monotonic() - start
    print(f"{what}: {took * 1000:.1f} ms")
    assert result is not None, f"{what} took longer than {limit} s"
    return result[0]


async def answers(frontend: Frontend) -> None:
    """Fails unless messages are answered soon."""
    await soon(frontend.call(GET_FEATURES, Empty()), "GET_FEATURES")
    await soon(config(frontend), "GET_CONFIG")


async def config(frontend: Frontend) -> VirtioBlkConfig:
    return VirtioBlkConfig.unpack((await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(96)))).data)


async def hears_nothing(guest: Guest, request: asyncio.Future[Any]) -> None:
    """Fails if the request is answered, however many turns the program has."""
    for _ in range(20):
        await answers(guest.frontend)
    guest.driver.collect()
    await asyncio.sleep(0)
    assert not request.done(), "it was answered while what it had to wait for hung"


async def warm_up(driver: BlockDriver) -> None:
    """One write: the program has learnt what the file system can do, and does all others in its usual way."""
    await soon(driver.write(SIZE // SECTOR - BLOCK_SECTORS, b"warm" * (BLOCK // 4)), "the first write")


async def closed(frontend: Frontend) -> None:
    """Waits for the end of the connection."""
    while (message := await frontend.channel.receive()) is not None:
        message.close()


def data(what: bytes, size: int = BLOCK) -> bytes:
    return what * (size // len(what))


# --- 1: What hung when the front-end went -----------------------------------------------------------------


class Late(NamedTuple):
    """A request that hangs before it has come to `sector`, which the next guest writes to."""

    disk: tuple[str, ...]
    kind: str
    begin: Begin
    sector: int


async def _write(driver: BlockDriver) -> None:
    await driver.write(0, data(OLD))


async def _write_much(driver: BlockDriver) -> None:
    await driver.write(0, data(OLD, MUCH))


async def _write_zeroes(driver: BlockDriver) -> None:
    await driver.write_zeroes((0, MUCH // SECTOR))


async def _discard(driver: BlockDriver) -> None:
    await driver.discard((0, BLOCK_SECTORS), (BLOCK_SECTORS, BLOCK_SECTORS))


END_OF_MUCH = MUCH // SECTOR - BLOCK_SECTORS
LATE = {
    "write": Late(PARALLEL, "write", _write, 0),
    "long write": Late(PARALLEL, "write", _write_much, END_OF_MUCH),
    "zeroes": Late((*PARALLEL, "--no-fallocate"), "write", _write_zeroes, END_OF_MUCH),
    "discard": Late(PARALLEL, "fallocate", _discard, BLOCK_SECTORS),
}


async def leave_hanging(disk: Hangable, late: Late, *, area: bool = False) -> None:
    """A guest whose request hangs, and which goes."""
    async with guest(disk.path, area=area) as one:
        await warm_up(one.driver)
        disk.hang(late.kind, at=0)
        request = asyncio.ensure_future(late.begin(one.driver))
        await disk.held(late.kind)
        one.frontend.close()
        assert not request.done()


@pytest.mark.parametrize(("late", "area"), [*((late, False) for late in LATE), ("write", True)])
@pytest.mark.parametrize("aio", ENGINES)
def test_what_is_late_never_undoes_what_came_after_it(
    tmp_path: Path, run_async: Run, aio: str, late: str, *, area: bool
) -> None:
    """The next guest is served at once, but for its requests: those wait, and come after."""
    old, sector = LATE[late], LATE[late].sector

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=old.disk) as disk:
            await leave_hanging(disk, old, area=area)
            async with guest(disk.path, area=area) as two:
                arrived = await disk.seen("write")
                write = asyncio.ensure_future(two.driver.write(sector, data(NEW)))
                await hears_nothing(two, write)
                assert await disk.seen("write") == arrived
                disk.program.hear(WAITS)
                disk.go()
                await soon(write, "the write, once nothing hung")
                assert await two.driver.read(sector, BLOCK) == data(NEW)
            disk.program.stop()
            assert disk.content(sector * SECTOR, BLOCK) == data(NEW)

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_a_ring_that_waits_stops_at_once(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk:
            await leave_hanging(disk, LATE["write"])
            async with guest(disk.path) as two:
                write = asyncio.ensure_future(two.driver.write(0, data(NEW)))
                await hears_nothing(two, write)
                base = await soon(two.frontend.stop(two.queue), "GET_VRING_BASE of a ring that waits")
                assert base == 0
                await soon(two.frontend.start_again(two.queue, base), "to start it again")
                await hears_nothing(two, write)
                disk.go()
                await soon(write, "the write, once nothing hung")
            disk.program.stop()
            assert disk.content(0, BLOCK) == data(NEW)

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_sigterm_while_a_ring_waits(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk:
            await leave_hanging(disk, LATE["write"])
            async with guest(disk.path) as two:
                write = asyncio.ensure_future(two.driver.write(0, data(NEW)))
                await hears_nothing(two, write)
                await terminated(disk, two.frontend, "a ring waits")
            disk.go()
            await soon(disk.ends(), "the end, once nothing hung")
            assert disk.content(0, BLOCK) in (data(OLD), bytes(BLOCK))  # the new one was never begun

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_many_guests_come_and_go_while_a_request_hangs(tmp_path: Path, run_async: Run, aio: str) -> None:
    """Each of them leaves a request of its own behind that waits; nothing of theirs is carried out late."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk:
            await leave_hanging(disk, LATE["write"])
            for _ in range(4):
                async with guest(disk.path) as passer_by:
                    write = asyncio.ensure_future(passer_by.driver.write(0, data(b"gone")))
                    await hears_nothing(passer_by, write)
            async with guest(disk.path) as last:
                write = asyncio.ensure_future(last.driver.write(0, data(NEW)))
                await hears_nothing(last, write)
                disk.go()
                await soon(write, "the write, once nothing hung")
                assert await last.driver.read(0, BLOCK) == data(NEW)
            disk.program.stop()
            assert disk.content(0, BLOCK) == data(NEW)

    run_async(main)


# --- 2: What hangs when a ring breaks ---------------------------------------------------------------------


@pytest.mark.parametrize("late", LATE)
@pytest.mark.parametrize("aio", ENGINES)
def test_a_ring_that_was_broken_and_starts_again_waits_too(
    tmp_path: Path, run_async: Run, aio: str, late: str
) -> None:
    old, sector = LATE[late], LATE[late].sector

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=old.disk) as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                disk.hang(old.kind, at=0)
                request = asyncio.ensure_future(old.begin(it.driver))
                await disk.held(old.kind)
                break_ring(it.queue)
                await soon(signalled(it.queue.err_fd), "the err eventfd")
                await soon(it.frontend.stop(it.queue), "GET_VRING_BASE of a broken ring")
                queue = await soon(it.frontend.start(it.memory, 0, 128), "to start it again")
                with closing(BlockDriver([queue], lasting=True)) as driver:
                    write = asyncio.ensure_future(driver.write(sector, data(NEW)))
                    await hears_nothing(it._replace(driver=driver), write)
                    disk.go()
                    await soon(write, "the write, once nothing hung")
                    assert await driver.read(sector, BLOCK) == data(NEW)
                assert not request.done()
            disk.program.stop()
            assert disk.content(sector * SECTOR, BLOCK) == data(NEW)

    run_async(main)


def break_ring(queue: Queue) -> None:
    """Announces more chains than the ring can have."""
    queue.driver.set_avail_index((queue.driver.avail_index + queue.size + 100) % 2**16)
    os.eventfd_write(queue.kick_fd.fileno(), 1)


# --- 3: What hung is done again ---------------------------------------------------------------------------


@pytest.mark.parametrize("aio", ENGINES)
def test_what_hung_is_done_again_after_it_has_ended(tmp_path: Path, run_async: Run, aio: str) -> None:
    """The guest lives on, and its front-end comes back with the inflight area."""

    async def main() -> None:
        with (
            hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk,
            closing(SharedMemory(MEMORY)) as memory,
        ):
            with closing(await Frontend.connect(str(disk.path))) as frontend:
                await frontend.negotiate(FEATURES, inflight=True)
                await frontend.share(memory)
                area, fd = await frontend.get_inflight(1, 128)
                await frontend.set_inflight(area, fd)
                queue = await frontend.start(memory, 0, 128)
                driver = BlockDriver([queue], lasting=True)
                await warm_up(driver)
                disk.hang("write", at=0)
                write = asyncio.ensure_future(driver.write(0, data(NEW)))
                await disk.held("write")
            with fd, closing(driver):
                await resumes(disk, Guest(frontend, memory, queue, driver), (area, fd), write)
            disk.program.stop()
            assert disk.content(0, BLOCK) == data(NEW)

    run_async(main)


async def resumes(
    disk: Hangable, before: Guest, inflight: tuple[Inflight, Fd], write: asyncio.Future[None]
) -> None:
    """The second session of a guest whose write hung in the first."""
    used = before.queue.driver.used_index
    with closing(await Frontend.connect(str(disk.path))) as frontend:
        await soon(frontend.negotiate(FEATURES, resume=True, inflight=True), "to negotiate")
        await soon(frontend.share(before.memory), "to share memory")
        await frontend.set_inflight(*inflight)
        await soon(frontend.start_again(before.queue, used), "to start the ring again")
        disk.program.hear("are done again")
        arrived = await disk.seen("write")
        await hears_nothing(before._replace(frontend=frontend), write)
        assert before.queue.driver.used_index == used
        assert await disk.seen("write") == arrived
        disk.go()
        await soon(write, "the write, once nothing hung")
        assert await disk.seen("write") == arrived + 1
        assert await before.driver.read(0, BLOCK) == data(NEW)
        assert before.queue.driver.used_index == used + 2  # one for the write, one for the read


@pytest.mark.parametrize("aio", ENGINES)
def test_a_ring_stops_when_nothing_is_done_late_and_leaves_the_rest(
    tmp_path: Path, run_async: Run, aio: str
) -> None:
    """GET_VRING_BASE_INFLIGHT: what the kernel has ends, and the driver hears of it from the next ring."""

    async def main() -> None:
        with (
            hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk,
            closing(SharedMemory(MEMORY)) as memory,
            closing(await Frontend.connect(str(disk.path))) as frontend,
        ):
            await frontend.negotiate(FEATURES, inflight=True)
            await frontend.share(memory)
            area, fd = await frontend.get_inflight(1, 128)
            await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 0, 128)
            with fd, closing(BlockDriver([queue], lasting=True)) as driver:
                await warm_up(driver)
                disk.hang("write", at=0)
                writes = [
                    asyncio.ensure_future(driver.write(at * BLOCK_SECTORS, data(NEW))) for at in range(2)
                ]
                await disk.held("write")
                await soon(writes[1], "the write that does not hang")
                used = queue.driver.used_index
                stopping = asyncio.ensure_future(frontend.stop(queue))
                await asyncio.sleep(0)  # which sends it
                disk.program.hear("1 requests in flight are left")
                assert not stopping.done()
                disk.go()
                base = await soon(stopping, "the stop, once nothing hung")
                arrived = await disk.seen("write")
                assert (base, queue.driver.used_index, writes[0].done()) == (used + 1, used, False)
                await frontend.set_inflight(area, fd)
                await soon(frontend.start_again(queue, base), "to start the ring again")
                await soon(writes[0], "the write, once more")
                assert await disk.seen("write") == arrived + 1
            disk.program.stop()
            assert disk.content(0, BLOCK) == data(NEW)

    run_async(main)


# --- 4: Everything hangs, and nobody asks for anything ----------------------------------------------------


@pytest.mark.parametrize("aio", [*ENGINES, "sync"])
def test_an_idle_program_answers_while_its_disk_hangs(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            async with guest(disk.path) as it, backend_requests(it.frontend) as requests:
                await warm_up(it.driver)
                disk.hang("all")
                await disk.held("size")
                await keeps_answering(it)
                threads = disk.threads()
                for _ in range(50):
                    disk.program.send(signal.SIGHUP)
                    await answers(it.frontend)
                assert disk.threads() <= threads + 1
                os.truncate(disk.image, 2 * SIZE)
                disk.go()
                message = await soon(requests.receive(), "the news of the size", 4 * SOON)
                assert message is not None
                assert message.request == CONFIG_CHANGE_MSG.request
                message.close()
                assert (await config(it.frontend)).capacity * SECTOR == 2 * SIZE
                await soon(it.driver.write(0, data(NEW)), "a write, once nothing hung")

    run_async(main)


async def keeps_answering(it: Guest) -> None:
    """Fails unless messages are answered, and an idle ring stops and starts, for a long time."""
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        await answers(it.frontend)
        base = await soon(it.frontend.stop(it.queue), "GET_VRING_BASE of an idle ring")
        await soon(it.frontend.start_again(it.queue, base), "to start it again")


@pytest.mark.parametrize("aio", [*ENGINES, "sync"])
def test_a_guest_may_come_while_the_disk_hangs(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            disk.hang("all")
            await disk.held("size")
            async with guest(disk.path) as it:
                await answers(it.frontend)
            disk.go()
            async with guest(disk.path) as it:
                await soon(it.driver.write(0, data(NEW)), "a write, once nothing hung")

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_the_watchdog_is_content_while_the_disk_hangs(tmp_path: Path, run_async: Run, aio: str) -> None:
    """The service manager ends nobody for what the storage does."""

    async def main() -> None:
        with notified() as manager:
            env = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "500000"}
            with hangable(tmp_path, f"--aio={aio}", env=env) as disk:
                async with guest(disk.path) as it:
                    await warm_up(it.driver)
                    disk.hang("all")
                    write = asyncio.ensure_future(it.driver.write(0, data(NEW)))
                    await disk.held()
                    for _ in range(6):
                        await soon(asyncio.to_thread(manager.until, "WATCHDOG=1"), "a sign of life")
                    disk.go()
                    await soon(write, "the write, once nothing hung")

    run_async(main)


# --- 5: The end -------------------------------------------------------------------------------------------


async def terminated(disk: Hangable, frontend: Frontend, while_what: str) -> None:
    """SIGTERM: nobody can reach the program any more, and the front-end knows, soon."""
    start = time.monotonic()
    disk.program.send(signal.SIGTERM)
    await soon(closed(frontend), f"from SIGTERM while {while_what} to the end of the connection")
    until_gone(disk.path, SOON)
    took = time.monotonic() - start
    print(f"from SIGTERM while {while_what} to the end of the socket: {took * 1000:.1f} ms")
    assert took < SOON


async def _hang_at_nothing(disk: Hangable, it: Guest) -> None:
    disk.hang("size")
    await disk.held("size")


async def _hang_at_a_write(disk: Hangable, it: Guest) -> None:
    disk.hang("write")
    it.queue.add(HEADER.pack(OUT, 0, 0) + data(OLD), 1)
    it.queue.kick()
    await disk.held("write")


async def _hang_at_a_flush(disk: Hangable, it: Guest) -> None:
    disk.hang("fsync")
    flush = asyncio.ensure_future(it.driver.flush())
    await disk.held("fsync")
    assert not flush.done()


async def _hang_at_many(disk: Hangable, it: Guest) -> None:
    disk.hang("write")
    for i in range(60):
        it.queue.add(HEADER.pack(OUT, 0, i * BLOCK_SECTORS) + data(OLD), 1)
    it.queue.kick()
    await disk.held("write")


async def _hang_at_everything(disk: Hangable, it: Guest) -> None:
    """Also at the close(2) of the disk."""
    disk.hang("all")
    await disk.held("size")


HANGS = {
    "the look at the size hangs": _hang_at_nothing,
    "a write hangs": _hang_at_a_write,
    "many writes hang": _hang_at_many,
    "a flush hangs": _hang_at_a_flush,
    "everything hangs": _hang_at_everything,
}


@pytest.mark.parametrize(
    ("what", "release"),
    [
        *((what, "go") for what in HANGS),
        *((what, "abort") for what in ("a write hangs", "a flush hangs", "everything hangs")),
    ],
)
@pytest.mark.parametrize("aio", ENGINES)
def test_sigterm_while_the_disk_hangs(
    tmp_path: Path, run_async: Run, aio: str, what: str, release: str
) -> None:
    """The process ends when the kernel lets it, at the latest when the disk has let go."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=("--tell-close",)) as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                await HANGS[what](disk, it)
                await terminated(disk, it.frontend, what)
                if release == "go":
                    disk.go()
                else:
                    disk.abort()
                await soon(disk.ends(), f"from {release} to the end of the process")

    run_async(main)


@pytest.mark.parametrize("writes", [False, True], ids=["idle", "writing"])
@pytest.mark.parametrize("aio", ENGINES)
def test_sigterm_while_what_hangs_can_be_ended(
    tmp_path: Path, run_async: Run, aio: str, *, writes: bool
) -> None:
    """The kernel takes back what no disk has taken yet, and so the process ends at once, by itself."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                disk.go_deaf()
                if writes:
                    it.queue.add(HEADER.pack(OUT, 0, 0) + data(OLD), 1)
                    it.queue.kick()
                await disk.ignores()
                await terminated(disk, it.frontend, "nobody hears")
                await soon(disk.ends(), "from then to the end of the process")

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_sigterm_without_a_front_end_while_the_disk_hangs(tmp_path: Path, run_async: Run, aio: str) -> None:
    """What a guest that has gone has left behind keeps nobody."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            await leave_hanging(disk, LATE["write"])
            start = time.monotonic()
            disk.program.send(signal.SIGTERM)
            until_gone(disk.path, SOON)
            assert time.monotonic() - start < SOON
            disk.go()
            await soon(disk.ends(), "the end, once nothing hung")

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_a_front_end_that_goes_while_its_ring_stops(tmp_path: Path, run_async: Run, aio: str) -> None:
    """SPDK's issue 981: a guest shuts down, and its GET_VRING_BASE waits for a request that never ends."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            async with guest(disk.path) as one:
                await warm_up(one.driver)
                await _hang_at_a_write(disk, one)
                stopping = asyncio.ensure_future(one.frontend.stop(one.queue))
                done, _ = await asyncio.wait([stopping], timeout=0)
                assert not done
                one.frontend.channel.abort(ConnectionResetError("killed"))
                with pytest.raises(ConnectionResetError):
                    await stopping
            async with guest(disk.path) as two:
                await answers(two.frontend)
                await terminated(disk, two.frontend, "a request of another front-end hangs")
            disk.go()
            await soon(disk.ends(), "the end, once nothing hung")

    run_async(main)


# --- 6 and 7: What does not hang goes on ------------------------------------------------------------------


async def goes_on_reading(driver: BlockDriver) -> None:
    """Reads all over the disk, for so long that the program has looked at the disk's size meanwhile.

    That look may hang as well: nobody tells, for it waits in the kernel for what hangs.
    """
    end = time.monotonic() + LOOK
    places = cycle(range(BLOCK_SECTORS, SIZE // SECTOR - BLOCK_SECTORS, BLOCK_SECTORS))
    while time.monotonic() < end:
        await soon(driver.read(next(places), BLOCK), "a read")


@pytest.mark.parametrize("disk_is", [(), PARALLEL], ids=["cached", "parallel"])
@pytest.mark.parametrize("aio", ENGINES)
def test_others_go_on_while_a_flush_hangs(
    tmp_path: Path, run_async: Run, aio: str, disk_is: tuple[str, ...]
) -> None:
    """But for writes: the kernel itself lets none into a file of this kind meanwhile."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=disk_is) as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                disk.hang("fsync")
                flush = asyncio.ensure_future(it.driver.flush())
                await disk.held("fsync")
                write = asyncio.ensure_future(it.driver.write(0, data(NEW)))
                await goes_on_reading(it.driver)
                await hears_nothing(it, flush)
                disk.go()
                await soon(asyncio.gather(flush, write), "both, once nothing hung")

    run_async(main)


@pytest.mark.parametrize(
    ("cache", "disk_is"),
    [("writeback", ()), ("writethrough", PARALLEL), ("direct", ()), ("direct", PARALLEL)],
    ids=["writeback", "writethrough-parallel", "direct", "direct-parallel"],
)
@pytest.mark.parametrize("aio", ENGINES)
def test_others_go_on_while_a_write_hangs(
    tmp_path: Path, run_async: Run, aio: str, cache: str, disk_is: tuple[str, ...]
) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", f"--cache={cache}", disk=disk_is) as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                disk.hang("write", at=0)
                write = asyncio.ensure_future(it.driver.write(0, data(NEW)))
                await disk.held("write")
                await goes_on_reading(it.driver)
                await soon(it.driver.get_id(), "GET_ID")
                await hears_nothing(it, write)
                disk.go()
                await soon(write, "the write, once nothing hung")
                assert disk.content(0, BLOCK) == data(NEW)

    run_async(main)


@pytest.mark.parametrize("aio", ENGINES)
def test_others_go_on_while_reads_hang(tmp_path: Path, run_async: Run, aio: str) -> None:
    """A read that hangs keeps no write from its end, and no message from its answer."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=PARALLEL) as disk:
            async with guest(disk.path) as it:
                await warm_up(it.driver)
                disk.hang("read")
                read = asyncio.ensure_future(it.driver.read(8, BLOCK))
                await disk.held("read")
                for sector in range(80, 160, 8):
                    await soon(it.driver.write(sector, data(NEW)), "a write")
                await hears_nothing(it, read)
                disk.go()
                assert await soon(read, "the read, once nothing hung") == bytes(BLOCK)

    run_async(main)


# --- 8: Work without bound --------------------------------------------------------------------------------


@pytest.mark.parametrize("stops", [False, True], ids=["", "GET_VRING_BASE before"])
@pytest.mark.parametrize("aio", ENGINES)
def test_the_most_that_one_request_may_ask_for_keeps_nobody(
    tmp_path: Path, run_async: Run, aio: str, *, stops: bool
) -> None:
    """All that may be zeroed at once, where the file system has no way but writing zeros."""

    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", disk=("--no-fallocate",), size=2 << 30) as disk:
            async with guest(disk.path) as it:
                offered = await config(it.frontend)
                sectors = min(offered.max_write_zeroes_sectors, offered.capacity)
                ranges = [(0, sectors)] * offered.max_write_zeroes_seg
                disk.hang("write", at=0)
                it.queue.add(HEADER.pack(WRITE_ZEROES, 0, 0) + segments(ranges), 1)
                it.queue.kick()
                await disk.held("write")
                disk.go()
                if stops:
                    await it.frontend.channel.send(_get_vring_base(), ())
                start = time.monotonic()
                disk.program.send(signal.SIGTERM)
                end = await soon(disk.ends(), "from SIGTERM to the end", ENDS_SOON)
                print(f"from SIGTERM to the end: {(end - start) * 1000:.1f} ms")

    run_async(main)


def _get_vring_base() -> bytes:
    """GET_VRING_BASE, whose reply nobody waits for."""
    return FRONT_END.encode(GET_VRING_BASE.request, VringState(0, 0))


@pytest.mark.parametrize("kind", [WRITE_ZEROES, DISCARD], ids=["zeroes", "discard"])
@pytest.mark.parametrize("aio", [*ENGINES, "sync"])
def test_more_than_what_is_offered_is_refused(tmp_path: Path, run_async: Run, aio: str, kind: int) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}", size=2 << 30) as disk:
            async with guest(disk.path) as it:
                offered = await config(it.frontend)
                before = [await disk.seen(name) for name in ("write", "fallocate")]
                most = {
                    WRITE_ZEROES: (offered.max_write_zeroes_sectors, offered.max_write_zeroes_seg),
                    DISCARD: (offered.max_discard_sectors, offered.max_discard_seg),
                }
                sectors, count = most[kind]
                for ranges in ([(0, 8)] * (count + 1), [(0, 8), (0, sectors + 1)]):
                    with pytest.raises(FailedRequest) as failure:
                        await soon(it.driver.request(kind, data=segments(ranges)), "a request")
                    assert failure.value.status == IOERR
                assert [await disk.seen(name) for name in ("write", "fallocate")] == before

    run_async(main)


class Flood(NamedTuple):
    """Chains made by hand, which share all of their buffers but the header, and their status."""

    it: Guest
    size: int

    def send(self) -> None:
        """Announces them all."""
        self.it.queue.driver.publish(self.size)
        os.eventfd_write(self.it.queue.kick_fd.fileno(), 1)

    async def taken(self, program_of: Hangable, before: int) -> int:
        """Gives the program turns for all of them; the most KiB that it has had above `before`."""
        most = 0
        for _ in range(100):
            await self.it.frontend.call(GET_FEATURES, Empty())
            most = max(most, program_of.program.resident() - before)
            if most >= MEMORY_LIMIT:
                break
        print(f"resident memory has grown by {most / 1024:.1f} MiB")
        return most

    async def answered(self) -> None:
        """Waits until all have been used."""
        driver, before = self.it.queue.driver, 0
        while before < self.size:
            if driver.used() is not None:
                before += 1
            elif not driver.arm():
                await signalled(self.it.queue.call_fd)


@asynccontextmanager
async def raw_guest(path: Path, size: int) -> AsyncIterator[Guest]:
    """A guest whose queue 0 is driven by hand: its BlockDriver has nothing to do."""
    async with guest(path, size=size) as it:
        asyncio.get_running_loop().remove_reader(it.queue.call_fd.fileno())
        yield it


def scattered(memory: SharedMemory, content: bytes) -> list[int]:
    """Where these bytes are then, no two of them side by side."""
    place = memory.allocate(2 * len(content))
    memory.map.write(place, b"".join(bytes([byte, 0]) for byte in content))
    return [place + 2 * i for i in range(len(content))]


def largest_discards(it: Guest, count: int, segment_count: int) -> int:
    """Offers that many DISCARDs by way of an indirect table as long as may be; where their status goes."""
    nothing = SEGMENT.pack(0, 0, 0) * (segment_count - 1)
    content = HEADER.pack(DISCARD, 0, 0) + SEGMENT.pack(0, BLOCK_SECTORS, 0) + nothing
    entries = [(place, 1, NEXT) for place in scattered(it.memory, content)]
    room = it.memory.allocate(2 * it.queue.size)
    left = it.queue.size - len(entries)
    entries += [(room + 2 * i, 1, WRITE | (NEXT if i < left - 1 else 0)) for i in range(left)]
    table = it.memory.allocate(16 * len(entries))
    packed = b"".join(
        place.to_bytes(8, "little")
        + size.to_bytes(4, "little")
        + flags.to_bytes(2, "little")
        + ((i + 1) % len(entries)).to_bytes(2, "little")
        for i, (place, size, flags) in enumerate(entries)
    )
    it.memory.map.write(table, packed)
    for head in range(count):
        it.queue.driver.descriptor(head, table, len(packed), INDIRECT, 0)
        it.queue.driver.offer(head)
    return room + 2 * (left - 1)


@pytest.mark.parametrize("aio", ENGINES)
def test_requests_that_wait_for_a_thread_take_little_memory(tmp_path: Path, run_async: Run, aio: str) -> None:
    async def main() -> None:
        with hangable(tmp_path, f"--aio={aio}") as disk:
            async with raw_guest(disk.path, 8192) as it:
                flood = Flood(it, 600)  # of which the program reads each descriptor: that takes seconds
                status = largest_discards(it, flood.size, (await config(it.frontend)).max_discard_seg)
                it.memory.map.write(status, b"\xff")
                before = disk.program.resident()
                disk.hang("fallocate")
                flood.send()
                await disk.held("fallocate")
                assert await flood.taken(disk, before) < MEMORY_LIMIT
                disk.go()
                await soon(flood.answered(), "all of them, once nothing hung", PATIENCE)
                assert it.memory.map.read(status, 1) == bytes([OK])

    run_async(main)


def misaligned_writes(it: Guest, count: int, size: int) -> int:
    """Offers that many writes, from memory at an odd address, to `count` places; where their status goes."""
    place, status = it.memory.allocate(size + 1) + 1, it.memory.allocate(1)
    it.memory.map.write(place, data(NEW, size))
    for i in range(count):
        header = it.memory.allocate(HEADER.size)
        it.memory.map.write(header, HEADER.pack(OUT, 0, i * (size // SECTOR)))
        it.queue.driver.descriptor(3 * i, header, HEADER.size, NEXT, 3 * i + 1)
        it.queue.driver.descriptor(3 * i + 1, place, size, NEXT, 3 * i + 2)
        it.queue.driver.descriptor(3 * i + 2, status, 1, WRITE, 0)
        it.queue.driver.offer(3 * i)
    return status


@pytest.mark.parametrize("aio", ENGINES)
def test_writes_by_way_of_other_memory_take_little_of_it(tmp_path: Path, run_async: Run, aio: str) -> None:
    """The disk refuses each write once, as the kernel does where memory is not aligned, and then hangs."""
    count, size = 2000, 128 << 10

    async def main() -> None:
        image = count * size
        with hangable(
            tmp_path, f"--aio={aio}", "--cache=direct", disk=(*PARALLEL, "--particular"), size=image
        ) as disk:
            async with raw_guest(disk.path, 8192) as it:
                status = misaligned_writes(it, count, size)
                it.memory.map.write(status, b"\xff")
                flood = Flood(it, count)
                before = disk.program.resident()
                disk.hang("write")
                flood.send()
                await disk.held("write")
                assert await flood.taken(disk, before) < MEMORY_LIMIT
                disk.go()
                await soon(flood.answered(), "all of them, once nothing hung", PATIENCE)
                assert it.memory.map.read(status, 1) == bytes([OK])
            assert disk.content(image - size) == data(NEW, size)

    run_async(main)
