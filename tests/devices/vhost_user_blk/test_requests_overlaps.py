"""Requests that meet: several at a time on few sectors, in any order, on each kind of host.

Invariants, whatever the engine, the cache mode, how guest memory is aligned, and what the host wants:
- Of requests under way at the same time each sector has what one of them put there; what none of them names
  stays as it was. So nothing of a neighbour in the same unit of the host is lost.
- A read gives what was there before it began, where nobody writes meanwhile; zeroes behind an odd end.
- A write behind the odd end of a file makes it grow up to its own end. Nothing else changes its length.
- At the end nothing is left under way, and all shares are back.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.devices.vhost_user_blk.guest import (
    SERIAL,
    Answer,
    Buffer,
    Guest,
)
from tests.loop_device import loop_device
from tests.storage.images import (
    ENGINES,
    engine_of,
    noise,
    skipped_without,
)
from vhost_user_blk.requests import Requests
from vhostd import Chain
from vhostd.frontend.drivers.block import (
    DISCARD,
    FLUSH,
    IN,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    WRITE_ZEROES,
    segments,
)
from vhostd.storage import read_write
from vhostd.storage.engine import Engine, Then, ThreadEngine
from vhostd.storage.image import Image
from vhostd.storage.shares import Shares

quick = settings(
    deadline=None,
    max_examples=12,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
)

UNIT = 4096
SECTORS = 40  # that requests name: five units
MOST = SECTORS * SECTOR + UNIT  # bytes of an image
LENGTHS = (
    SECTORS * SECTOR,
    33 * SECTOR,
    33 * SECTOR + 100,
    20 * SECTOR + 1,
    24 * SECTOR - 1,
    MOST - 511,
    700,
)
STEP = 2 * UNIT


# --- Hosts ----------------------------------------------------------------------------------------------


class Pieces(ThreadEngine):
    """Moves as little at a time as a host may, `most` bytes, and has the shortcut begin nothing."""

    most = 3 * SECTOR
    odd = 0  # more bytes that are read: whole sectors only are written at a time, or others tear them

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        super().preadv(chain, fd, offset, min(size, self.most + self.odd), flags, then)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        super().pwritev(chain, fd, offset, min(size, self.most), flags, then)


def run(*command: str) -> str:
    """What a command says; skips the test if it cannot be."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk with blocks of {UNIT} bytes here: {getattr(error, 'stderr', error)}")
    return done.stdout.strip()


@contextmanager
def large_blocks(folder: Path) -> Iterator[str]:
    """A block device whose blocks have UNIT bytes."""
    file = folder / "loop.img"
    file.write_bytes(bytes(4 << 20))
    with loop_device(file, UNIT) as device:
        yield device


@contextmanager
def file_system(folder: Path) -> Iterator[Path]:
    """A folder on such a device."""
    with large_blocks(folder) as device:
        run("mkfs.ext4", "-q", "-O", "^has_journal", device)
        mounted = folder / "mounted"
        mounted.mkdir()
        run("mount", device, str(mounted))
        try:
            yield mounted
        finally:
            subprocess.run(["umount", str(mounted)], check=True)


@contextmanager
def path_of(host: str, folder: Path) -> Iterator[str]:
    """A file, or a device, on a kind of host."""
    with ExitStack() as stack:
        if host == "device":
            yield stack.enter_context(large_blocks(folder))
            return
        if host == "blocks":
            folder = stack.enter_context(file_system(folder))
        file = folder / "disk.img"
        file.write_bytes(noise(MOST))
        yield str(file)


@contextmanager
def guest_of(engine: Engine, host: str, cache: str, folder: Path) -> Iterator[Guest]:
    """A guest with two queues to an image on a kind of host."""
    with ExitStack() as stack:
        stack.callback(engine.close)
        path = stack.enter_context(path_of(host, folder))
        with skipped_without("--cache=direct"):
            image = Image.open(path, read_only=False, direct=cache == "direct", raw=True)
        stack.callback(image.close)
        if host == "units":
            image.unit = UNIT
        if isinstance(engine, Pieces):
            engine.most = max(engine.most, image.unit)
            engine.odd = 7 if image.unit == 1 else 0
        requests = Requests(image, engine, SERIAL, writeback=cache != "writethrough")
        guest = Guest(requests, queues=2, size=512)
        stack.callback(guest.close)
        guest.serve()
        guest.holds = True
        yield guest


HOSTS = [
    ("file", "writeback"),
    ("file", "writethrough"),
    ("file", "direct"),
    ("units", "direct"),  # as if the host wanted larger transfers
    ("blocks", "direct"),  # it does
    ("device", "direct"),
    ("device", "writeback"),
]


@pytest.fixture(params=HOSTS, ids="-".join)
def host(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A kind of host, and a cache mode."""
    kind, cache = request.param
    return kind, cache


@pytest.fixture(params=[*ENGINES, "pieces"])
def guest(
    request: pytest.FixtureRequest, host: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Guest]:
    """A guest with each engine on each kind of host, which does little in a step."""
    monkeypatch.setattr(read_write, "STEP", STEP)
    engine = Pieces() if request.param == "pieces" else engine_of(request.param)
    with guest_of(engine, *host, tmp_path) as guest:
        yield guest


# --- The model ------------------------------------------------------------------------------------------


class Model:
    """What the image is to be: its bytes up to the end of its last block, and how many of them it has."""

    def __init__(self, guest: Guest, length: int, block: int) -> None:
        self.block = block
        self.bytes = bytearray(noise(length, 77))
        self.length = length
        self.fill()
        with open(guest.image.path, "r+b") as file:
            file.write(self.bytes)
            if not guest.image.is_device:
                file.truncate(length)
            os.fsync(file.fileno())
        guest.image.length = guest.image.measure()
        guest.image.set_block_size(block)

    @property
    def size(self) -> int:
        """What the guest sees."""
        return -(-self.length // self.block) * self.block

    def fill(self) -> None:
        """Has zeroes behind the odd end."""
        self.bytes.extend(bytes(MOST + UNIT - len(self.bytes)))

    def sector(self, sector: int) -> bytes:
        return bytes(self.bytes[sector * SECTOR : (sector + 1) * SECTOR])


class Ask(NamedTuple):
    """A request of some sectors."""

    kind: int
    first: int
    many: int
    seed: int
    flags: int
    shift: int
    queue: int

    @property
    def sectors(self) -> range:
        return range(self.first, self.first + self.many)

    @property
    def data(self) -> bytes:
        return noise(self.many * SECTOR, self.seed)

    def begin(self, guest: Guest) -> Buffer:
        """Has it offered to the device."""
        room = self.many * SECTOR if self.kind == IN else 0
        data = self.data if self.kind == OUT else b""
        sector = self.first if self.kind in (IN, OUT) else 0
        if self.kind in (DISCARD, WRITE_ZEROES):
            middle = self.many // 2
            parts = [(self.first, middle), (self.first + middle, self.many - middle)]
            data = segments(parts, self.flags if self.kind == WRITE_ZEROES else 0)
        return guest.begin(self.kind, sector, data, room, queue=self.queue, shift=self.shift)

    def leaves(self, sector: int) -> bytes:
        """What it has in a sector that it changes."""
        at = (sector - self.first) * SECTOR
        return self.data[at : at + SECTOR] if self.kind == OUT else bytes(SECTOR)


class Resize(NamedTuple):
    """The host makes the image another size, and the program has noticed; 0: has only noticed what it is."""

    length: int

    def take(self, guest: Guest, model: Model) -> None:
        if self.length and not guest.image.is_device:
            os.truncate(guest.image.path, self.length)
            model.length = self.length
            del model.bytes[self.length :]
            model.fill()
        guest.image.resize(guest.image.measure())


class Batch(NamedTuple):
    """Requests that are under way at the same time."""

    asks: tuple[Ask, ...]

    def take(self, guest: Guest, model: Model) -> None:
        asks = [ask for ask in self.asks if (ask.first + ask.many) * SECTOR <= guest.image.size]
        buffers = [ask.begin(guest) for ask in asks]
        guest.start_all()
        for ask, answer in zip(asks, guest.finish(*buffers), strict=True):
            assert answer.status == OK, ask
            if ask.kind == IN:
                self._check_read(ask, answer, model, asks)
        self._check_image(guest, model, asks)

    def _check_read(self, ask: Ask, answer: Answer, model: Model, asks: list[Ask]) -> None:
        written = {sector for each in asks if each.kind not in (IN, FLUSH) for sector in each.sectors}
        for sector in ask.sectors:
            at = (sector - ask.first) * SECTOR
            assert sector in written or answer.data[at : at + SECTOR] == model.sector(sector), (ask, sector)

    def _check_image(self, guest: Guest, model: Model, asks: list[Ask]) -> None:
        found = Path(guest.image.path).read_bytes()
        if not guest.image.is_device:
            ends = [(ask.first + ask.many) * SECTOR for ask in asks if ask.kind == OUT and ask.many]
            model.length = max([model.length, *ends])
            assert len(found) == model.length
        found = found[: len(model.bytes)].ljust(len(model.bytes), b"\0")
        for sector in range(SECTORS):
            here = found[sector * SECTOR : (sector + 1) * SECTOR]
            assert here in _allowed(guest, model, asks, sector), sector
        assert found[SECTORS * SECTOR : model.length] == model.bytes[SECTORS * SECTOR : model.length]
        model.bytes[: SECTORS * SECTOR] = found[: SECTORS * SECTOR]


def _allowed(guest: Guest, model: Model, asks: list[Ask], sector: int) -> list[bytes]:
    """What a sector may hold now."""
    changes = [ask for ask in asks if ask.kind not in (IN, FLUSH) and sector in ask.sectors]
    after = [ask.leaves(sector) for ask in changes]
    if all(ask.kind == DISCARD and guest.image.is_device for ask in changes):  # it is but a hint there
        after.append(model.sector(sector))
    return after


def check_rest(guest: Guest) -> None:
    """Nothing is left under way."""
    requests = guest.requests
    assert requests.under_way == 0
    for shares in (requests.disk.turns, requests.disk.bounces):
        assert are_back(shares)


def are_back(shares: Shares) -> bool:
    """Whether all of them are there."""
    taken: list[bool] = []
    shares.take(shares.count, lambda: taken.append(True))
    if taken:
        shares.give(shares.count)
    return bool(taken)


# --- What is tried --------------------------------------------------------------------------------------

ASKS = st.builds(
    Ask,
    kind=st.sampled_from([IN, IN, OUT, OUT, OUT, OUT, DISCARD, WRITE_ZEROES, WRITE_ZEROES, FLUSH]),
    first=st.integers(0, SECTORS - 1) | st.sampled_from([0, 8, 16, 24, 32]),
    many=st.integers(0, 3) | st.sampled_from([1, 8, 8, 16, 24, SECTORS]),
    seed=st.integers(0, 99),
    flags=st.sampled_from([0, UNMAP]),
    shift=st.sampled_from([0, 0, 0, 1, 4, 511]),
    queue=st.integers(0, 1),
).map(lambda ask: ask._replace(many=min(ask.many, SECTORS - ask.first)))
BATCHES = st.lists(ASKS, min_size=1, max_size=20).map(lambda asks: Batch(tuple(asks)))
STEPS = st.lists(
    BATCHES | BATCHES | BATCHES | st.builds(Resize, st.sampled_from((0, *LENGTHS))), min_size=1, max_size=6
)


def test_a_model_agrees(guest: Guest) -> None:
    @quick
    @given(st.sampled_from(LENGTHS), st.sampled_from([SECTOR, SECTOR, UNIT]), STEPS)
    def agrees(length: int, block: int, steps: list[Batch | Resize]) -> None:
        model = Model(guest, length, block)
        for step in steps:
            step.take(guest, model)
            assert guest.image.is_device or guest.image.length <= model.size
            check_rest(guest)

    agrees()


@pytest.mark.parametrize("length", [1, 513, 1025, 3 * SECTOR, 5000])
def test_what_a_host_wants_is_known_of_the_shortest_file(length: int, tmp_path: Path) -> None:
    """It may grow, and what it grows by is read and written as well."""
    with ExitStack() as stack:
        path = stack.enter_context(path_of("blocks", tmp_path))
        os.truncate(path, length)
        image = Image.open(path, read_only=False, direct=True, raw=True)
        stack.callback(image.close)
        assert image.unit == UNIT


def test_zeroes_that_are_written_do_not_make_a_file_grow(guest: Guest) -> None:
    guest.image.lacking |= {"punch", "zero", "refill"}
    model = Model(guest, 20 * SECTOR + 100, UNIT)
    steps = [
        Ask(WRITE_ZEROES, 19, 5, 0, 0, 0, 0),
        Ask(OUT, 21, 2, 1, 0, 0, 0),  # behind the odd end, of which the program knows no more
        Ask(WRITE_ZEROES, 22, 2, 0, 0, 0, 0),
        Ask(WRITE_ZEROES, 16, 8, 0, 0, 0, 0),
    ]
    for ask in steps:
        Batch((ask,)).take(guest, model)
    check_rest(guest)


def test_neighbours_in_a_unit_are_not_lost(guest: Guest) -> None:
    """Each sector of some units written on its own, and whole units beside them, all at the same time."""
    model = Model(guest, SECTORS * SECTOR, SECTOR)
    for seed in range(0, 200, 50):
        small = [Ask(OUT, i, 1, seed + i, 0, 0, i % 2) for i in (*range(16), *range(24, SECTORS))]
        whole = [Ask(OUT, 16, 8, seed + 49, 0, 0, 0), Ask(IN, 0, SECTORS, 0, 0, 0, 1)]
        Batch((*small[::2], *whole, *small[1::2])).take(guest, model)
        expected = [ask.data for ask in small]
        found = [model.sector(ask.first) for ask in small]
        assert found == expected
    check_rest(guest)
