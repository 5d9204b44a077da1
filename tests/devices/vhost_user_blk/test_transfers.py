"""Reads and writes that Python does not see, and what their queue does around them."""

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from tests.devices.vhost_user_blk.guest import (
    BUFFERS,
    GUEST,
    SEAM,
    SERIAL,
    SIZE,
    Answer,
    Buffer,
    Clock,
    Guest,
    disk,
    make_memory,
    memory_to_cut,
)
from tests.ring.machine import device_half, memfd
from tests.storage.images import (
    ENGINES,
    noise,
    replaced,
)
from vhostd import Chain, MemoryLost
from vhostd.errors import BadRing
from vhostd.frontend.drivers.block import FLUSH, GET_ID, HEADER, IN, IOERR, OK, OUT, SECTOR, UNSUPP
from vhostd.program.metrics.meter import Meter, MeteredVirtqueue
from vhostd.ring import GuestMemory, Region, Ring, WriteLog
from vhostd.ring.driver import SplitDriver
from vhostd.ring.inflight_split import SplitInflight
from vhostd.storage.engine import ThreadEngine
from vhostd.virtio.virtqueue import POP_BURST, Virtqueue
from vhostd.wire.fds import Fd

PAGE = 4096


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def guest(engine: str, tmp_path: Path) -> Iterator[Guest]:
    """A guest whose disk a handler serves."""
    with disk(tmp_path, engine, handled=True) as guest:
        yield guest


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Guest]:
    """One with a disk in memory, all of whose reads and writes are done at once."""
    with disk(None, handled=True) as guest:
        yield guest


def offer(guest: Guest, kind: int, sector: int = 0, *, queue: int = 0) -> Buffer:
    """A request for a sector, of which the device is not told yet; all use the same memory."""
    header, data, status = SEAM - 0x4000 + kind * HEADER.size, SEAM - 0x2000, SEAM - 0x1000
    guest.memory.write(header, HEADER.pack(kind, 0, sector))
    pieces = {IN: ([], [(data, SECTOR)]), OUT: ([(data, SECTOR)], [])}
    readable, writable = pieces.get(kind, ([], []))
    return guest.offer_memory(
        [(header, HEADER.size), *readable], [*writable, (status, 1)], queue, start=False
    )


# --- What the handler sees ------------------------------------------------------------------------------


def test_python_sees_no_reads_and_writes(guest: Guest) -> None:
    guest.do(OUT, 0, noise(PAGE, 1))  # where the host may find that it cannot do it without waiting
    guest.left.clear()
    guest.do(OUT, 8, noise(PAGE, 1))
    if isinstance(guest.requests.engine, ThreadEngine):
        guest.left.clear()  # a write that the host may keep waiting is for a thread
    assert guest.do(IN, 8, room=PAGE) == noise(PAGE, 1)
    assert guest.ask(IN, 3) == Answer(OK, b"", 1)
    assert not guest.left


def test_it_sees_all_else(guest: Guest) -> None:
    answers = [
        guest.ask(GET_ID, room=20),
        guest.ask(FLUSH),
        guest.ask(99),
        guest.ask(IN, SIZE // SECTOR, room=SECTOR),
        guest.exchange(HEADER.pack(IN, 0, 1), SECTOR + 1, [7]),
        guest.exchange(HEADER.pack(OUT, 0, 1), 0),
    ]
    assert len(guest.left) == len(answers)
    assert [answer.status for answer in answers] == [OK, OK, UNSUPP, IOERR, OK, None]
    assert answers[0].data == SERIAL.encode()
    assert answers[4].data == noise(SIZE)[SECTOR : 2 * SECTOR]


@pytest.mark.parametrize("cache", ["direct", "writethrough"])
def test_only_an_io_uring_is_asked_without_python(tmp_path: Path, engine: str, cache: str) -> None:
    with disk(tmp_path, engine, cache, handled=True) as guest:
        guest.do(OUT, 0, noise(PAGE, 1))
        assert guest.contents()[:PAGE] == noise(PAGE, 1)
        assert bool(guest.left) == (engine != "io_uring")


def test_what_the_host_does_not_do_wholly_is_gone_on_with(tmp_path: Path, engine: str) -> None:
    """A direct transfer to memory that is not aligned is refused, and bounced in Python."""
    with disk(tmp_path, engine, "direct", handled=True) as guest:
        guest.do(OUT, 8, noise(3 * PAGE, 1), shift=1)
        assert guest.do(IN, 8, room=3 * PAGE, shift=3) == noise(3 * PAGE, 1)


def test_an_error_of_the_host(tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    with disk(tmp_path, engine, handled=True) as guest:
        with replaced(guest.image.fd, "/dev/full"):
            assert guest.ask(OUT, 3, bytes(SECTOR)).status == IOERR
        with replaced(guest.image.fd, "/proc/self/mem", os.O_RDONLY):
            assert guest.ask(IN, 3, room=SECTOR).status == IOERR
    reasons = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert reasons == ["No space left on device", "Input/output error"]


def test_what_the_shortcut_leaves_comes_in_order(memory: Guest) -> None:
    kinds = [IN, FLUSH, IN, OUT, GET_ID, IN, 99]
    buffers = [offer(memory, kind) for kind in kinds]
    memory.start_all()
    memory.wait(*buffers)
    assert memory.left == [buffers[i].head for i in (1, 4, 6)]
    assert memory.order == [buffer.head for buffer in buffers]


def test_a_read_only_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with disk(tmp_path, read_only=True, handled=True) as guest:
        assert guest.do(IN, 0, room=PAGE) == noise(SIZE)[:PAGE]
        assert guest.ask(OUT, 0, bytes(SECTOR)).status == IOERR
        assert len(guest.left) == 1


def test_what_takes_long_keeps_nobody_waiting() -> None:
    """A large transfer is left to the engine, also if memory is all it needs."""
    with disk(None, size=1 << 20, handled=True) as guest:
        guest.do(IN, 0, room=1 << 18)
        guest.do(OUT, 0, bytes(1 << 18))
        assert not guest.left
        guest.do(IN, 0, room=(1 << 18) + SECTOR)
        guest.do(OUT, 0, bytes((1 << 18) + SECTOR))
        assert len(guest.left) == 2


def test_a_step_of_the_engine_is_the_most_that_is_begun_without_python(tmp_path: Path) -> None:
    with disk(tmp_path, "io_uring", "direct", size=2 << 20, handled=True) as guest:
        assert guest.do(IN, 0, room=1 << 20) == noise(2 << 20)[: 1 << 20]
        assert not guest.left
        assert guest.do(IN, 0, room=(1 << 20) + SECTOR) == noise(2 << 20)[: (1 << 20) + SECTOR]
        assert guest.left


def test_an_image_that_has_become_shorter(tmp_path: Path) -> None:
    """The io_uring reads a part, and nothing behind that."""
    with disk(tmp_path, "io_uring", "direct", handled=True) as guest:
        os.truncate(guest.image.path, SIZE // 2)
        answer = guest.ask(IN, 0, room=SIZE)
        assert (answer.status, answer.data[: SIZE // 2]) == (IOERR, noise(SIZE)[: SIZE // 2])


def test_a_header_is_what_the_device_may_read(memory: Guest) -> None:
    """Not what stands where it may write."""
    memory.memory.write(BUFFERS, HEADER.pack(IN, 0, 0))
    memory.wait(memory.offer_memory([], [(BUFFERS, SECTOR + 1)]))
    assert memory.memory.read(BUFFERS, SECTOR + 1)[-1] == IOERR


@pytest.mark.parametrize(("count", "interrupts"), [(1, 1), (2, 2), (3, 2), (4, 3), (40, 9)])
def test_the_driver_is_told_at_once_and_then_more_rarely(memory: Guest, count: int, interrupts: int) -> None:
    told: list[int] = []

    async def main() -> None:
        queue = memory.queues[0]
        queue._interrupt = lambda: told.append(queue.ring.base)
        for _ in range(2):  # each kick begins anew
            told.clear()
            for _ in range(count):
                offer(memory, IN)
            queue.kicked()
            while memory._drivers[0].used() is not None:
                pass

    memory.run(main)
    assert len(told) == interrupts
    assert told[-1] == 2 * count


def test_a_queue_that_counts_sees_each(tmp_path: Path) -> None:
    async def main() -> Meter:
        meter = Meter()
        ring = device_half(driver, guest.memory, features=0)
        queue = MeteredVirtqueue(meter, 0, ring, lambda: None)
        queue.use_shortcut(guest.requests.shortcut)
        queue.enable(on=True)

        async def handle() -> None:
            async for chain in queue:
                guest.requests.start(queue, chain)

        handling = asyncio.create_task(handle())
        await asyncio.sleep(0)
        queue.kicked()
        queue.stop()
        await queue.quiesce()
        await handling
        return meter

    with disk(tmp_path, "io_uring", "direct") as guest:
        driver = SplitDriver(guest.memory, SEAM, 256, features=0)
        for i, kind in enumerate((IN, IN, FLUSH, IN)):
            header = GUEST + 0x30_0000 + i * HEADER.size
            guest.memory.write(header, HEADER.pack(kind, 0, 8 * i))
            room = PAGE + 1 if kind == IN else 1
            driver.add([(header, HEADER.size, False), (BUFFERS + i * 2 * PAGE, room, True)])
        meter = guest.run(main)
        assert sum(meter.seconds.counts) == 4
        assert meter.written == 3 * PAGE + 4
        assert guest.memory.read(BUFFERS, PAGE + 1) == noise(SIZE)[:PAGE] + b"\0"


def test_no_chain_is_no_chain(memory: Guest) -> None:
    with pytest.raises(TypeError):
        memory.requests.shortcut.take(memory.queues[0], None)  # type: ignore[arg-type]


# --- Turns ----------------------------------------------------------------------------------------------


def test_the_event_loop_gets_a_turn_under_load(memory: Guest) -> None:
    """The driver fills the ring in each turn."""
    driver, queue = memory._drivers[0], memory.queues[0]

    def fill() -> None:
        while driver.used() is not None:
            pass
        for _ in range(driver.free // 3):
            offer(memory, IN)

    async def main() -> list[int]:
        served = []
        fill()
        queue.kicked()
        for _ in range(20):
            before = queue.ring.base
            fill()
            await asyncio.sleep(0)
            served.append(queue.ring.base - before)
        return served

    served = memory.run(main)
    assert max(served) <= POP_BURST
    assert sum(served) > 5 * POP_BURST, "and no kick was needed"
    assert not memory.left


def test_many_at_a_time_are_all_served(memory: Guest) -> None:
    buffers = [offer(memory, IN) for _ in range(80)]
    memory.start_all()
    memory.wait(*buffers)
    assert memory.order == [buffer.head for buffer in buffers]


def test_more_than_the_io_uring_takes(tmp_path: Path) -> None:
    with disk(tmp_path, "io_uring", "writethrough", queues=8, queue_size=1024, handled=True) as guest:
        buffers = [offer(guest, OUT, queue=i % 8) for i in range(1100)]
        guest.start_all()
        assert guest.wait(*buffers) == [1] * len(buffers)


# --- Stops and failures ---------------------------------------------------------------------------------


async def stopped(queue: Virtqueue) -> None:
    queue.stop()
    await queue.quiesce()


def test_a_stop_with_a_chain_that_the_handler_has_not_seen_yet(memory: Guest) -> None:
    buffer = offer(memory, GET_ID)

    async def main() -> None:
        memory.queues[0].kicked()
        assert not memory.left
        await stopped(memory.queues[0])

    memory.run(main)
    memory.wait(buffer)
    assert memory.left == [buffer.head]


def test_a_stop_with_requests_in_the_kernel(tmp_path: Path) -> None:
    with disk(tmp_path, "io_uring", "direct", handled=True) as guest:
        buffers = [guest.begin(IN, 8 * i, room=PAGE) for i in range(8)]
        guest.run(partial(stopped, guest.queues[0]))
        assert [answer.data for answer in guest.finish(*buffers)] == [
            noise(SIZE)[PAGE * i : PAGE * (i + 1)] for i in range(8)
        ]


def test_nothing_is_served_while_the_queue_is_disabled(memory: Guest) -> None:
    async def enable(*, on: bool) -> None:
        memory.queues[0].enable(on=on)

    memory.run(partial(enable, on=False))
    buffer = offer(memory, IN)
    memory.start_all()
    assert memory._drivers[0].used() is None
    memory.run(partial(enable, on=True))
    memory.wait(buffer)


def test_a_ring_that_breaks_while_the_handler_sleeps(memory: Guest) -> None:
    memory.do(IN, 0, room=SECTOR)
    memory._drivers[0].set_avail_index(5000)
    memory.start_all()
    assert isinstance(memory.fails(), BadRing)


def test_guest_memory_that_vanishes(engine: str, tmp_path: Path) -> None:
    with memory_to_cut(PAGE) as (memory, cut):
        with disk(tmp_path, engine, memory=memory, handled=True) as guest:
            cut(0)
            guest.memory.write(SEAM - PAGE, HEADER.pack(IN, 0, 0))
            guest.offer_memory([(SEAM - PAGE, HEADER.size)], [(SEAM, SECTOR + 1)])
            assert isinstance(guest.fails(), MemoryLost)
        del memory, guest


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "direct"])
def test_a_header_of_which_a_page_vanished_names_no_sector(tmp_path: Path, cache: str) -> None:
    """What vanished reads as zeros, and sector 0 is somebody's."""
    with memory_to_cut(2 * PAGE) as (memory, cut):
        with disk(tmp_path, "io_uring", cache, memory=memory, handled=True) as guest:
            header = SEAM + PAGE - 8
            guest.memory.write(header, HEADER.pack(OUT, 0, 100))
            cut(PAGE)
            guest.offer_memory([(header, HEADER.size), (SEAM - 2 * PAGE, SECTOR)], [(SEAM - PAGE, 1)])
            assert isinstance(guest.fails(), MemoryLost)
            guest.requests.engine.close()
            assert guest.contents() == noise(SIZE)
        del memory, guest


def test_after_a_failure_nothing_is_served(memory: Guest) -> None:
    async def main() -> None:
        memory.queues[0].fail(ZeroDivisionError())
        offer(memory, IN)
        memory.queues[0].kicked()
        await asyncio.sleep(0)

    memory.run(main)
    assert memory._drivers[0].used() is None


@pytest.mark.parametrize("stopped", [True, False])
def test_who_does_not_serve_leaves_the_ring_s_flags_alone(memory: Guest, *, stopped: bool) -> None:
    """So that another program, which takes the ring over, gets kicks."""

    async def main() -> None:
        queue = memory.queues[0]
        queue.stop() if stopped else queue.enable(on=False)
        queue.kicked()

    memory.do(IN, 0, room=SECTOR)
    assert memory._drivers[0].used_flags == 0
    memory.run(main)
    assert memory._drivers[0].used_flags == 0


def test_unfinished_chains_take_turns_as_well() -> None:
    """A program that was killed may have left as many as the ring has."""
    count = 3 * POP_BURST
    with disk(None, memory=make_memory()) as guest, Fd(memfd(SplitInflight.footprint(1024))) as area:

        def half() -> Ring:
            size = SplitInflight.footprint(1024)
            region = Region(area.fileno(), guest_addr=0, user_addr=0, size=size)
            inflight = SplitInflight(GuestMemory([region]), 0, 1024)
            return device_half(driver, guest.memory, features=0, inflight=inflight)

        driver = SplitDriver(guest.memory, SEAM, 1024, features=0)
        header = GUEST + 0x30_0000
        guest.memory.write(header, HEADER.pack(IN, 0, 0))
        for _ in range(count):
            driver.add([(header, HEADER.size, False), (BUFFERS, SECTOR + 1, True)])
        killed = half()
        while killed.pop() is not None:
            pass

        async def main() -> list[int]:
            queue = Virtqueue(0, half(), lambda: None)
            queue.enable(on=True)
            left = [count]

            async def handle() -> None:
                queue.use_shortcut(guest.requests.shortcut)
                async for chain in queue:
                    guest.requests.start(queue, chain)

            handling = asyncio.create_task(handle())
            while left[-1]:
                await asyncio.sleep(0)
                left.append(queue.ring.unfinished)
            queue.stop()
            await handling
            return left

        assert not half().is_empty
        left = guest.run(main)
        assert max(before - after for before, after in pairwise(left)) <= POP_BURST


# --- Polling --------------------------------------------------------------------------------------------


@pytest.fixture
def polling() -> Iterator[Guest]:
    """A guest whose queue polls for a millisecond."""
    with disk(None) as guest:
        guest.serve(poll=1e-3)
        yield guest


def test_what_comes_while_polling_needs_no_kick(polling: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1e-4, at_5=lambda: offer(polling, IN))
    monkeypatch.setattr(time, "perf_counter", clock)
    offer(polling, IN)
    polling.start_all()
    assert [polling._drivers[0].used() is not None for _ in range(3)] == [True, True, False]
    assert 10 < clock.looks < 40, "and it ended when nothing more came"


def test_a_kick_without_a_chain_is_no_reason_to_poll(polling: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", Clock(0.0))
        polling.start_all()


def test_no_polling_while_a_request_is_in_flight(polling: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop is needed for its end."""
    chain: list[Chain | None] = []

    async def main() -> None:
        chain.append(polling.queues[0].pop())
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", Clock(0.0))  # it stands still: a poll would never end
            polling.queues[0].kicked()
        assert chain[0] is not None
        polling.queues[0].push(chain[0])

    buffer = offer(polling, IN)
    polling.run(main)
    polling.wait(buffer)


def test_a_disabled_queue_is_not_polled(polling: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        offer(polling, IN)
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", Clock(0.0))
            polling.queues[0].enable(on=False)
            polling.queues[0].kicked()
            await asyncio.sleep(0)

    polling.run(main)
    assert polling._drivers[0].used() is None


def test_others_have_a_turn_while_requests_keep_coming(
    polling: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at the clock finds one more request."""

    def come() -> None:
        while polling._drivers[0].used() is not None:
            pass
        offer(polling, IN)

    class Endless(Clock):
        def __call__(self) -> float:
            come()
            return super().__call__()

    async def main() -> int:
        begin = polling.queues[0].ring.base
        offer(polling, IN)
        polling.queues[0].kicked()
        return polling.queues[0].ring.base - begin

    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", Endless(1e-6))
        served = polling.run(main)
    assert 1 < served <= POP_BURST


def test_who_comes_late_in_each_poll_ends_the_burst_soon(
    polling: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All polls of a burst together take no more than one that finds nothing, or little more."""

    class Late(Clock):
        def __call__(self) -> float:
            if self.looks % 10 == 9:
                offer(polling, IN)
            return super().__call__()

    async def main() -> int:
        offer(polling, IN)
        polling.queues[0].kicked()
        return clock.looks

    clock = Late(1e-4)
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", clock)
        assert polling.run(main) <= 22


# --- The log of what is written ---------------------------------------------------------------------------


class Log(WriteLog):
    """A test's log: the guest addresses that were told."""

    def __init__(self) -> None:
        self.dirty: set[int] = set()

    def dirtied(self, guest_addr: int, length: int) -> None:
        self.dirty.update(range(guest_addr, guest_addr + length))


def test_a_log_is_told_of_all_that_the_shortcut_writes(guest: Guest) -> None:
    log = Log()
    guest.queues[0].ring.log_writes(log)
    buffer = guest.begin(IN, 8, room=PAGE)
    assert guest.finish(buffer)[0].status == OK
    for addr, size in buffer.writable:
        assert log.dirty >= set(range(addr, addr + size))
