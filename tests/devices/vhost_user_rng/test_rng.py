"""The entropy device, driven by a front-end over a socket pair, with the real session between."""

import asyncio
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.line import Line, opened_line
from tests.programs import connected, executable
from tests.sessions import negotiated
from vhost_user_rng.device import MAX_REQUEST, Rng
from vhostd.errors import SetupError, UsageError
from vhostd.frontend import Frontend, Queue, SharedMemory, signalled
from vhostd.host import budget
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.rows import Empty

Make = Callable[..., Rng]

DATA = bytes(range(256)) * 8
LIMIT = 10.0  # seconds from SIGTERM to the end, on a busy machine


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes the device as its program does, from options; closes it after the test."""
    with ExitStack() as stack:

        def make(*options: str) -> Rng:
            device = Rng.from_options(parse(Rng, CommandLine(["rng", *options])))
            stack.callback(device.close)
            return device

        yield make


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source that is known."""
    path = tmp_path / "source"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def line() -> Iterator[Line]:
    """A source that has what the test gives it."""
    with opened_line() as line:
        yield line


@asynccontextmanager
async def started(device: Rng) -> AsyncIterator[tuple[Frontend, Queue]]:
    """A front-end whose requestq runs."""
    async with negotiated(device, size=4 << 20) as (frontend, memory):
        queue = await frontend.start(memory, size=64)
        try:
            yield frontend, queue
        finally:
            queue.close()


async def fill(queue: Queue, *sizes: int, data: bytes = b"") -> tuple[int, list[bytes]]:
    """Has a chain filled that holds `data`, then buffers of these sizes: how many bytes, and the buffers."""
    memory = queue.memory
    given = [(memory.allocate(len(data)), len(data), False)] if data else []
    rooms = [(memory.allocate(max(size, 1)), size, True) for size in sizes]
    head = queue.driver.add([*given, *rooms])
    queue.kick()
    while (used := queue.driver.used()) is None:
        if not queue.driver.arm():
            await signalled(queue.call_fd)
    assert used[0] == head
    return used[1], [memory.map.read(addr, size) for addr, size, _ in rooms]


# --- Filling --------------------------------------------------------------------------------------------


def test_fills_a_buffer_with_random_bytes(make: Make, run_async: Run) -> None:
    async def main() -> None:
        async with started(make()) as (_, queue):
            first, second = await queue.request(room=64), await queue.request(room=64)
            assert len(first) == len(second) == 64
            assert first != second
            assert bytes(64) not in (first, second)

    run_async(main)


def test_a_buffer_in_pieces_is_one_buffer(make: Make, source: Path, run_async: Run) -> None:
    async def main() -> None:
        async with started(make(f"--rng-source={source}")) as (_, queue):
            written, buffers = await fill(queue, 1, 7, 24, 0, 32)
            assert (written, b"".join(buffers)) == (64, DATA[:64])
            written, buffers = await fill(queue, 16)
            assert (written, buffers) == (16, [DATA[64:80]])

    run_async(main)


def test_a_full_ring_is_served_in_order(make: Make, source: Path, run_async: Run) -> None:
    async def main() -> None:
        async with started(make(f"--rng-source={source}")) as (_, queue):
            heads = [queue.add(room=8) for _ in range(queue.size)]
            queue.kick()
            answers = [await queue.used() for _ in heads]
            assert answers == [(head, DATA[8 * at : 8 * at + 8]) for at, head in enumerate(heads)]

    run_async(main)


def test_a_chain_without_room_is_given_back(make: Make, source: Path, run_async: Run) -> None:
    async def main() -> None:
        async with started(make(f"--rng-source={source}")) as (_, queue):
            assert await fill(queue, 0) == (0, [b""])
            assert await fill(queue, data=b"what is this") == (0, [])
            assert await fill(queue, 4) == (4, [DATA[:4]])

    run_async(main)


def test_what_the_driver_wrote_is_not_touched(make: Make, source: Path, run_async: Run) -> None:
    async def main() -> None:
        async with started(make(f"--rng-source={source}")) as (_, queue):
            assert await fill(queue, 4, data=b"stays") == (4, [DATA[:4]])

    run_async(main)


def test_of_a_huge_buffer_a_part_is_filled(make: Make, run_async: Run) -> None:
    async def main() -> None:
        async with started(make()) as (_, queue):
            written, (buffer,) = await fill(queue, 1 << 20)
            assert written == MAX_REQUEST
            assert any(buffer[MAX_REQUEST - 64 : MAX_REQUEST])
            assert not any(buffer[MAX_REQUEST:])

    run_async(main)


# --- A source of one's own ------------------------------------------------------------------------------


def test_a_source_that_never_ends(make: Make, run_async: Run) -> None:
    async def main() -> None:
        async with started(make("--rng-source=/dev/zero")) as (_, queue):
            assert await queue.request(room=4096) == bytes(4096)

    run_async(main)


def test_the_ring_stops_while_a_source_hangs(make: Make, line: Line, run_async: Run) -> None:
    """What the source gives after that is for the next start, whole and in order."""

    async def main() -> None:
        device = make(f"--rng-source={line.path}")
        for sent in (b"first", b"second"):
            async with started(device) as (frontend, queue):
                queue.add(room=64)
                queue.kick()
                await frontend.call(GET_FEATURES, Empty())
                assert await frontend.stop(queue) == 0
                assert queue.poll() is None
            line.write(sent)
            async with started(device) as (_, queue):
                assert await queue.request(room=2) + await queue.request(room=64) == sent

    run_async(main)


def test_a_request_gets_what_a_slow_source_has(make: Make, line: Line, run_async: Run) -> None:
    async def main() -> None:
        async with started(make(f"--rng-source={line.path}")) as (_, queue):
            line.write(b"a few bytes")
            assert await queue.request(room=4096) == b"a few bytes"
            queue.add(room=64)
            queue.kick()
            line.write(b"and more")
            assert (await queue.used())[1] == b"and more"

    run_async(main)


def test_of_a_source_nothing_is_read_before_a_request(make: Make, source: Path, run_async: Run) -> None:
    async def main() -> None:
        device = make(f"--rng-source={source}")
        async with started(device):
            pass
        source.write_bytes(b"later")
        async with started(device) as (_, queue):
            assert await queue.request(room=64) == b"later"

    run_async(main)


def test_the_program_answers_and_ends_while_its_source_hangs(line: Line, run_async: Run) -> None:
    command = [executable("vhost-user-rng"), f"--rng-source={line.path}"]

    async def main() -> None:
        with connected(command) as (program, sock), closing(SharedMemory(1 << 20)) as memory:
            frontend = Frontend(sock.dup())
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await frontend.start(memory)) as queue:
                queue.add(room=64)
                queue.kick()
                program.until(lambda program: program.status("Threads") == "2")
                await frontend.call(GET_FEATURES, Empty())
                assert program.stop() < LIMIT
            frontend.close()

    run_async(main)


def test_a_source_that_runs_out_ends_the_program(make: Make, source: Path, run_async: Run) -> None:
    async def exhaust() -> None:
        async with started(make(f"--rng-source={source}")) as (frontend, queue):
            assert await queue.request(room=len(DATA) - 1) == DATA[:-1]
            assert await queue.request(room=64) == DATA[-1:]
            queue.add(room=64)
            queue.kick()
            assert await frontend.channel.receive() is None

    async def main() -> None:
        with pytest.raises(SetupError, match=f"--rng-source={source} has run out"):
            await exhaust()

    run_async(main)


def test_a_source_that_cannot_be_opened(make: Make, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"--rng-source=.*: neither a file nor a device"):
        make(f"--rng-source={tmp_path}")
    with pytest.raises(SetupError, match=r"--rng-source=.*: No such file"):
        make(f"--rng-source={tmp_path / 'none'}")


# --- The limit ------------------------------------------------------------------------------------------


class Clock:
    """The device's time, which passes only while the device waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.waits: list[float] = []
        self.waiting = asyncio.Event()
        self.goes_on = True
        self.early = 0.0
        self._sleep = asyncio.sleep
        monkeypatch.setattr(budget, "time", self)
        monkeypatch.setattr(asyncio, "sleep", self.sleep)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.waits.append(seconds)
            self.now += max(seconds - self.early, 0.001)
            self.waiting.set()
            if not self.goes_on:
                await asyncio.Event().wait()
        await self._sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_gives_no_more_than_the_limit_in_a_period(
    make: Make, source: Path, clock: Clock, run_async: Run
) -> None:
    async def main() -> None:
        device = make(f"--rng-source={source}", "--max-bytes=10", "--period=2000")
        async with started(device) as (_, queue):
            assert await queue.request(room=6) == DATA[:6]
            assert await queue.request(room=6) == DATA[6:10]  # what is left
            assert await queue.request(room=100) == DATA[10:20]
            clock.now += 0.5
            assert await queue.request(room=100) == DATA[20:30]
            assert clock.waits[:2] == [2.0, 2.0]

    run_async(main)


def test_no_empty_buffer_when_a_wait_ends_early(
    make: Make, source: Path, clock: Clock, run_async: Run
) -> None:
    """As uvloop's timers may, whose clock stands while it works; an empty buffer stalls Linux for ever."""

    async def main() -> None:
        clock.early = 0.25
        device = make(f"--rng-source={source}", "--max-bytes=10", "--period=2000")
        async with started(device) as (_, queue):
            assert await queue.request(room=10) == DATA[:10]
            assert await queue.request(room=10) == DATA[10:20]
            assert await queue.request(room=10) == DATA[20:30]

    run_async(main)


def test_a_new_period_begins_without_a_wait_after_a_pause(
    make: Make, source: Path, clock: Clock, run_async: Run
) -> None:
    async def main() -> None:
        device = make(f"--rng-source={source}", "--max-bytes=10", "--period=2000")
        async with started(device) as (_, queue):
            assert await queue.request(room=6) == DATA[:6]
            clock.now += 5
            assert await queue.request(room=2) == DATA[6:8]
            assert await queue.request(room=10) == DATA[8:18]
            assert clock.waits[0] == 2.0

    run_async(main)


def test_without_a_limit_nothing_waits(make: Make, clock: Clock, run_async: Run) -> None:
    async def main() -> None:
        async with started(make()) as (_, queue):
            for _ in range(10):
                assert len(await queue.request(room=4096)) == 4096
        assert clock.waits == []

    run_async(main)


def test_the_ring_stops_while_the_limit_is_waited_for(
    make: Make, source: Path, clock: Clock, run_async: Run
) -> None:
    async def main() -> None:
        clock.goes_on = False
        device = make(f"--rng-source={source}", "--max-bytes=10", "--period=3600000")
        async with started(device) as (frontend, queue):
            assert await queue.request(room=10) == DATA[:10]
            await clock.waiting.wait()
            queue.add(room=10)
            queue.kick()
            assert await frontend.stop(queue) == 1
            assert queue.poll() is None  # the second buffer waits for the next start

    run_async(main)


def test_a_reconnect_does_not_renew_the_limit(make: Make, source: Path, clock: Clock, run_async: Run) -> None:
    async def main() -> None:
        device = make(f"--rng-source={source}", "--max-bytes=10", "--period=2000")
        async with started(device) as (_, queue):
            assert await queue.request(room=6) == DATA[:6]
        async with started(device) as (_, queue):
            assert await queue.request(room=6) == DATA[6:10]

    run_async(main)


# --- Options --------------------------------------------------------------------------------------------


def test_a_size_may_have_a_unit(make: Make, run_async: Run) -> None:
    device = make("--max-bytes=64K")

    async def main() -> None:
        await device._budget.refill()
        assert device._budget.left == 64 << 10

    run_async(main)


@pytest.mark.parametrize(
    "option", ["--max-bytes=0", "--max-bytes=-1", "--max-bytes=1.5", "--period=0", "--period=-1", "--period="]
)
def test_a_limit_that_makes_no_sense(make: Make, option: str) -> None:
    with pytest.raises(UsageError, match=option.partition("=")[0]):
        make(option)


def test_a_period_without_a_limit_makes_no_sense(make: Make) -> None:
    with pytest.raises(UsageError, match="--period needs --max-bytes"):
        make("-p", "1000")


def test_the_limit_has_the_short_names_of_other_programs(make: Make, run_async: Run) -> None:
    device = make("-m", "512", "-p1000")

    async def main() -> None:
        await device._budget.refill()
        assert device._budget.left == 512

    run_async(main)


def test_a_pipe_is_refused_as_source(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SetupError, match=f"--rng-source={pipe}: neither a file nor a device"):
        Rng.from_options(Namespace(rng_source=str(pipe), max_bytes=1, period=1))


def test_a_source_that_fails_ends_the_program(make: Make, run_async: Run) -> None:
    """Reading one's own memory at address 0 is an I/O error."""

    async def fail() -> None:
        async with started(make("--rng-source=/proc/self/mem")) as (frontend, queue):
            queue.add(room=64)
            queue.kick()
            assert await frontend.channel.receive() is None

    async def main() -> None:
        with pytest.raises(SetupError, match="--rng-source=/proc/self/mem: Input/output error"):
            await fail()

    run_async(main)
