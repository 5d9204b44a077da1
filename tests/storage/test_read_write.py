"""Reads and writes: step after step to the end, and what is given back whatever the end is."""

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.devices.vhost_user_blk.guest import (
    SEAM,
    SIZE,
    Guest,
    disk,
    memory_to_cut,
)
from tests.storage.images import (
    ENGINES,
    engine_of,
    noise,
)
from tests.virtio.test_virtqueue import emptied
from vhost_user_blk.config import Config
from vhost_user_blk.device import Blk
from vhost_user_blk.requests import MOST, Requests
from vhostd import Chain
from vhostd.errors import MemoryLost
from vhostd.frontend.drivers.block import FLUSH, HEADER, IN, IOERR, OK, OUT, SECTOR
from vhostd.storage import read_write
from vhostd.storage.disk import BOUNCES
from vhostd.storage.engine import Engine, SyncEngine, Then, Work
from vhostd.storage.shares import Shares

UNIT = 4096


class Held(SyncEngine):
    """Does nothing until it is told to, and notes what it is asked to move, `most` bytes at a time."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.held: list[Callable[[], None]] = []
        self.holds = True
        self.most = most

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.ranges.append((offset, size))
        size = min(size, self.most)
        self._later(lambda: SyncEngine.preadv(self, chain, fd, offset, size, flags, then))

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.ranges.append((offset, size))
        size = min(size, self.most)
        self._later(lambda: SyncEngine.pwritev(self, chain, fd, offset, size, flags, then))

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        self._later(lambda: then(0))

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        self._later(lambda: SyncEngine.do(self, chain, work, then))

    def go_on(self, most: int = 1 << 30) -> None:
        """Does up to so much of what is held, and what comes meanwhile at once if that is all."""
        for _ in range(min(most, len(self.held))):
            self.held.pop(0)()

    def _later(self, work: Callable[[], None]) -> None:
        if self.holds:
            self.held.append(work)
        else:
            work()


class Failing(SyncEngine):
    """A host that ends each transfer with this."""

    def __init__(self, result: int | Exception) -> None:
        self.result = result

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        then(self.result)

    pwritev = preadv


@pytest.fixture
def engine() -> Held:
    return Held()


@contextmanager
def units(engine: Engine, folder: Path, **how: object) -> Iterator[Guest]:
    """A guest whose host wants whole units."""
    with disk(folder, engine, "direct", queue_size=1024, **how) as guest:  # type: ignore[arg-type]
        guest.image.unit = UNIT
        guest.requests = Requests(guest.image, engine, "", writeback=True)
        yield guest


@pytest.fixture
def guest(tmp_path: Path, engine: Held) -> Iterator[Guest]:
    with units(engine, tmp_path) as guest:
        yield guest


def are_back(shares: Shares) -> bool:
    """Whether all of them are there."""
    taken: list[bool] = []
    shares.take(shares.count, lambda: taken.append(True))
    return bool(taken)


def check_rest(guest: Guest) -> None:
    """Nothing is under way, and all shares are back."""
    assert guest.requests.under_way == 0
    assert are_back(guest.requests.disk.turns)
    assert are_back(guest.requests.disk.bounces)


def go_on(guest: Guest, engine: Held) -> None:
    """Does all that is held, on the event loop."""

    async def main() -> None:
        engine.holds = False
        engine.go_on()

    guest.run(main)


def without_shortcut(guest: Guest) -> None:
    """Has the engine do everything."""
    for name in ("read_flags", "write_flags"):
        setattr(guest.requests.shortcut, name, -1)


# --- Steps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IN, OUT])
def test_steps_are_bounded(guest: Guest, engine: Held, monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr(read_write, "STEP", 2 * UNIT)
    engine.holds = False
    size = 5 * UNIT
    guest.do(kind, 8, *((b"", size) if kind == IN else (noise(size, 1),)))
    assert engine.ranges == [(UNIT, 2 * UNIT), (3 * UNIT, 2 * UNIT), (5 * UNIT, UNIT)]
    check_rest(guest)


def test_what_was_written_behind_the_odd_end_is_read_in_pieces(tmp_path: Path) -> None:
    """The program may not have noticed yet how long the file is now."""
    engine = Held(most=SECTOR)
    engine.holds = False
    with disk(tmp_path, engine, size=1000) as guest:
        guest.image.set_block_size(UNIT)
        without_shortcut(guest)
        guest.do(OUT, 6, noise(2 * SECTOR, 1))
        assert guest.image.length == 1000
        read = guest.do(IN, 0, room=UNIT)
        assert read == noise(1000) + bytes(6 * SECTOR - 1000) + noise(2 * SECTOR, 1)
        check_rest(guest)


@pytest.mark.parametrize("result", [0, -errno.EIO, -errno.EINVAL])
@pytest.mark.parametrize("kind", [IN, OUT])
def test_a_step_that_fails(tmp_path: Path, kind: int, result: int) -> None:
    """Nothing moved is a failure, too, before the end of the file."""
    with disk(tmp_path, Failing(result)) as guest:
        without_shortcut(guest)
        buffer = guest.begin(kind, 0, *((b"", SECTOR) if kind == IN else (bytes(SECTOR),)))
        assert guest.finish(buffer)[0].status == IOERR
        check_rest(guest)


def test_an_exception_of_a_step_is_the_queue_s(tmp_path: Path) -> None:
    with units(Failing(ZeroDivisionError()), tmp_path) as guest:
        guest.begin(IN, 0, room=UNIT)
        assert isinstance(guest.fails(), ZeroDivisionError)
        check_rest(guest)


@pytest.mark.parametrize("result", [-errno.EINVAL, -errno.EFAULT])
def test_memory_that_does_not_suit_the_host_is_bounced(tmp_path: Path, result: int) -> None:
    with units(Failing(result), tmp_path) as guest:
        assert guest.do(IN, 8, room=UNIT) == noise(SIZE)[UNIT : 2 * UNIT]
        guest.do(OUT, 8, noise(UNIT, 1))
        assert guest.contents() == noise(SIZE)[:UNIT] + noise(UNIT, 1) + noise(SIZE)[2 * UNIT :]
        check_rest(guest)


# --- Turns ----------------------------------------------------------------------------------------------


def test_who_rewrites_a_part_of_a_unit_is_alone(guest: Guest, engine: Held) -> None:
    whole = guest.begin(OUT, 8, noise(UNIT, 1))
    parts = [guest.begin(OUT, 9 + i, noise(SECTOR, 2 + i)) for i in range(3)]
    last = guest.begin(OUT, 8, noise(UNIT, 9))
    assert len(engine.held) == 1  # the whole unit, which came first
    go_on(guest, engine)
    assert [each.status for each in guest.finish(whole, *parts, last)] == [OK] * 5
    assert guest.contents()[UNIT : 2 * UNIT] == noise(UNIT, 9)
    check_rest(guest)


def test_reads_of_parts_need_no_turn(guest: Guest, engine: Held) -> None:
    write = guest.begin(OUT, 9, noise(SECTOR, 1))
    reads = [guest.begin(IN, i, room=SECTOR) for i in range(3)]
    assert len(engine.held) == 4
    go_on(guest, engine)
    assert {each.status for each in guest.finish(write, *reads)} == {OK}
    check_rest(guest)


def test_so_many_bounces_at_a_time(guest: Guest, engine: Held) -> None:
    reads = [guest.begin(IN, i, room=SECTOR) for i in range(BOUNCES + 5)]
    assert len(engine.held) == BOUNCES
    go_on(guest, engine)
    answers = guest.finish(*reads)
    assert b"".join(each.data for each in answers) == noise(SIZE)[: (BOUNCES + 5) * SECTOR]
    check_rest(guest)


def test_any_number_of_writes_may_wait_for_one(guest: Guest, engine: Held) -> None:
    """They all end while the first one does, if the engine does all at once."""
    writes = [guest.begin(OUT, 1 + i % 100, noise(SECTOR, i % 100)) for i in range(300)]
    assert len(engine.held) == 1
    go_on(guest, engine)
    assert {each.status for each in guest.finish(*writes)} == {OK}
    check_rest(guest)


# --- The end of it all ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [IN, OUT])
def test_guest_memory_that_vanishes_during_a_bounce(tmp_path: Path, engine: Held, kind: int) -> None:
    """Those that are under way, and those that wait for room, all give back what they have."""
    with memory_to_cut(UNIT) as (memory, cut):
        with units(engine, tmp_path, memory=memory) as guest:
            for i in range(300):
                header = 0x30_0000 + 64 * i
                guest.memory.write(header, HEADER.pack(kind, 0, 1))
                pieces = [(header, HEADER.size)], [(header + 32, 1)]
                pieces[kind == IN].insert(kind == OUT, (SEAM, SECTOR))
                guest.offer_memory(*pieces)
            cut(0)
            go_on(guest, engine)
            assert isinstance(guest.fails(), MemoryLost)
            check_rest(guest)
            assert guest.queues[0].ring.given_up
        del memory, guest


def test_what_was_given_up_is_not_begun_when_its_turn_comes(guest: Guest, engine: Held) -> None:
    first = guest.begin(OUT, 9, noise(SECTOR, 1))
    for sector in (0, 1, 8):
        guest.begin(OUT, sector, noise(UNIT, 2))
    assert first
    guest.queues[0].stop()
    guest.queues[0].give_up()
    go_on(guest, engine)
    wanted = bytearray(noise(SIZE))
    wanted[9 * SECTOR : 10 * SECTOR] = noise(SECTOR, 1)
    assert guest.contents() == wanted
    assert guest.queues[0].in_flight == 0
    check_rest(guest)


def test_steps_end_when_the_chain_is_given_up(
    guest: Guest, engine: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_write, "STEP", UNIT)
    guest.begin(OUT, 0, noise(3 * UNIT, 1))
    guest.queues[0].stop()
    guest.queues[0].give_up()
    go_on(guest, engine)
    guest.run(partial(emptied, guest.queues[0]))
    assert engine.ranges == [(0, UNIT)]
    check_rest(guest)


# --- A flood --------------------------------------------------------------------------------------------


def test_a_flood_is_taken_up_to_a_bound_and_goes_on_by_itself(tmp_path: Path, engine: Held) -> None:
    with disk(tmp_path, engine, queue_size=4096) as guest:
        requests = guest.requests
        config = Config(requests, queues=1, queue_size=128, block_sizes=(SECTOR, SECTOR))
        device = Blk(requests, config, 0)
        buffers = [
            guest.offer_memory([(SEAM + 64 * i, HEADER.size)], [(SEAM + 64 * i + 32, 1)], start=False)
            for i in range(MOST + 100)
        ]
        for i in range(MOST + 100):
            guest.memory.write(SEAM + 64 * i, HEADER.pack(FLUSH, 0, 0))

        async def flood() -> None:
            serving = asyncio.create_task(device.requestq(guest.queues[0]))
            while not requests.is_busy:
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            assert requests.under_way == len(engine.held) == guest.queues[0].in_flight == MOST
            engine.go_on(1)
            while requests.under_way < MOST:
                await asyncio.sleep(0)
            assert len(engine.held) == MOST
            engine.holds = False
            engine.go_on()
            while guest.queues[0].ring.base < MOST + 100:
                await asyncio.sleep(0)
            guest.queues[0].stop()
            await serving

        guest.run(flood)
        assert guest.wait(*buffers) == [1] * len(buffers)
        check_rest(guest)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [IN, OUT])
def test_guest_memory_that_vanishes_while_an_engine_works(tmp_path: Path, engine: str, kind: int) -> None:
    """All that had been begun comes to an end, whatever that is, and gives back what it has."""
    with memory_to_cut(UNIT) as (memory, cut):
        with units(engine_of(engine), tmp_path, memory=memory) as guest:
            for i in range(100):
                header = 0x30_0000 + 64 * i
                guest.memory.write(header, HEADER.pack(kind, 0, i % 8))
                pieces = [(header, HEADER.size)], [(header + 32, 1)]
                pieces[kind == IN].insert(kind == OUT, (SEAM, SECTOR))
                guest.offer_memory(*pieces, start=False)
            guest.start_all()
            cut(0)

            guest.run(partial(ended, guest.requests))
            check_rest(guest)
            assert all(isinstance(error, MemoryLost) for error in guest.failed)
            guest.failed.clear()  # their tracebacks hold chains
            guest.run(partial(emptied, guest.queues[0]))
        del memory, guest


async def ended(requests: Requests) -> None:
    """Waits until nothing is under way."""
    while requests.under_way:
        await asyncio.sleep(0)
