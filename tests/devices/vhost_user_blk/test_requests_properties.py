"""Any requests in any order, several at a time.

Invariants:
- Every request is answered once, with a status of the specification as its last byte, and a used length of
  all that it had room for.
- A request that is in place succeeds, and any other fails and changes nothing.
- A read gives what a bytearray, which knows nothing of images and engines, holds there at that time. What
  is under way at the same time lies elsewhere; else nothing could be said of it.
- When none is under way the image is what the bytearray is: whatever the engine, the cache mode, how guest
  memory is aligned, and however the image has grown or shrunk meanwhile.
"""

import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.devices.vhost_user_blk.guest import (
    CANARY,
    SERIAL,
    Answer,
    Buffer,
    Guest,
    disk,
)
from tests.storage.images import (
    ENGINES,
    noise,
)
from vhostd.frontend.drivers.block import (
    DISCARD,
    FLUSH,
    GET_ID,
    HEADER,
    IN,
    IOERR,
    OK,
    OUT,
    SECTOR,
    UNMAP,
    UNSUPP,
    WRITE_ZEROES,
    segments,
)

quick = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.nested_given],
)

SLOT = 24  # sectors: more than a page, and less than all of a page at either end
SLOTS = 12
SIZES = (SLOTS * SLOT * SECTOR, SLOTS * SLOT * SECTOR // 2, SLOTS * SLOT * SECTOR + 4096, 5 * SECTOR)
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
DISKS = [
    (engine, cache, is_file)
    for engine in ENGINES
    for cache, is_file in (
        ("writeback", True),
        ("writethrough", True),
        ("direct", True),
        ("writeback", False),
    )
]


# --- The model ------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """A request of a slot of its own: so many sectors from `first` on."""

    kind: int
    slot: int
    first: int
    sectors: int
    flags: int
    seed: int
    shift: int
    queue: int

    @property
    def sector(self) -> int:
        return self.slot * SLOT + self.first

    def begin(self, guest: Guest) -> Buffer:
        """Asks for it."""
        begin = partial(guest.begin, queue=self.queue, shift=self.shift)
        if self.kind == IN:
            return begin(IN, self.sector, room=self.sectors * SECTOR)
        if self.kind == OUT:
            return begin(OUT, self.sector, self.data)
        if self.kind in (DISCARD, WRITE_ZEROES):
            middle = self.sectors // 2
            parts = [(self.sector, middle), (self.sector + middle, self.sectors - middle)]
            return begin(self.kind, 0, segments(parts, self.flags))
        return begin(self.kind, room=self.room)

    def answer(self, disk: bytearray) -> Answer:
        """What it is to be answered; the model does it."""
        start, end = self.sector * SECTOR, (self.sector + self.sectors) * SECTOR
        if self.kind in (IN, OUT, DISCARD, WRITE_ZEROES):
            if self.flags and (self.kind == DISCARD or self.flags != UNMAP) and self.kind not in (IN, OUT):
                return Answer(UNSUPP, b"", 1)
            if end > len(disk):
                return Answer(IOERR, CANARY * self.room, self.room + 1)
            if self.kind != IN:
                disk[start:end] = self.data if self.kind == OUT else bytes(end - start)
                return Answer(OK, b"", 1)
            return Answer(OK, bytes(disk[start:end]), self.room + 1)
        data = SERIAL.encode() if self.kind == GET_ID else b""
        return Answer(OK if self.kind in (GET_ID, FLUSH) else UNSUPP, data, self.room + 1)

    @property
    def data(self) -> bytes:
        return noise(self.sectors * SECTOR, self.seed)

    @property
    def room(self) -> int:
        return self.sectors * SECTOR if self.kind == IN else 20 if self.kind == GET_ID else 0


class Cache(NamedTuple):
    """The driver switches the cache."""

    writeback: bool

    def take(self, guest: Guest, _: bytearray) -> None:
        guest.requests.writeback = self.writeback


class Resize(NamedTuple):
    """The host makes the image another size, and the program has noticed."""

    size: int

    def take(self, guest: Guest, disk: bytearray) -> None:
        os.ftruncate(guest.image.fd, self.size)
        guest.image.resize(guest.image.measure())
        del disk[self.size :]
        disk.extend(bytes(self.size - len(disk)))


class Batch(NamedTuple):
    """Requests that are under way at the same time."""

    asks: tuple[Ask, ...]

    def take(self, guest: Guest, disk: bytearray) -> None:
        buffers = [ask.begin(guest) for ask in self.asks]
        for ask, found in zip(self.asks, guest.finish(*buffers), strict=True):
            assert found == ask.answer(disk), ask


# --- What is tried --------------------------------------------------------------------------------------

ASKS = st.builds(
    Ask,
    kind=st.sampled_from([IN, IN, OUT, OUT, OUT, DISCARD, WRITE_ZEROES, WRITE_ZEROES, FLUSH, GET_ID, 99]),
    slot=st.integers(0, SLOTS - 1),
    first=st.just(0) | st.integers(0, SLOT - 1),
    sectors=st.integers(0, SLOT),
    flags=st.sampled_from([0, 0, 0, UNMAP, UNMAP, 2]),
    seed=st.integers(0, 9),
    shift=st.sampled_from([0, 0, 0, 1, 4, 511]),
    queue=st.integers(0, 1),
).map(lambda ask: ask._replace(sectors=min(ask.sectors, SLOT - ask.first)))
BATCHES = st.lists(ASKS, min_size=1, max_size=SLOTS, unique_by=lambda ask: ask.slot).map(
    lambda asks: Batch(tuple(asks))
)
STEPS = st.lists(
    BATCHES | BATCHES | BATCHES | st.builds(Cache, st.booleans()) | st.builds(Resize, st.sampled_from(SIZES)),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize(("engine", "cache", "is_file"), DISKS)
def test_a_model_agrees(engine: str, cache: str, is_file: bool, tmp_path: Path) -> None:  # noqa: FBT001
    with disk(tmp_path if is_file else None, engine, cache, size=SIZES[0], queues=2) as guest:

        @quick
        @given(STEPS)
        def agrees(steps: list[Batch | Cache | Resize]) -> None:
            model = bytearray(noise(SIZES[0], 99))
            begin_anew(guest, model)
            for step in steps:
                step.take(guest, model)
                assert guest.contents() == model

        agrees()


def begin_anew(guest: Guest, model: bytearray) -> None:
    """Makes the image what the model is."""
    with open(f"/proc/self/fd/{guest.image.fd}", "r+b") as file:
        file.write(model)
        file.truncate(len(model))
    guest.image.resize(guest.image.measure())
    guest.requests.writeback = True


# --- Noise ----------------------------------------------------------------------------------------------

SMALL = st.integers(0, 3) | st.sampled_from([SLOTS * SLOT - 1, SLOTS * SLOT, 1 << 55, U64, U64 - 1])
HEADERS = st.builds(HEADER.pack, st.integers(0, 30) | st.sampled_from([1 << 31, U32]), st.just(0), SMALL)
TAILS = st.lists(
    st.tuples(SMALL, st.integers(0, 5) | st.sampled_from([U32]), st.sampled_from([0, 0, 1, 2, U32])),
    max_size=3,
).map(lambda parts: b"".join(segments([(sector, count)], flags) for sector, count, flags in parts))
DATA = st.builds(bytes.__add__, HEADERS, TAILS | st.binary(max_size=600)) | st.binary(max_size=40)
CHAINS = st.tuples(DATA, st.integers(0, 3) | st.sampled_from([21, 513, 1025]), st.integers(0, 600))


@pytest.mark.parametrize("engine", ENGINES)
def test_noise_is_answered(engine: str, tmp_path: Path) -> None:
    with disk(tmp_path, engine, size=SIZES[0]) as guest:

        @quick
        @given(st.lists(CHAINS, min_size=1, max_size=20))
        def answers(chains: list[tuple[bytes, int, int]]) -> None:
            buffers = [
                guest.offer(
                    data, room, (cut,) if 0 < cut < len(data) else (), (cut,) if 0 < cut < room else ()
                )
                for data, room, cut in chains
                if data or room
            ]
            for buffer, answer in zip(buffers, guest.finish(*buffers), strict=True):
                room = sum(size for _, size in buffer.writable)
                assert answer.status in ((OK, IOERR, UNSUPP) if room else (None,))
                assert answer.used == room
            assert len(guest.contents()) == SIZES[0]

        answers()
