"""The device half of a split virtqueue under a driver that keeps the rules."""

import os
import threading
from collections.abc import Iterator

import pytest

from tests.ring.machine import (
    BOTH,
    DATA,
    EVENT_IDX,
    GUEST,
    INDIRECT_DESC,
    SEAM,
    USER,
    Machine,
    device_half,
    memfd,
    two_regions,
    unmade,
)
from vhostd.errors import BadDescriptor, RefusedRequest
from vhostd.ring import Chain, GuestMemory, Region
from vhostd.ring.driver import SplitDriver
from vhostd.ring.split import SplitRing

ONE = [(DATA, 1, True)]


# --- Construction ------------------------------------------------------------------------------------------


def test_footprint() -> None:
    assert SplitRing.footprint(1) == (16, 8, 14)
    assert SplitRing.footprint(256) == (4096, 518, 2054)
    assert SplitRing.footprint(2**32 - 1)[0] == 16 * (2**32 - 1)


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_sizes(size: int) -> None:
    machine = Machine(size)
    chain = machine.chain(ONE)
    machine.ring.push(chain)
    assert (machine.ring.size, machine.driver.used()) == (size, (0, 0))


def test_largest_size() -> None:
    memory = two_regions()
    window = memory.guest(GUEST, 0x1000)
    with pytest.raises(RefusedRequest, match="4096 bytes, 524288 needed"):  # the size itself is no problem
        SplitRing(32768, window, window, window, memory, features=0, base=0)


@pytest.mark.parametrize("size", [0, -1, 3, 7, 1000, 32769, 65536, 2**32, 2**64])
def test_size_refused(size: int) -> None:
    memory = two_regions()
    window = memory.guest(GUEST, 0x1000)
    with pytest.raises(RefusedRequest, match=f"queue size {size}"):
        SplitRing(size, window, window, window, memory, features=0, base=0)


@pytest.mark.parametrize("base", [-1, 65536, 2**32])
def test_base_refused(base: int) -> None:
    with pytest.raises(RefusedRequest, match=f"avail index {base}"):
        device_half(Machine().driver, two_regions(), base=base)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("shift", [(0, -1), (1, 0)], ids=["short", "misaligned"])
def test_window_refused(which: int, shift: tuple[int, int]) -> None:
    memory = two_regions()
    ring = [memory.guest(GUEST + 0x1000 * i, length) for i, length in enumerate(SplitRing.footprint(8))]
    ring[which] = memory.guest(GUEST + 0x1000 * which + shift[0], len(ring[which]) + shift[1])
    with pytest.raises(RefusedRequest, match=["descriptor table", "avail ring", "used ring"][which]):
        SplitRing(8, ring[0], ring[1], ring[2], memory, features=0, base=0)


@pytest.mark.parametrize("alignment", [8, 1, 2])
def test_half_aligned_window_refused(alignment: int) -> None:
    memory = two_regions()
    which = {8: 0, 1: 1, 2: 2}[alignment]
    ring = [memory.guest(GUEST + 0x1000 * i, length) for i, length in enumerate(SplitRing.footprint(8))]
    ring[which] = memory.guest(GUEST + 0x1000 * which + alignment, len(ring[which]))
    with pytest.raises(RefusedRequest, match=f"not aligned to {2 * alignment}"):
        SplitRing(8, ring[0], ring[1], ring[2], memory, features=0, base=0)


def test_ring_at_the_last_byte_of_a_region() -> None:
    memory = two_regions()
    desc, avail, used = SplitRing.footprint(4)
    ring = SplitRing(
        4,
        memory.guest(GUEST, desc),
        memory.guest(GUEST + desc, avail),
        memory.guest(SEAM - 40, used),
        memory,
        features=BOTH,
        base=0,
    )
    assert used == 38
    assert not ring.arm()


def test_windows_must_be_of_the_memory() -> None:
    machine = Machine()
    with pytest.raises(ValueError, match="does not belong"):
        device_half(machine.driver, machine.memory).remap(
            two_regions(), *(machine.memory.guest(GUEST, 0x1000) for _ in range(3))
        )


# --- Chains ------------------------------------------------------------------------------------------------


def test_pop_and_push() -> None:
    machine = Machine()
    assert machine.ring.pop() is None
    first = machine.driver.add([(DATA, 4, False), (DATA + 16, 8, True)])
    second = machine.driver.add([(DATA + 32, 2, True)])
    chains = [machine.pop(), machine.pop()]
    assert [chain.head for chain in chains] == [first, second]
    assert (machine.ring.pop(), machine.ring.in_flight, machine.ring.base) == (None, 2, 2)
    chains[1].write(b"ab")
    machine.ring.push(chains[1])
    assert machine.driver.used() == (second, 2)
    machine.ring.push(chains[0])
    assert machine.driver.used() == (first, 0)
    assert (machine.driver.used(), machine.ring.in_flight) == (None, 0)


@pytest.mark.parametrize("base", [0, 65530])
def test_indices_wrap(base: int) -> None:
    machine = Machine(4, base=base)
    for i in range(1, 20):
        chain = machine.chain(ONE)
        chain.write(b"x")
        machine.ring.push(chain)
        assert machine.driver.used() == (chain.head, 1)
        assert machine.ring.base == machine.driver.used_index == (base + i) % 65536


def test_used_index_goes_on_where_guest_memory_says() -> None:
    machine = Machine(4, base=7)
    machine.ring.push(machine.chain(ONE))
    again = device_half(machine.driver, machine.memory, base=8)
    machine.driver.add(ONE)
    chain = again.pop()
    assert chain is not None
    again.push(chain)
    assert machine.driver.used_index == 9


def test_used_index_is_not_read_back() -> None:
    machine = Machine(4)
    machine.memory.write(machine.driver.used_addr + 2, b"\x55\x55")
    machine.ring.push(machine.chain(ONE))
    assert machine.driver.used_index == 1


def test_longest_chains() -> None:
    machine = Machine(8)
    chain = machine.chain([(DATA + i, 1, False) for i in range(8)])
    assert chain.readable == 8
    machine.ring.push(chain)
    machine.driver.used()
    chain = machine.chain([(DATA + i, 1, True) for i in range(8)], indirect=DATA + 0x1000)
    assert chain.writable == 8


@pytest.mark.parametrize("count", [9, 129, 1024])
def test_a_chain_that_is_longer_than_the_ring(count: int) -> None:
    """As Windows' drivers make them, and Linux' in a ring that is smaller than the device suggests."""
    machine = Machine()
    buffers = [(DATA + i, 1, i >= count // 2) for i in range(count)]
    chain = machine.chain(buffers, indirect=DATA + 0x1000)
    assert (chain.readable, chain.writable) == (count // 2, count - count // 2)
    machine.ring.push(chain)


def test_a_table_in_two_regions() -> None:
    machine = Machine()
    chain = machine.chain([(DATA + i, 1, False) for i in range(4)], indirect=SEAM - 24)
    assert chain.readable == 4
    machine.ring.push(chain)


def test_direct_descriptors_before_an_indirect_one() -> None:
    machine = Machine()
    machine.memory.write(DATA, b"abcd")
    machine.table(DATA + 0x101, (DATA + 2, 2, 1, 1), (DATA + 8, 4, 2, 0))  # alignment is not asked for
    machine.offer((DATA, 2, 1, 1), (DATA + 0x101, 32, 4, 0))
    chain = machine.pop()
    assert (chain.read(4), chain.writable) == (b"abcd", 4)


def test_write_flag_of_an_indirect_descriptor_is_ignored() -> None:
    """Virtio 1.3, 2.7.5.3.2: "The device MUST ignore the write-only flag"."""
    machine = Machine()
    machine.table(DATA, (DATA + 0x100, 2, 0, 0))
    machine.offer((DATA, 16, 4 | 2, 0))
    assert machine.pop().readable == 2


def test_indirect_tables_may_be_walked_in_any_order() -> None:
    machine = Machine()
    machine.memory.write(DATA + 0x100, b"ab")
    machine.table(DATA, (DATA + 0x100, 1, 1, 2), (DATA, 0xFFFF, 0xFFFF, 0xFFFF), (DATA + 0x101, 1, 0, 9))
    machine.offer((DATA, 48, 4, 0))
    assert machine.pop().read(2) == b"ab"


def test_push_of_what_is_not_in_flight_here() -> None:
    machine, other = Machine(), Machine()
    chain, kept = machine.chain(ONE), [other.chain(ONE)]
    with pytest.raises(ValueError, match=r"Chain\(head=0, .* is not in flight"):
        other.ring.push(chain)
    machine.ring.push(chain)
    with pytest.raises(ValueError, match="not in flight"):
        machine.ring.push(chain)
    machine.driver.used()
    kept.append(machine.chain(ONE))
    assert kept[1].head == chain.head
    with pytest.raises(ValueError, match="not in flight"):  # the head is out again, this chain is not
        machine.ring.push(chain)
    with pytest.raises(ValueError, match="not in flight"):
        machine.ring.push(unmade(Chain))
    with pytest.raises(TypeError):
        machine.ring.push(None)  # type: ignore[arg-type]  # what is tested
    assert (machine.ring.in_flight, other.ring.in_flight) == (1, 1)


def test_remap() -> None:
    machine = Machine(base=5)
    old = machine.chain([(DATA, 4, True)])
    memory = two_regions()
    memory.write(GUEST, machine.memory.read(GUEST, 0x8000))
    elsewhere = SplitDriver(memory, GUEST, 8, base=6)
    elsewhere.descriptor(1, DATA, 1, 2, 0)
    elsewhere.offer(1)
    elsewhere.publish()
    ring = machine.ring
    ring.remap(
        memory,
        memory.user(USER, 128),
        memory.user(USER + elsewhere.avail_addr - GUEST, 22),
        memory.user(USER + elsewhere.used_addr - GUEST, 70),
    )
    old.write(b"late")
    assert machine.memory.read(DATA, 4) == b"late"
    assert memory.read(DATA, 4) == bytes(4)
    new = ring.pop()
    assert new is not None
    ring.push(new)
    assert (ring.base, ring.in_flight) == (7, 1)
    assert elsewhere.used_index == 6
    ring.push(old)
    assert elsewhere.used_index == 7
    assert machine.driver.used_index == 5


def test_failed_remap_changes_nothing() -> None:
    machine = Machine()
    machine.driver.add(ONE)
    memory = two_regions()
    window = memory.guest(GUEST, 8)
    with pytest.raises(RefusedRequest):
        machine.ring.remap(memory, window, window, window)
    assert machine.pop().writable == 1


# --- Event suppression -------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_kick_suppression(features: int) -> None:
    machine = Machine(features=features)
    driver, ring = machine.driver, machine.ring
    assert not ring.arm()
    driver.add(ONE)
    assert driver.must_kick()
    ring.disarm()
    ring.push(machine.pop())
    driver.add(ONE)
    assert not driver.must_kick()
    assert ring.arm()
    ring.push(machine.pop())
    assert not ring.arm()
    driver.add(ONE)
    assert driver.must_kick()
    assert not driver.must_kick()


@pytest.mark.parametrize("features", [0, EVENT_IDX])
@pytest.mark.parametrize("base", [0, 65534])
def test_interrupt_suppression(features: int, base: int) -> None:
    machine = Machine(features=features, base=base)
    driver, ring = machine.driver, machine.ring
    assert not driver.arm()
    assert not ring.must_call()
    ring.push(machine.chain(ONE))
    assert ring.must_call()
    assert not ring.must_call()
    driver.disarm()
    for _ in range(3):
        ring.push(machine.chain(ONE))
        assert not ring.must_call()
    assert driver.arm()
    while driver.used():
        pass
    assert not driver.arm()
    ring.push(machine.chain(ONE))
    assert ring.must_call()


@pytest.mark.parametrize("base", [0, 65533])
def test_interrupt_at_an_event_index(base: int) -> None:
    machine = Machine(features=EVENT_IDX, base=base)
    machine.driver.set_used_event((base + 3) % 65536)
    calls = []
    for _ in range(6):
        machine.ring.push(machine.chain(ONE))
        machine.driver.used()
        calls.append(machine.ring.must_call())
    assert calls == [False, False, False, True, False, False]


def test_interrupt_after_a_batch_that_passes_the_event_index() -> None:
    machine = Machine(features=EVENT_IDX)
    machine.driver.set_used_event(1)
    for _ in range(4):
        machine.ring.push(machine.chain(ONE))
    assert machine.ring.must_call()


def test_interrupt_after_more_pushes_than_an_index_can_count() -> None:
    machine = Machine(1, features=EVENT_IDX)
    for _ in range(65536):
        machine.ring.push(machine.chain(ONE))
        machine.driver.used()
    assert machine.ring.must_call()
    assert not machine.ring.must_call()


def test_features_are_those_negotiated() -> None:
    machine = Machine(features=EVENT_IDX)
    with pytest.raises(BadDescriptor, match="INDIRECT was not negotiated"):
        machine.chain(ONE, indirect=DATA + 0x100)
    machine = Machine(features=INDIRECT_DESC)
    machine.ring.disarm()
    assert machine.driver.used_flags == 1


# --- What the device has ---------------------------------------------------------------------------------


def test_a_chain_that_is_forgotten_is_not_in_flight() -> None:
    machine = Machine()
    calls: list[str] = []
    chain = machine.chain([(DATA, 4, True)])
    machine.ring.when_empty(lambda: calls.append("empty"))
    assert (machine.ring.in_flight, calls) == (1, [])
    del chain
    assert (machine.ring.in_flight, calls) == (0, ["empty"])
    machine.ring.push(machine.chain([(DATA, 4, True)]))
    assert calls == ["empty"]  # once


def test_another_thread_may_forget_it() -> None:
    machine = Machine()
    seen: list[int] = []
    chains = [machine.chain([(DATA, 4, True)])]
    machine.ring.when_empty(lambda: seen.append(threading.get_ident()))
    thread = threading.Thread(target=chains.clear)
    thread.start()
    number = thread.ident
    thread.join()
    assert (machine.ring.in_flight, seen) == (0, [number])


def test_the_ring_may_be_gone_before_its_chains() -> None:
    machine = Machine()
    calls: list[str] = []
    chain = machine.chain([(DATA, 4, True)])
    machine.ring.when_empty(lambda: calls.append("empty"))
    machine.ring.give_up()
    del machine
    assert chain.given_up
    chain.write(b"data")
    assert not calls
    del chain
    assert calls == ["empty"]


def test_an_empty_ring_says_so_at_once_and_can_be_called_off() -> None:
    machine = Machine()
    calls: list[str] = []
    machine.ring.when_empty(lambda: calls.append("at once"))
    chain = machine.chain([(DATA, 4, True)])
    machine.ring.when_empty(lambda: calls.append("replaced"))
    machine.ring.when_empty(lambda: calls.append("later"))
    machine.ring.when_empty(None)
    machine.ring.push(chain)
    assert calls == ["at once"]


def test_what_is_called_back_may_ask_again() -> None:
    machine = Machine()
    calls: list[str] = []

    def again() -> None:
        calls.append("again")
        if len(calls) < 3:
            machine.ring.when_empty(again)

    chain = machine.chain([(DATA, 4, True)])
    machine.ring.when_empty(again)
    machine.ring.push(chain)
    assert len(calls) == 3
    machine.close()


def test_what_is_given_up_is_dropped_and_not_told() -> None:
    machine = Machine()
    first, second = machine.chain([(DATA, 4, True)]), machine.chain([(DATA, 4, True)])
    assert not first.given_up
    assert not machine.ring.given_up
    machine.ring.give_up()
    assert first.given_up
    assert second.given_up
    assert machine.ring.given_up
    machine.ring.drop(first)
    assert machine.ring.in_flight == 1
    assert machine.driver.used() is None
    assert not machine.ring.must_call()
    for _ in range(2):
        with pytest.raises(ValueError, match="not in flight"):
            machine.ring.drop(first)
    assert not first.given_up  # it is nobody's any more
    machine.ring.drop(second)
    assert machine.ring.in_flight == 0


def test_only_a_ring_s_own_chains_are_dropped() -> None:
    machine, other = Machine(), Machine()
    chain = other.chain([(DATA, 4, True)])
    with pytest.raises(ValueError, match="not in flight"):
        machine.ring.drop(chain)
    assert other.ring.in_flight == 1


class Large(Machine):
    """A machine with the largest ring."""

    def __init__(self) -> None:
        fd = memfd(4 << 20)
        self.memory = GuestMemory([Region(fd, guest_addr=GUEST, user_addr=USER, size=4 << 20)])
        os.close(fd)
        self.driver = SplitDriver(self.memory, GUEST, 32768)
        self.ring = device_half(self.driver, self.memory, features=0)

    def add(self, *chains: int) -> None:
        """Offers chains of so many pieces each."""
        for pieces in chains:
            self.driver.add([(GUEST + (3 << 20), 1, True)] * pieces)


@pytest.fixture
def large() -> Iterator[Large]:
    large = Large()
    yield large
    large.close()


def test_a_ring_that_is_full_of_pieces_gives_no_more(large: Large) -> None:
    """16384 in all; chains come again when half of them are back, and not before that is told."""
    calls: list[str] = []
    large.add(8191, 8193, 1)
    first = large.pop()
    assert not large.ring.is_held
    second = large.pop()
    assert large.ring.is_held
    assert large.ring.pop() is None
    assert not large.ring.is_empty
    large.ring.when_eased(lambda: calls.append("eased"))
    assert not calls
    large.ring.push(first)
    assert not large.ring.is_held
    assert not calls  # 8193 are out
    large.ring.push(second)
    assert calls == ["eased"]
    third = large.pop()
    large.ring.when_eased(lambda: calls.append("at once"))
    assert calls == ["eased", "at once"]
    large.ring.push(third)


def test_one_chain_may_be_more_than_all(large: Large) -> None:
    large.add(30000, 1)
    chain = large.pop()
    assert large.ring.pop() is None
    large.ring.when_eased(lambda: None)
    large.ring.when_eased(None)
    del chain
    assert large.pop().writable == 1
