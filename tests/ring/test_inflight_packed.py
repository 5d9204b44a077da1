"""What is in flight in a packed ring, in memory that outlives whoever serves it; see test_inflight.py.

A crash is a ring that is abandoned as it is, and another that begins in the same memory.
"""

import struct
from collections.abc import Callable
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring.machine import BOTH, DATA, GUEST, PACKED, device_half, two_regions
from tests.ring.test_inflight import shared
from vhostd.errors import GuestError, RefusedRequest
from vhostd.ring import Chain, GuestMemory, Ring
from vhostd.ring.driver_packed import PackedDriver
from vhostd.ring.inflight_packed import PackedInflight
from vhostd.ring.inflight_split import SplitInflight

SIZE = 8
FEATURES = BOTH | PACKED
WRITE, AVAIL, USED = 2, 0x80, 0x8000
START = 0x8000_8000

# Where the fields of the region are (vhost-user, "Inflight I/O tracking").
VERSION, DESC_NUM, FREE_HEAD, OLD_FREE_HEAD, USED_IDX, OLD_USED_IDX = 8, 10, 12, 14, 16, 18
WRAPS, HEADER = 20, 32
INFLIGHT, NEXT, LAST, NUM, COUNTER, ID, FLAGS, LEN, ADDR, STATE = 0, 2, 4, 6, 8, 16, 18, 20, 24, 32

quick = settings(max_examples=150)
Stores = list[tuple[GuestMemory, int, bytes]]


def state(entry: int) -> int:
    return HEADER + STATE * entry


def u16(value: int) -> bytes:
    return struct.pack("<H", value)


class Host:
    """A driver's ring and an inflight area, served by one program after the other."""

    def __init__(self, size: int = SIZE, *, room: int | None = None) -> None:
        self.memory = two_regions()
        self.driver = PackedDriver(self.memory, GUEST, size, features=FEATURES)
        self.room = size if room is None else room
        self.area = shared(PackedInflight.footprint(self.room))
        self.ring = self.begin(START)

    def begin(self, base: int) -> Ring:
        """A program that begins to serve; `base` is what the front-end believes."""
        inflight = PackedInflight(self.area, 0, self.room)
        return device_half(self.driver, self.memory, features=FEATURES, base=base, inflight=inflight)

    def crash(self) -> None:
        """The program ends. QEMU then gives the base that the ring began with: it cannot know better."""
        self.ring = self.begin(START)

    def add(self, descriptors: int = 1) -> int:
        return self.driver.add([(DATA, 1, True)] * descriptors)

    def pop(self) -> Chain:
        chain = self.ring.pop()
        assert chain is not None
        return chain

    def take(self, *descriptors: int) -> list[Chain]:
        """Adds and pops chains of so many descriptors each."""
        for count in descriptors:
            self.add(count)
        return [self.pop() for _ in descriptors]

    def drain(self) -> list[int]:
        """Pops and pushes all there is; the ids in that order."""
        ids = []
        while (chain := self.ring.pop()) is not None:
            ids.append(chain.head)
            self.ring.push(chain)
        return ids

    def used(self) -> list[int]:
        """The ids that came back since this was last asked."""
        return [used[0] for used in iter(self.driver.used, None)]

    def peek(self, at: int, size: int = 2) -> int:
        return int.from_bytes(self.area.read(at, size), "little")

    def poke(self, at: int, value: int, size: int = 2) -> None:
        self.area.write(at, value.to_bytes(size, "little"))

    def in_flight(self) -> list[int]:
        """The entries that the area says are in flight, oldest first."""
        entries = [entry for entry in range(self.room) if self.peek(state(entry) + INFLIGHT, 1)]
        return sorted(entries, key=lambda entry: self.peek(state(entry) + COUNTER, 8))

    def free(self) -> list[int]:
        """The entries of the free list."""
        entries, entry = [], self.peek(FREE_HEAD)
        while entry < self.room:
            entries.append(entry)
            entry = self.peek(state(entry) + NEXT)
        return entries

    # --- What a push stores, as the module's text says ----------------------------------------------------

    def position(self, moved: int) -> tuple[int, int]:
        index, wrap = self.peek(USED_IDX), self.peek(WRAPS, 1)
        index += moved
        return (index, wrap) if index < self.driver.size else (index - self.driver.size, 1 - wrap)

    def push_stores(self, entries: list[tuple[int, Chain, int]]) -> tuple[Stores, int]:
        """All stores of a batch of `(entry, chain, descriptors)`, and the one that shows it to the driver."""
        stores: Stores = []
        free, old_free = self.peek(FREE_HEAD), self.peek(OLD_FREE_HEAD)
        old_index, old_wrap = self.position(0)
        moved, curtain = 0, b""
        for entry, chain, count in entries:
            index, wrap = self.position(moved)
            at = self.driver.desc_addr + 16 * index
            flags = u16((AVAIL | USED if wrap else 0) | (WRITE if chain.written else 0))
            stores += [
                (self.memory, at + 8, struct.pack("<I", chain.written)),
                (self.memory, at + 12, u16(chain.head)),
            ]
            if moved:
                stores.append((self.memory, at + 14, flags))
            else:
                curtain, shown = flags, at + 14
            last = self.peek(state(entry) + LAST)
            stores.append((self.area, state(last) + NEXT, u16(free)))
            free = entry
            moved += count
            index, wrap = self.position(moved)
            stores += [
                (self.area, FREE_HEAD, u16(free) + u16(old_free)),
                (self.area, USED_IDX, u16(index) + u16(old_index) + bytes([wrap, old_wrap])),
            ]
        published = len(stores)
        stores.append((self.memory, shown, curtain))
        stores += [(self.area, state(entry) + INFLIGHT, b"\0") for entry, _, _ in entries]
        stores += [
            (self.area, FREE_HEAD, u16(free) * 2),
            (self.area, USED_IDX, u16(index) * 2 + bytes([wrap, wrap])),
        ]
        return stores, published

    def batch_of(self, chains: list[Chain], which: list[int]) -> list[tuple[int, Chain, int]]:
        """For `push_stores`, of all chains in flight those."""
        entries = self.in_flight()
        return [(entries[i], chains[i], self.peek(state(entries[i]) + NUM)) for i in which]


# --- The record -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "length"), [(1, 64), (3, 128), (128, 4160), (32768, 1048640)])
def test_the_region_is_as_long_as_other_back_ends_make_it(size: int, length: int) -> None:
    assert PackedInflight.footprint(size) == length


def test_a_new_area_begins_with_all_entries_free() -> None:
    host = Host()
    assert (host.peek(VERSION), host.peek(DESC_NUM), host.free()) == (1, SIZE, list(range(SIZE)))
    assert (host.peek(USED_IDX), host.peek(OLD_USED_IDX), host.peek(WRAPS, 2)) == (0, 0, 0x101)


def test_an_entry_has_what_its_descriptor_had() -> None:
    host = Host()
    (chain,) = host.take(3)
    assert host.in_flight() == [0]
    assert [host.peek(at, 2) for at in (state(0) + NUM, state(0) + LAST)] == [3, 2]
    assert [host.peek(state(entry) + NEXT) for entry in range(2)] == [1, 2]
    for entry in range(3):
        assert host.peek(state(entry) + ID) == chain.head
        assert host.peek(state(entry) + FLAGS) == (0x83 if entry < 2 else 0x82)
        assert host.peek(state(entry) + LEN, 4) == 1
        assert host.peek(state(entry) + ADDR, 8) == DATA
    assert host.free() == list(range(3, SIZE))
    host.ring.push(chain)
    assert (host.in_flight(), host.free()) == ([], list(range(SIZE)))
    assert (host.peek(USED_IDX), host.peek(OLD_USED_IDX)) == (3, 3)


def test_what_was_in_flight_is_done_again_first_and_in_its_order() -> None:
    host = Host()
    chains = host.take(1, 2, 1, 2)
    ids = [chain.head for chain in chains]
    for which in (3, 1):  # out of order: the driver's descriptors of the first are written over
        host.ring.push(chains[which])
    fresh = host.add()
    host.crash()
    assert (host.ring.unfinished, host.ring.in_flight, host.ring.spell(host.ring.base)) == (
        2,
        0,
        "6:1, used 4:1",
    )
    assert host.drain() == [ids[0], ids[2], fresh]
    assert host.used() == [ids[3], ids[1], ids[0], ids[2], fresh]
    assert sorted(host.free()) == list(range(SIZE))


def test_what_is_done_again_has_the_buffers_that_it_had() -> None:
    host = Host()
    host.memory.write(DATA, b"request")
    first = host.driver.add([(DATA, 7, False), (DATA + 8, 3, True)])
    table = struct.pack("<QIHHQIHH", DATA, 7, 0, 0, DATA + 8, 3, 0, WRITE)
    host.memory.write(DATA + 0x100, table)
    second = host.driver.add([(DATA, 7, False), (DATA + 8, 3, True)], indirect=DATA + 0x200)
    third = host.add()
    chains = [host.pop() for _ in range(3)]
    host.ring.push(chains[2])  # over the first one's descriptor
    host.crash()
    for identity in (first, second):
        chain = host.pop()
        assert (chain.head, chain.readable, chain.writable) == (identity, 7, 3)
        assert chain.read(7) == b"request"
        chain.write(b"abc")
        host.ring.push(chain)
    assert [host.driver.used() for _ in range(3)] == [(third, 0), (first, 3), (second, 3)]


def test_the_front_end_s_base_counts_for_a_new_area_only() -> None:
    host = Host()
    chains = host.take(1, 1, 1)
    host.ring.push(chains[2])
    assert host.begin(0x8005_8005).base == 0x8001_8003


@pytest.mark.parametrize("rounds", range(SIZE + 2))
@pytest.mark.parametrize("which", [[0], [1], [2], [0, 1, 2], [2, 0], [1, 2, 0]])
def test_a_crash_in_the_middle_of_a_push(rounds: int, which: list[int]) -> None:
    """At every store: the driver gets all of the batch, or none of it and each is done again."""
    count, at = 1, 0
    while at < count:
        host = Host()
        for _ in range(rounds):  # so that all places of the ring have their turn
            host.add()
            host.drain()
            host.used()
        chains = host.take(1, 2, 3)
        ids = [chain.head for chain in chains]
        batch = host.batch_of(chains, which)
        stores, published = host.push_stores(batch)
        count = len(stores) + 1
        for memory, place, data in stores[:at]:
            memory.write(place, data)
        host.crash()
        gone = [ids[i] for i in which] if at > published else []
        again = [identity for identity in ids if identity not in gone]
        assert host.drain() == again
        assert host.used() == gone + again
        assert (host.in_flight(), sorted(host.free())) == ([], list(range(SIZE)))
        at += 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_push_stores_what_the_text_says(order: tuple[int, ...]) -> None:
    """Else the test before would be one of this file alone."""
    host, twin = Host(), Host()
    ours, theirs = host.take(1, 2, 3), twin.take(1, 2, 3)
    stores, _ = twin.push_stores(twin.batch_of(theirs, list(order)))
    for memory, at, data in stores:
        memory.write(at, data)
    host.ring.push_all([ours[i] for i in order])
    for side in ("area", "memory"):
        size = PackedInflight.footprint(SIZE) if side == "area" else 16 * SIZE
        at = 0 if side == "area" else GUEST
        assert getattr(host, side).read(at, size) == getattr(twin, side).read(at, size)


def test_what_is_put_back_is_not_in_flight() -> None:
    host = Host()
    chains = host.take(1, 2, 1, 1)
    ids = [chain.head for chain in chains]
    host.ring.push(chains[1])
    for chain in (chains[3], chains[2]):
        host.ring.put_back(chain)
    assert host.in_flight() == [0]
    host.crash()
    assert (host.ring.unfinished, host.ring.spell(host.ring.base)) == (1, "3:1, used 2:1")
    assert host.drain() == [ids[0], ids[2], ids[3]]


def test_a_ring_that_stops_and_starts_again_goes_on() -> None:
    host = Host()
    for _ in range(3):
        chains = host.take(2, 1)
        host.ring.push(chains[1])
        host.ring.push(chains[0])
        host.ring = host.begin(host.ring.base)
        assert host.ring.unfinished == 0
        assert len(host.used()) == 2


class Story:
    """A driver and its devices, and what should be between them."""

    def __init__(self, size: int) -> None:
        self.host = Host(size)
        self.available: list[int] = []
        self.unfinished: list[int] = []  # popped before the last crash, and not again yet
        self.order: list[int] = []  # all that is in flight, as it was first popped
        self.popped: list[Chain] = []
        self.pushed: list[int] = []

    def add(self, count: int) -> None:
        if count <= self.host.driver.free:
            self.available.append(self.host.add(count))

    def pop(self, count: int) -> None:
        for _ in range(count):
            chain = self.host.ring.pop()
            if chain is None:
                assert not self.unfinished
                assert not self.available
                return
            if self.unfinished:
                assert chain.head == self.unfinished.pop(0)
            else:
                assert chain.head == self.available.pop(0)
                self.order.append(chain.head)
            self.popped.append(chain)

    def push(self, which: int) -> None:
        if self.popped:
            chain = self.popped.pop(which % len(self.popped))
            self.finish(chain)
            self.host.ring.push(chain)

    def torn(self, which: int) -> None:
        if not self.popped:
            return
        count, which = divmod(which, 8)
        chain = self.popped.pop(which % len(self.popped))
        entry = self.host.in_flight()[self.order.index(chain.head)]
        stores, published = self.host.push_stores([(entry, chain, self.host.peek(state(entry) + NUM))])
        for memory, at, data in stores[:count]:
            memory.write(at, data)
        if count > published:
            self.finish(chain)
        self.crash(0)

    def finish(self, chain: Chain) -> None:
        self.order.remove(chain.head)
        self.pushed.append(chain.head)

    def crash(self, _: int) -> None:
        self.host.crash()
        self.popped.clear()
        self.unfinished = self.order.copy()
        assert self.host.ring.unfinished == len(self.unfinished)

    def used(self, _: int) -> None:
        assert self.host.used() == self.pushed
        self.pushed.clear()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(Story.add), st.integers(1, 3)),
        st.tuples(st.just(Story.pop), st.integers(1, 3)),
        st.tuples(st.just(Story.push), st.integers(0, 7)),
        st.tuples(st.just(Story.torn), st.integers(0, 8 * 10 - 1)),
        st.tuples(st.just(Story.crash), st.just(0)),
        st.tuples(st.just(Story.used), st.just(0)),
    ),
    max_size=60,
)


@quick
@given(st.integers(1, 8), STEPS)
def test_nothing_is_lost_and_nothing_used_twice(
    size: int, steps: list[tuple[Callable[[Story, int], None], int]]
) -> None:
    story = Story(size)
    for step, argument in steps:
        step(story, argument)
    story.crash(0)
    while story.unfinished or story.available:
        story.pop(1)
    while story.popped:
        story.push(0)
    story.used(0)
    assert story.host.driver.free == size
    assert story.host.in_flight() == []


# --- What cannot be ----------------------------------------------------------------------------------------

REFUSED: dict[str, Callable[[Host], None]] = {
    "of version 2": lambda host: host.poke(VERSION, 2),
    "of 7 descriptors, 8 expected": lambda host: host.poke(DESC_NUM, 7),
    "at used index 8 of a ring of 8": lambda host: host.poke(USED_IDX, 8),
    "at used index 65535 of a ring of 8": lambda host: host.poke(OLD_USED_IDX, 65535),
    "with 0 descriptors at entry 1": lambda host: host.poke(state(1) + NUM, 0),
    "with 9 descriptors at entry 1": lambda host: host.poke(state(1) + NUM, 9),
    "a chain has entry 1, of 8": lambda host: host.poke(state(0) + NUM, 2),
    "a chain has entry 65535, of 8": lambda host: host.poke(state(1) + NEXT, 65535),
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_area_that_cannot_be_of_this_ring_is_refused(why: str) -> None:
    host = Host()
    host.take(1, 3)
    REFUSED[why](host)
    with pytest.raises(RefusedRequest, match=why):
        host.crash()


def test_an_area_of_the_other_format_is_none_of_this_ring() -> None:
    host = Host()
    with pytest.raises(TypeError):
        device_half(host.driver, host.memory, features=FEATURES, inflight=SplitInflight(host.area, 0, 4))


@quick
@given(
    header=st.binary(min_size=24, max_size=24),
    states=st.lists(
        st.tuples(
            st.integers(0, 1),
            *(st.integers(0, 9) for _ in range(3)),
            st.integers(0, 2**64 - 1),
            st.integers(0, 9),
            st.integers(0, 7),
            st.integers(0, 64),
            st.sampled_from([0, DATA, 2**64 - 1]),
        ),
        min_size=SIZE,
        max_size=SIZE,
    ),
    indices=st.lists(st.integers(0, 9), min_size=4, max_size=4),
)
def test_a_hostile_area_makes_at_most_a_driver_of_the_front_end(
    header: bytes, states: list[tuple[int, ...]], indices: list[int]
) -> None:
    """Chains are popped, each id once; or the ring does not start, or breaks."""
    host = Host()
    host.take(1, 2)
    fields = struct.pack("<QHH4H", 0, 1, SIZE, *indices) + header[:2]
    body = b"".join(struct.pack("<BxHHHQHHIQ", *each) for each in states)
    host.area.write(0, fields.ljust(HEADER, b"\0") + body)
    try:
        host.crash()
    except RefusedRequest:
        return
    ids = []
    try:
        while (chain := host.ring.pop()) is not None:
            ids.append(chain.head)
    except GuestError:
        pass
    assert len(set(ids)) == len(ids)
    assert all(identity < SIZE for identity in ids)


@quick
@given(st.lists(st.binary(min_size=1, max_size=PackedInflight.footprint(SIZE)), min_size=1, max_size=10))
def test_what_is_written_into_the_area_of_a_running_ring_does_not_matter(garbage: list[bytes]) -> None:
    host = Host()
    for data in garbage:
        chains = host.take(1, 2)
        host.area.write(0, data)
        for chain in reversed(chains):
            host.ring.push(chain)
        assert host.used() == [chain.head for chain in reversed(chains)]
