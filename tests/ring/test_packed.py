"""A packed ring: what is its own, beside what test_properties.py says of both formats."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring.machine import (
    BOTH,
    DATA,
    END,
    EVENT_IDX,
    GUEST,
    INDIRECT_DESC,
    PACKED,
    SIZE,
    Machine,
    two_regions,
)
from vhostd.errors import BadDescriptor, BadRequest, BadRing, GuestError, RefusedRequest
from vhostd.ring import Ring
from vhostd.ring.driver_packed import PackedDriver
from vhostd.ring.packed import PackedRing

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000
ONE = [(DATA, 16, True)]
ALL = BOTH | PACKED

quick = settings(max_examples=150)


def machine(size: int = 4, *, features: int = ALL, base: int | None = None) -> Machine:
    return Machine(size, features=features | PACKED, base=base)


def ring_at(base: int, driver: PackedDriver, machine: Machine) -> Ring:
    """A device that begins at `base` in the driver's ring."""
    desc, avail, used = PackedRing.footprint(driver.size)
    memory = machine.memory
    return PackedRing(
        driver.size,
        memory.guest(driver.desc_addr, desc),
        memory.guest(driver.avail_addr, avail),
        memory.guest(driver.used_addr, used),
        memory,
        features=ALL,
        base=base,
    )


def slot(machine: Machine, i: int) -> tuple[int, int, int, int]:
    """Descriptor `i`: addr, len, id, flags."""
    addr, length, identity, flags = struct.unpack(
        "<QIHH", machine.memory.read(machine.driver.desc_addr + 16 * i, 16)
    )
    return addr, length, identity, flags


def go_round(machine: Machine, count: int) -> None:
    """So many chains of one descriptor, there and back."""
    for _ in range(count):
        machine.driver.add(ONE)
        machine.ring.push(machine.pop())
        assert machine.driver.used() is not None


# --- Where it begins ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5, 1000, 32768])
def test_any_size(size: int) -> None:
    PackedRing.check_size(size)
    assert PackedRing.footprint(size) == (16 * size, 4, 4)


@pytest.mark.parametrize("size", [0, 32769, 2**32 - 1])
def test_no_such_size(size: int) -> None:
    with pytest.raises(RefusedRequest, match="from 1 to 32768"):
        PackedRing.check_size(size)


@pytest.mark.parametrize("base", [0x8000_8000, 0x8003_8003, 0x0002_0002])
def test_it_goes_on_where_it_stopped(base: int) -> None:
    side = machine(base=base)
    assert side.ring.base == base
    go_round(side, 9)
    side.driver.add(ONE)
    ring = ring_at(side.ring.base, side.driver, side)
    assert ring.pop() is not None
    assert ring.pop() is None


def test_a_chain_that_is_out_is_between_the_positions() -> None:
    side = machine()
    side.driver.add([(DATA, 4, False), (DATA, 4, True), (DATA, 4, True)])
    side.driver.add(ONE)
    first, second = side.pop(), side.pop()
    assert (side.ring.base, side.ring.spell(side.ring.base)) == (0x8000_0000, "0:0, used 0:1")
    side.ring.push(second)
    assert side.ring.spell(side.ring.base) == "0:0, used 1:1"
    side.ring.push(first)
    assert (side.ring.base, side.ring.spell(side.ring.base)) == (0, "0:0")


def test_the_lower_half_alone_says_both_positions() -> None:
    """As DPDK's front-end has it."""
    side = machine()
    assert ring_at(0x8000, side.driver, side).base == 0x8000_8000
    assert ring_at(0x0003, side.driver, side).base == 0x0003_0003


def test_a_new_ring_may_begin_at_0() -> None:
    """As User-mode Linux has it; whose driver begins with wrap counters of 1, as all do."""
    side = machine()
    side.driver.add(ONE)
    ring = ring_at(0, side.driver, side)
    assert ring.pop() is not None


@pytest.mark.parametrize("size", [1, 3, 4])
def test_a_ring_after_a_round_is_at_0_and_not_new(size: int) -> None:
    side = machine(size)
    go_round(side, size)
    assert side.ring.base == 0
    side.driver.add(ONE)
    ring = ring_at(0, side.driver, side)
    assert ring.base == 0
    assert ring.pop() is not None


@pytest.mark.parametrize("base", [0x8004_8004, 0x7FFF_7FFF, 0x8003_8002, 0x8001_0002, 0xFFFF_8000])
def test_positions_that_cannot_be(base: int) -> None:
    side = machine()
    with pytest.raises(RefusedRequest, match="of a ring of 4 descriptors"):
        ring_at(base, side.driver, side)


# --- Chains -------------------------------------------------------------------------------------------------


def test_the_id_is_that_of_the_last_descriptor() -> None:
    side = machine()
    side.driver.offer([(DATA, 4, 77, NEXT), (DATA + 8, 4, 2, WRITE)])
    chain = side.pop()
    assert (chain.head, chain.readable, chain.writable) == (2, 4, 4)


def test_a_used_descriptor_says_what_was_written() -> None:
    side = machine()
    side.driver.add([(DATA, 4, False), (DATA + 8, 4, True)])
    side.driver.add([(DATA, 4, False)])
    first, second = side.pop(), side.pop()
    first.write(b"abc")
    side.ring.push(first)
    side.ring.push(second)
    assert slot(side, 0)[1:] == (3, first.head, AVAIL | USED | WRITE)
    assert slot(side, 2)[1:] == (0, second.head, AVAIL | USED)
    assert [side.driver.used(), side.driver.used(), side.driver.used()] == [
        (first.head, 3),
        (second.head, 0),
        None,
    ]


def test_a_batch_is_hidden_until_it_is_whole() -> None:
    """The driver looks at the first of its descriptors; the others may be marked before."""
    side = machine()
    for _ in range(3):
        side.driver.add(ONE)
    chains = [side.pop() for _ in range(3)]
    side.ring.push_all(chains)
    assert [side.driver.used() for _ in range(4)] == [(chain.head, 0) for chain in chains] + [None]


def test_flags_in_a_table_do_not_matter_but_write() -> None:
    side = machine()
    side.memory.write(
        DATA,
        b"".join(
            struct.pack("<QIHH", DATA, length, 9, flags)
            for length, flags in ((1, NEXT | INDIRECT), (2, WRITE), (3, WRITE | NEXT))
        ),
    )
    side.driver.offer([(DATA, 48, 3, INDIRECT)])
    chain = side.pop()
    assert (chain.head, chain.readable, chain.writable) == (3, 1, 5)


def test_a_table_may_follow_buffers() -> None:
    side = machine()
    side.memory.write(DATA, struct.pack("<QIHH", DATA, 5, 0, WRITE))
    side.driver.offer([(DATA, 4, 0, NEXT), (DATA, 16, 1, INDIRECT)])
    chain = side.pop()
    assert (chain.head, chain.readable, chain.writable) == (1, 4, 5)


def test_what_was_put_back_is_popped_again() -> None:
    side = machine(3)
    go_round(side, 2)
    side.driver.add([(DATA, 4, False), (DATA, 4, True)])
    base = side.ring.base
    chain = side.pop()
    side.ring.put_back(chain)
    assert side.ring.base == base
    again = side.pop()
    assert again.head == chain.head
    side.ring.push(again)
    assert side.driver.used() == (chain.head, 0)


def test_a_whole_ring_is_put_back() -> None:
    side = machine(2)
    side.driver.add([(DATA, 4, False), (DATA, 4, True)])
    base = side.ring.base
    side.ring.put_back(side.pop())
    assert side.ring.base == base
    side.ring.push(side.pop())
    assert side.ring.base == 0


BROKEN: dict[str, tuple[type[Exception], list[tuple[int, int, int, int]]]] = {
    "buffer id 4 of 4 descriptors": (BadRing, [(DATA, 4, 4, 0)]),
    "buffer id 65535 of 4 descriptors": (BadRing, [(DATA, 4, 65535, 0)]),
    "has more than the 4 descriptors": (BadRing, [(DATA, 4, 0, NEXT)] * 4),
    "INDIRECT together with NEXT": (BadDescriptor, [(DATA, 16, 0, NEXT | INDIRECT)]),
    "a readable buffer at": (BadDescriptor, [(DATA, 1, 0, NEXT | WRITE), (DATA, 1, 0, 0)]),
    "not a whole number": (BadDescriptor, [(DATA, 17, 0, INDIRECT)]),
}


@pytest.mark.parametrize("why", BROKEN)
def test_what_cannot_be_breaks_the_ring_and_leaves_it_as_it_was(why: str) -> None:
    kind, descriptors = BROKEN[why]
    side = machine()
    base = side.ring.base
    side.driver.offer(descriptors)
    for _ in range(2):
        with pytest.raises(kind, match=why):
            side.ring.pop()
    assert (side.ring.base, side.ring.in_flight) == (base, 0)


def test_an_id_may_not_be_in_flight_twice() -> None:
    side = machine()
    side.driver.offer([(DATA, 4, 1, 0)])
    side.driver.offer([(DATA, 4, 1, 0)])
    side.pop()
    with pytest.raises(BadRing, match="buffer id 1 is in flight already"):
        side.ring.pop()


def test_a_chain_may_not_reach_into_others_that_are_out() -> None:
    side = machine()
    side.driver.offer([(DATA, 4, 0, NEXT), (DATA, 4, 0, 0)])
    side.pop()
    side.driver.offer([(DATA, 4, 1, NEXT), (DATA, 4, 1, NEXT)])
    with pytest.raises(BadRing, match="has more than the 2 descriptors"):
        side.ring.pop()


def test_an_availability_that_is_taken_back_is_still_a_chain() -> None:
    """`is_empty` was False: what is served then has whatever is there."""
    side = machine()
    side.driver.add(ONE)
    assert not side.ring.is_empty
    addr, length, identity, flags = slot(side, 0)
    side.driver.descriptor(0, addr, length, identity, flags ^ AVAIL)
    assert side.pop().head == identity


# --- Event suppression --------------------------------------------------------------------------------------


def test_kicks_without_event_idx() -> None:
    side = machine(features=0)
    assert side.ring.arm() is False
    assert side.driver.device_event == 0
    side.driver.add(ONE)
    assert side.driver.must_kick()
    side.ring.disarm()
    assert side.driver.device_event >> 16 == 1
    side.driver.add(ONE)
    assert not side.driver.must_kick()
    assert side.ring.arm() is True


def test_kicks_by_position() -> None:
    side = machine()
    go_round(side, 6)  # at 2, in the second round
    side.driver.must_kick()
    assert side.ring.arm() is False
    assert side.driver.device_event == 2 << 16 | 2
    side.driver.add(ONE)
    assert side.driver.must_kick()
    side.driver.add(ONE)
    assert not side.driver.must_kick()


@pytest.mark.parametrize("flags", [0, 1, 2, 3])
@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_interrupts_by_flags(flags: int, features: int) -> None:
    side = machine(features=features)
    side.driver.suppress(0x8000, flags)
    side.driver.add(ONE)
    side.ring.push(side.pop())
    assert side.ring.must_call() == (flags != 1)
    assert not side.ring.must_call()


@pytest.mark.parametrize("size", [3, 4])
def test_interrupts_by_position(size: int) -> None:
    """One for each position that is asked for, whatever the round."""
    side = machine(size)
    for _ in range(4 * size):
        at = side.driver.used_at
        side.driver.suppress(at, 2)
        side.driver.add([(DATA, 4, False), (DATA, 4, True)])
        side.ring.push(side.pop())
        assert side.ring.must_call()
        side.driver.used()
        side.driver.suppress(at, 2)  # of the past
        side.driver.add(ONE)
        side.ring.push(side.pop())
        assert not side.ring.must_call()
        side.driver.used()


def test_a_whole_round_at_once_passes_every_position() -> None:
    side = machine()
    side.driver.suppress(0x8000 | 3, 2)
    for _ in range(4):
        side.driver.add(ONE)
    side.ring.push_all([side.pop() for _ in range(4)])
    assert side.ring.must_call()


# --- Garbage ------------------------------------------------------------------------------------------------

ADDRESSES = st.one_of(st.sampled_from([0, DATA, END - 16, END - 1, END, 2**64 - 1]), st.integers(GUEST, END))
LENGTHS = st.one_of(st.sampled_from([0, 1, 15, 16, 32, 80, SIZE, 2**32 - 1]), st.integers(0, 2**32 - 1))
FLAGS = st.one_of(st.integers(0, 7), st.integers(0, 65535))
DESCRIPTORS = st.tuples(ADDRESSES, LENGTHS, st.one_of(st.integers(0, 5), st.integers(0, 65535)), FLAGS)


class Broken(Exception):
    """The simple reading refuses a chain."""


def simple(side: Machine, features: int) -> tuple[int, int, int, int]:
    """The chain at descriptor 0 of a new ring, read slowly: id, length, bytes to read and to write."""
    buffers = []
    for at in range(side.driver.size):
        addr, length, identity, flags = slot(side, at)
        if flags & INDIRECT:
            if not features & INDIRECT_DESC or flags & NEXT or not length or length % 16 or length > 16 << 10:
                raise Broken
            if not GUEST <= addr <= addr + length <= END:
                raise Broken
            table = side.memory.read(addr, length)
            buffers += [(size, bool(kind & WRITE)) for _, size, _, kind in struct.iter_unpack("<QIHH", table)]
            break
        buffers.append((length, bool(flags & WRITE)))
        if not flags & NEXT:
            break
    else:
        raise Broken
    directions = [writes for _, writes in buffers]
    if directions != sorted(directions) or sum(length for length, _ in buffers) >= 2**32 or identity >= 4:
        raise Broken
    return (
        identity,
        at + 1,
        sum(length for length, writes in buffers if not writes),
        sum(length for length, writes in buffers if writes),
    )


@quick
@given(
    features=st.sampled_from([0, BOTH]),
    table=st.lists(DESCRIPTORS, min_size=4, max_size=4),
    nested=st.lists(DESCRIPTORS, min_size=5, max_size=5),
)
def test_garbage_in_descriptors(
    features: int, table: list[tuple[int, int, int, int]], nested: list[tuple[int, int, int, int]]
) -> None:
    side = machine(features=features)
    side.memory.write(DATA, b"".join(struct.pack("<QIHH", *each) for each in nested))
    for at, descriptor in enumerate(table):
        side.driver.descriptor(at, *descriptor)
    first = slot(side, 0)
    side.driver.descriptor(0, *first[:3], first[3] & ~USED | AVAIL)
    try:
        expected = simple(side, features)
    except Broken:
        with pytest.raises(GuestError):
            side.ring.pop()
        return
    chain = side.pop()
    identity, count, readable, writable = expected
    assert (chain.head, chain.readable, chain.writable) == (identity, readable, writable)
    side.ring.push(chain)
    assert side.ring.base == (0x0001_0001 * (0x8000 + count) if count < 4 else 0)


@quick
@given(
    content=st.binary(min_size=64, max_size=100), pops=st.integers(1, 6), features=st.sampled_from([0, BOTH])
)
def test_garbage_in_the_whole_ring(content: bytes, pops: int, features: int) -> None:
    side = machine(features=features)
    side.memory.write(GUEST, content)
    for _ in range(pops):
        try:
            chain = side.ring.pop()
        except GuestError:
            continue
        if chain is not None:
            chain.skip(chain.readable)
            with suppress(BadRequest):  # not all of it is guest memory
                chain.write(bytes(min(chain.writable, SIZE)))
            side.ring.push(chain)
        side.ring.arm()
        side.ring.must_call()
        side.ring.disarm()


def test_a_ring_in_two_regions_is_refused() -> None:
    memory = two_regions()
    with pytest.raises(BadDescriptor):
        memory.guest(GUEST + SIZE // 2 - 16, PackedRing.footprint(4)[0])
