"""What is in flight, in memory that outlives whoever serves the ring: nothing is lost, nothing is used twice.

A crash is a ring that is abandoned as it is, and another that begins in the same memory.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring.machine import DATA, GUEST, PACKED, device_half, memfd, two_regions
from vhostd.errors import BadDescriptor, BadRing, GuestError, MemoryLost, RefusedRequest
from vhostd.ring import Chain, GuestMemory, Region, Ring, ring_format
from vhostd.ring.driver import NEXT as FOLLOWED
from vhostd.ring.driver import SplitDriver, driver_format
from vhostd.ring.driver_packed import PackedDriver
from vhostd.ring.inflight_split import SplitInflight
from vhostd.ring.split import SplitRing

SIZE = 8
ONE = [(DATA, 1, True)]
PAGE = 4096

# Where the fields of the region are (vhost-user, "Inflight I/O tracking").
FEATURES, VERSION, DESC_NUM, LAST_BATCH_HEAD, USED_IDX = 0, 8, 10, 12, 14
HEADER = struct.Struct("<QHHHH")
STATE = struct.Struct("<B5xHQ")
INFLIGHT, NEXT, COUNTER = 0, 6, 8

quick = settings(max_examples=150)


Stores = list[tuple[GuestMemory, int, bytes]]


def state(head: int) -> int:
    """Where the descriptor's state is in the region."""
    return HEADER.size + STATE.size * head


def shared(size: int) -> GuestMemory:
    """So many bytes of a new file, from address 0 on."""
    fd = memfd(size, "inflight")
    try:
        return GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=size)])
    finally:
        os.close(fd)


class Host:
    """A driver's ring and an inflight area, served by one program after the other."""

    def __init__(self, size: int = SIZE, *, room: int = SIZE, base: int = 0) -> None:
        self.memory = two_regions()
        self.driver = SplitDriver(self.memory, GUEST, size, features=0, base=base)
        self.room = room
        self.area = shared(SplitInflight.footprint(room))
        self.ring = self.begin(base)

    def begin(self, base: int) -> Ring:
        """A program that begins to serve; `base` is what the front-end believes."""
        inflight = SplitInflight(self.area, 0, self.room)
        return device_half(self.driver, self.memory, features=0, base=base, inflight=inflight)

    def crash(self) -> None:
        """The program ends, and the front-end gives to the next one the used index, as QEMU does."""
        self.ring = self.begin(self.driver.used_index)

    def pop(self) -> Chain:
        chain = self.ring.pop()
        assert chain is not None
        return chain

    def take(self, count: int) -> list[Chain]:
        """Adds and pops so many chains."""
        for _ in range(count):
            self.driver.add(ONE)
        return [self.pop() for _ in range(count)]

    def drain(self) -> list[int]:
        """Pops and pushes all there is; the heads in that order."""
        heads = []
        while (chain := self.ring.pop()) is not None:
            heads.append(chain.head)
            self.ring.push(chain)
        return heads

    def used(self) -> list[int]:
        """The heads that came back since this was last asked."""
        return [used[0] for used in iter(self.driver.used, None)]

    def header(self) -> tuple[int, ...]:
        return HEADER.unpack(self.area.read(0, HEADER.size))

    def in_flight(self) -> list[int]:
        """The heads that the area says are in flight, oldest first."""
        states = [STATE.unpack(self.area.read(state(head), STATE.size)) for head in range(self.room)]
        return sorted(
            (head for head in range(self.room) if states[head][0]), key=lambda head: int(states[head][2])
        )

    def poke(self, at: int, value: int, size: int = 2) -> None:
        """Writes a field of the area."""
        self.area.write(at, value.to_bytes(size, "little"))

    def snapshot(self) -> bytes:
        """All of the used ring and of the area."""
        used = self.memory.read(self.driver.used_addr, SplitRing.footprint(self.driver.size)[2])
        return used + self.area.read(0, SplitInflight.footprint(self.room))

    def restore(self, snapshot: bytes) -> None:
        """Makes memory again what it was."""
        used_size = SplitRing.footprint(self.driver.size)[2]
        self.memory.write(self.driver.used_addr, snapshot[:used_size])
        self.area.write(0, snapshot[used_size:])

    def pop_stores(self, head: int, age: int) -> Stores:
        """What a pop of this chain stores, in that order; so many were popped before."""
        return [
            (self.area, state(head) + COUNTER, struct.pack("<Q", age)),
            (self.area, state(head) + INFLIGHT, b"\1"),
        ]

    def push_stores(self, chain: Chain) -> Stores:
        """What a push of this chain stores, in that order."""
        index = self.driver.used_index
        element = self.driver.used_addr + 4 + 8 * (index % self.driver.size)
        after = struct.pack("<H", (index + 1) % 65536)
        return [
            (self.memory, element, struct.pack("<I", chain.head)),
            (self.memory, element + 4, struct.pack("<I", chain.written)),
            (self.area, state(chain.head) + NEXT, struct.pack("<H", self.header()[3])),
            (self.area, LAST_BATCH_HEAD, struct.pack("<H", chain.head)),
            (self.memory, self.driver.used_addr + 2, after),
            (self.area, state(chain.head) + INFLIGHT, b"\0"),
            (self.area, USED_IDX, after),
        ]

    def batch_stores(self, chains: list[Chain]) -> Stores:
        """What a push of these chains, all at once, stores."""
        index, last = self.driver.used_index, self.header()[3]
        stores: Stores = []
        for behind, chain in enumerate(chains):
            element = self.driver.used_addr + 4 + 8 * ((index + behind) % self.driver.size)
            stores += [
                (self.memory, element, struct.pack("<I", chain.head)),
                (self.memory, element + 4, struct.pack("<I", chain.written)),
                (self.area, state(chain.head) + NEXT, struct.pack("<H", last)),
                (self.area, LAST_BATCH_HEAD, struct.pack("<H", chain.head)),
            ]
            last = chain.head
        after = struct.pack("<H", (index + len(chains)) % 65536)
        stores.append((self.memory, self.driver.used_addr + 2, after))
        stores += [(self.area, state(chain.head) + INFLIGHT, b"\0") for chain in chains]
        return [*stores, (self.area, USED_IDX, after)]

    def torn_push(self, chain: Chain, count: int) -> None:
        """Pushes as a program does that dies after `count` of its stores, of which there are STORES."""
        for memory, at, data in self.push_stores(chain)[:count]:
            memory.write(at, data)


STORES = 7
PUBLISHED = 5  # stores after which the driver sees the chain


# --- The record -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "length"), [(1, 64), (3, 64), (4, 128), (128, 2112), (32768, 524352)])
def test_footprint(size: int, length: int) -> None:
    assert SplitInflight.footprint(size) == length


def test_a_new_area_begins_with_the_ring() -> None:
    host = Host(room=16, base=7)
    assert host.header() == (0, 1, 16, 0, 7)
    assert (host.ring.base, host.ring.unfinished) == (7, 0)


def test_a_new_area_is_new_whatever_is_in_it() -> None:
    host = Host()
    host.area.write(0, b"\xff" * SplitInflight.footprint(SIZE))
    host.poke(VERSION, 0)
    host.crash()
    assert (host.header(), host.in_flight()) == ((0, 1, SIZE, 0, 0), [])


def test_what_is_in_flight_is_recorded() -> None:
    host = Host()
    chains = host.take(4)
    assert host.in_flight() == [chain.head for chain in chains]
    host.ring.push(chains[2])
    host.ring.push(chains[0])
    assert host.in_flight() == [chains[1].head, chains[3].head]
    assert host.header() == (0, 1, SIZE, chains[0].head, 2)
    assert STATE.unpack(host.area.read(state(chains[0].head), STATE.size))[1] == chains[2].head
    host.drain()
    for chain in (chains[1], chains[3]):
        host.ring.push(chain)
    assert (host.in_flight(), host.header()[4]) == ([], 4)


def test_queues_of_an_area_are_apart() -> None:
    area = shared(2 * SplitInflight.footprint(SIZE))
    memory = two_regions()
    drivers = [SplitDriver(memory, GUEST + at, SIZE) for at in (0, 0x1000)]
    rings = [
        device_half(driver, memory, inflight=SplitInflight(area, index, SIZE))
        for index, driver in enumerate(drivers)
    ]
    for driver in drivers:
        driver.add(ONE)
    assert rings[1].pop() is not None
    assert area.read(state(0), 1) == b"\0"
    assert area.read(SplitInflight.footprint(SIZE) + state(0), 1) == b"\1"


# --- Crashes ----------------------------------------------------------------------------------------------


def test_what_was_in_flight_is_done_again_first_and_in_its_order() -> None:
    host = Host()
    chains = host.take(4)
    heads = [chain.head for chain in chains]
    for which in (3, 1):  # out of order
        host.ring.push(chains[which])
    fresh = host.driver.add(ONE)
    host.crash()
    assert (host.ring.unfinished, host.ring.in_flight, host.ring.base) == (2, 0, 4)
    assert host.drain() == [heads[0], heads[2], fresh]
    assert (host.ring.unfinished, host.ring.base) == (0, 5)
    assert host.used() == [heads[3], heads[1], heads[0], heads[2], fresh]


def test_the_order_is_not_that_of_the_heads() -> None:
    host = Host()
    first = host.take(3)
    for chain in (first[1], first[2], first[0]):
        host.ring.push(chain)
    assert len(host.used()) == 3
    heads = [chain.head for chain in host.take(3)]
    assert heads != sorted(heads)
    for _ in range(2):
        host.crash()
    heads.append(host.driver.add(ONE))
    assert [host.pop().head for _ in range(4)] == heads
    host.crash()
    assert host.drain() == heads


@pytest.mark.parametrize("base", [0, 1, 5, 65535])
def test_the_front_end_s_base_counts_for_a_new_area_only(base: int) -> None:
    host = Host(base=65534)
    chains = host.take(5)
    host.ring.push(chains[4])
    assert host.begin(base).base == 3


@pytest.mark.parametrize("count", range(STORES + 1))
@pytest.mark.parametrize("base", [0, 65535])
def test_a_crash_in_the_middle_of_a_push(count: int, base: int) -> None:
    host = Host(base=base)
    chains = host.take(3)
    host.ring.push(chains[0])
    host.torn_push(chains[1], count)
    host.crash()
    again = chains[2:] if count >= PUBLISHED else chains[1:]
    assert host.drain() == [chain.head for chain in again]
    assert host.used() == [chain.head for chain in chains]
    assert (host.in_flight(), host.header()[4]) == ([], (base + 3) % 65536)


@pytest.mark.parametrize("count", range(17))
@pytest.mark.parametrize("base", [0, 65534])
def test_a_crash_in_the_middle_of_a_batch(count: int, base: int) -> None:
    """The driver gets all three, or none of them and each is done again."""
    host = Host(base=base)
    chains = host.take(5)
    host.ring.push(chains[3])
    batch = [chains[2], chains[0], chains[4]]
    stores = host.batch_stores(batch)
    assert len(stores) == 17
    for memory, at, data in stores[:count]:
        memory.write(at, data)
    host.crash()
    again = [chains[1]] if count > 12 else [chains[i] for i in (0, 1, 2, 4)]
    assert host.drain() == [chain.head for chain in again]
    assert sorted(host.used()) == sorted(chain.head for chain in chains)
    assert (host.in_flight(), host.header()[4]) == ([], (base + 5) % 65536)


def test_what_is_put_back_is_not_in_flight() -> None:
    host = Host()
    chains = host.take(4)
    heads = [chain.head for chain in chains]
    host.ring.push(chains[1])
    for chain in (chains[3], chains[2]):
        host.ring.put_back(chain)
    assert host.in_flight() == [heads[0]]
    host.crash()
    assert (host.ring.unfinished, host.ring.base) == (1, 2)
    assert host.drain() == [heads[0], heads[2], heads[3]]


def test_what_was_unfinished_and_is_put_back_is_unfinished() -> None:
    host = Host()
    heads = [chain.head for chain in host.take(2)]
    host.crash()
    heads.append(host.driver.add(ONE))
    chains = [host.pop() for _ in range(3)]
    for chain in reversed(chains):
        host.ring.put_back(chain)
    assert (host.ring.unfinished, host.ring.base, host.in_flight()) == (2, 2, heads[:2])
    assert host.drain() == heads


def test_a_batch_of_another_program() -> None:
    """It published three chains at once, and died while it recorded that they are not in flight."""
    host = Host()
    chains = host.take(5)
    heads = [chain.head for chain in chains]
    for before, head in zip([heads[4], *heads], heads[:3], strict=False):
        host.poke(state(head) + NEXT, before)
    host.poke(LAST_BATCH_HEAD, heads[2])
    host.poke(state(heads[1]) + INFLIGHT, 0, 1)
    for i, head in enumerate(heads[:3]):
        host.memory.write(host.driver.used_addr + 4 + 8 * i, struct.pack("<II", head, 0))
    host.memory.write(host.driver.used_addr + 2, struct.pack("<H", 3))
    host.crash()
    assert host.in_flight() == heads[3:]
    assert host.drain() == heads[3:]
    assert host.used() == heads


def test_a_ring_with_something_unfinished_does_not_sleep() -> None:
    host = Host()
    host.take(1)
    host.crash()
    assert host.ring.arm()
    chain = host.pop()
    assert not host.ring.arm()
    host.ring.push(chain)


def test_an_unfinished_chain_that_is_broken_stays_unfinished() -> None:
    host = Host()
    (chain,) = host.take(1)
    host.crash()
    host.driver.descriptor(chain.head, DATA, 1, FOLLOWED, 0xFFFF)
    for _ in range(2):
        with pytest.raises(BadDescriptor):
            host.ring.pop()
    assert (host.ring.unfinished, host.ring.in_flight) == (1, 0)
    host.driver.descriptor(chain.head, DATA, 1, 0, 0)
    assert host.drain() == [chain.head]


def test_a_chain_that_is_broken_was_never_in_flight() -> None:
    host = Host()
    host.driver.descriptor(3, DATA, 1, FOLLOWED, 0xFFFF)
    host.driver.offer(3)
    host.driver.publish()
    with pytest.raises(BadDescriptor):
        host.ring.pop()
    assert host.in_flight() == []


def test_a_ring_may_be_smaller_than_the_area_says() -> None:
    host = Host(4, room=16)
    heads = [chain.head for chain in host.take(2)]
    host.poke(state(9) + INFLIGHT, 1, 1)  # no descriptor of this ring
    host.crash()
    assert host.drain() == heads


def test_an_area_of_a_ring_that_has_begun_anew() -> None:
    """Nothing is in flight in it: that its indices are old does no harm."""
    host = Host()
    host.take(1)
    host.crash()
    host.drain()
    host.poke(USED_IDX, 0x1234)
    host.crash()
    assert (host.ring.base, host.ring.unfinished, host.header()[4]) == (1, 0, 1)


@pytest.mark.parametrize("what", ["pop", "push", "batch", "put back"])
def test_the_order_of_the_stores(what: str) -> None:
    """The memory is looked at after each machine instruction: other states than these no crash can leave."""
    host = Host()
    first, second, third = host.take(3)
    host.ring.push(first)
    second.write(b"x")
    fresh = host.driver.add(ONE)
    actions: dict[str, tuple[Callable[[], object], Stores]] = {
        "pop": (host.ring.pop, host.pop_stores(fresh, age=3)),
        "push": (lambda: host.ring.push(second), host.push_stores(second)),
        "batch": (lambda: host.ring.push_all([third, second]), host.batch_stores([third, second])),
        "put back": (lambda: host.ring.put_back(third), [(host.area, state(third.head) + INFLIGHT, b"\0")]),
    }
    action, stores = actions[what]
    seen = [host.snapshot()]
    for _ in single_steps(action):
        if (now := host.snapshot()) != seen[-1]:
            seen.append(now)
    expected = [seen[0]]
    host.restore(seen[0])
    for memory, at, data in stores:
        memory.write(at, data)
        if (now := host.snapshot()) != expected[-1]:  # some bytes are what they were
            expected.append(now)
    assert len(expected) > len(stores) // 2
    assert seen == expected


libc = ctypes.CDLL(None)
libc.ptrace.argtypes = [ctypes.c_long] * 4
PTRACE_TRACEME, PTRACE_SINGLESTEP = 0, 9


def single_steps(action: Callable[[], object]) -> Iterator[None]:
    """Does it in another process, which stops after each instruction."""
    child = os.fork()
    if not child:
        with ending():
            if libc.ptrace(PTRACE_TRACEME, 0, 0, 0) == 0:
                os.kill(os.getpid(), signal.SIGSTOP)
                action()
    while os.WIFSTOPPED(os.waitpid(child, 0)[1]):
        yield
        libc.ptrace(PTRACE_SINGLESTEP, child, 0, 0)


@contextmanager
def ending() -> Iterator[None]:
    """A child process ends with this block, whatever happens in it: it must not go on as a second pytest."""
    try:
        yield
    finally:
        os._exit(0)


KILLS = 40
BUSY = 256  # chains, which keep the program at work while it is killed
HELD = 3


@pytest.mark.parametrize("features", [0, PACKED], ids=["split", "packed"])
def test_a_program_that_is_killed(features: int) -> None:
    """As it is: another process, and SIGKILL whenever it may be."""
    memory = shared(4 * PAGE)
    driver = driver_format(features)(memory, 0, BUSY, features=features)
    form = ring_format(features)
    area = shared(form.INFLIGHT.footprint(BUSY))

    def device() -> Ring:
        return device_half(driver, memory, features=features, inflight=form.INFLIGHT(area, 0, BUSY))

    added: set[int] = set()
    for _ in range(KILLS):
        child = os.fork()
        if not child:
            with ending():
                serve(device())
        for _ in range(10):
            while driver.free:
                added.add(driver.add(ONE_HERE))
            collect(driver, added, BUSY // 2, child)
        while driver.free:
            added.add(driver.add(ONE_HERE))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert device().unfinished >= HELD - 1
    ring = device()
    while (chain := ring.pop()) is not None:
        ring.push(chain)
    while (used := driver.used()) is not None:
        added.remove(used[0])
    assert not added


ONE_HERE = [(3 * PAGE, 1, True)]


def collect(driver: SplitDriver | PackedDriver, added: set[int], count: int, child: int) -> None:
    """Takes so many used chains from the program, each of which must have been added."""
    while count:
        if (used := driver.used()) is not None:
            added.remove(used[0])
            count -= 1
        else:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the program has ended"


def serve(ring: Ring) -> None:
    """Serves the ring, the youngest chain first, until the end of this process."""
    held: list[Chain] = []
    while True:
        if (chain := ring.pop()) is not None:
            held.append(chain)
        if len(held) == HELD:
            ring.push(held.pop())


class Story:
    """A driver and its devices, and what should be between them."""

    def __init__(self, size: int, base: int) -> None:
        self.host = Host(size, room=size, base=base)
        self.available: list[int] = []
        self.unfinished: list[int] = []  # popped before the last crash, and not again yet
        self.order: list[int] = []  # all that is in flight, as it was first popped
        self.popped: list[Chain] = []
        self.pushed: list[int] = []

    def add(self, count: int) -> None:
        for _ in range(min(count, self.host.driver.free)):
            self.available.append(self.host.driver.add(ONE))

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
            self.finish(chain := self.popped.pop(which % len(self.popped)))
            self.host.ring.push(chain)

    def torn(self, which: int) -> None:
        if self.popped:
            count, which = divmod(which, 8)
            chain = self.popped.pop(which % len(self.popped))
            self.host.torn_push(chain, count)
            if count >= PUBLISHED:
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
        assert self.host.in_flight() == self.order

    def used(self, _: int) -> None:
        assert self.host.used() == self.pushed
        self.pushed.clear()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just(Story.add), st.integers(1, 3)),
        st.tuples(st.just(Story.pop), st.integers(1, 3)),
        st.tuples(st.just(Story.push), st.integers(0, 7)),
        st.tuples(st.just(Story.torn), st.integers(0, 8 * (STORES + 1) - 1)),
        st.tuples(st.just(Story.crash), st.just(0)),
        st.tuples(st.just(Story.used), st.just(0)),
    ),
    max_size=60,
)


@quick
@given(st.sampled_from([1, 2, 8]), st.sampled_from([0, 65530]), STEPS)
def test_nothing_is_lost_and_nothing_used_twice(
    size: int, base: int, steps: list[tuple[Callable[[Story, int], None], int]]
) -> None:
    story = Story(size, base)
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


def test_the_area_must_hold_the_region() -> None:
    area = shared(2 * SplitInflight.footprint(SIZE))
    with pytest.raises(BadDescriptor):
        SplitInflight(area, 2, SIZE)
    with pytest.raises(BadDescriptor):
        SplitInflight(area, 0, 32768)


def test_the_area_must_be_aligned() -> None:
    fd = memfd(PAGE)
    try:
        area = GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=PAGE - 4, offset=4)])
    finally:
        os.close(fd)
    with pytest.raises(RefusedRequest, match="not aligned to 8 bytes"):
        SplitInflight(area, 0, SIZE)


def test_the_ring_must_not_be_larger_than_the_area_says() -> None:
    with pytest.raises(RefusedRequest, match="for 4 descriptors, and a ring of 8"):
        Host(8, room=4)


def forge_batch(host: Host, head: int, count: int) -> None:
    """A last batch of so many chains, from this head on to 65535."""
    host.poke(USED_IDX, host.driver.used_index - count & 0xFFFF)
    host.poke(LAST_BATCH_HEAD, head)
    host.poke(state(0) + NEXT, 65535)


REFUSED: dict[str, Callable[[Host], None]] = {
    "version 2 with features 0x0": lambda host: host.poke(VERSION, 2),
    "version 1 with features 0x1": lambda host: host.poke(FEATURES, 1, 8),
    "of 7 descriptors, 8 expected": lambda host: host.poke(DESC_NUM, 7),
    "at used index 2 of a ring at 1": lambda host: host.poke(USED_IDX, 2),
    "at used index 65528 of a ring at 1": lambda host: host.poke(USED_IDX, 65528),
    "has head 8, of 8": lambda host: forge_batch(host, 8, 1),
    "has head 65535, of 8": lambda host: forge_batch(host, 0, 2),
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_area_that_cannot_be_of_this_ring_is_refused(why: str) -> None:
    host = Host()
    host.ring.push(host.take(2)[1])
    REFUSED[why](host)
    with pytest.raises(RefusedRequest, match=why):
        host.crash()


FIELDS = st.one_of(st.integers(0, 9), st.integers(0, 65535))


@quick
@given(
    header=st.tuples(
        st.sampled_from([0, 0, 0, 1, 2**63]),
        st.sampled_from([0, 1, 1, 1, 1, 2]),
        st.just(SIZE),
        FIELDS,
        FIELDS,
    ),
    states=st.lists(
        st.tuples(st.integers(0, 3), FIELDS, st.integers(0, 2**64 - 1)), min_size=SIZE, max_size=SIZE
    ),
    used_index=FIELDS,
)
def test_a_hostile_area_makes_at_most_a_driver_of_the_front_end(
    header: tuple[int, int, int, int, int], states: list[tuple[int, int, int]], used_index: int
) -> None:
    """Heads of the ring are popped again, each once; or the ring does not start, or breaks."""
    host = Host()
    host.take(3)
    host.memory.write(host.driver.used_addr + 2, struct.pack("<H", used_index))
    host.area.write(0, HEADER.pack(*header) + b"".join(STATE.pack(*each) for each in states))
    try:
        host.crash()
    except RefusedRequest:
        return
    heads = []
    try:
        while (chain := host.ring.pop()) is not None:
            heads.append(chain.head)
    except GuestError:
        pass
    assert len(set(heads)) == len(heads)
    assert all(head < SIZE for head in heads)


@quick
@given(st.lists(st.binary(min_size=1, max_size=SplitInflight.footprint(SIZE)), min_size=1, max_size=10))
def test_what_is_written_into_the_area_of_a_running_ring_does_not_matter(garbage: list[bytes]) -> None:
    host = Host()
    for data in garbage:
        chains = host.take(2)
        host.area.write(0, data)
        for chain in chains:
            host.ring.push(chain)
        assert host.used() == [chain.head for chain in chains]


def test_a_head_that_is_unfinished_may_not_be_available_as_well() -> None:
    host = Host()
    head = host.driver.add(ONE)
    host.poke(state(head) + INFLIGHT, 1, 1)
    host.driver.set_avail_index(2)  # as if it had been popped; the second element names it too
    host.crash()
    assert host.pop().head == head
    with pytest.raises(BadRing, match="in flight already"):
        host.ring.pop()


# --- A file that shrinks ----------------------------------------------------------------------------------


class Shrinking(Host):
    """Whose area is a file that is about to shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.fd = memfd(PAGE)
        self.area = GuestMemory([Region(self.fd, guest_addr=0, user_addr=0, size=PAGE)])
        self.crash()

    def shrink(self) -> None:
        os.ftruncate(self.fd, 0)

    def close(self) -> None:
        """Lets go of the file: a fixture's value outlives the test's check for what it left mapped."""
        os.close(self.fd)
        del self.memory, self.driver, self.ring, self.area


@pytest.fixture
def host() -> Iterator[Shrinking]:
    host = Shrinking()
    yield host
    host.close()


def test_it_shrinks_before_a_pop(host: Shrinking) -> None:
    host.driver.add(ONE)
    host.shrink()
    with pytest.raises(MemoryLost):
        host.ring.pop()
    assert (host.ring.in_flight, host.ring.base) == (0, 0)


def test_it_shrinks_before_a_push(host: Shrinking) -> None:
    (chain,) = host.take(1)
    host.shrink()
    with pytest.raises(MemoryLost):
        host.ring.push(chain)
    assert host.ring.in_flight == 0


def test_it_shrinks_before_a_start(host: Shrinking) -> None:
    host.shrink()
    with pytest.raises(MemoryLost):
        host.crash()
