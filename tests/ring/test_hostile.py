"""What a guest or a front-end can do to a ring: an exception that names it, never a crash or a wrong access.

The items of memory that test_memory.py covers (bad regions, overlaps, short files) are not repeated here.
"""

import errno
import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from tests.conftest import PATIENCE
from tests.ring.machine import (
    DATA,
    END,
    EVENT_IDX,
    GUEST,
    SIZE,
    USER,
    Machine,
    device_half,
    memfd,
    two_regions,
)
from vhostd.errors import BadDescriptor, BadRequest, BadRing, RefusedRequest
from vhostd.ring import GuestMemory, Region, Window
from vhostd.ring.driver import INDIRECT, NEXT, WRITE, SplitDriver
from vhostd.ring.split import SplitRing
from vhostd.ring.uring import Uring

PAGE = 4096


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(8)
    yield machine
    machine.close()


def refused(machine: Machine, error: type[Exception], why: str) -> None:
    """The ring refuses what is offered, again and again, and stays as it was."""
    base = machine.ring.base
    for _ in range(3):
        with pytest.raises(error, match=why):
            machine.ring.pop()
    assert (machine.ring.base, machine.ring.in_flight) == (base, 0)


# --- The map is replaced while requests are in flight -----------------------------------------------------


def test_map_replaced_while_in_flight() -> None:
    machine = Machine()
    chain = machine.chain([(DATA, 4, False), (DATA, 4, True)])
    ring = machine.ring
    memory = two_regions()
    driver = SplitDriver(memory, GUEST, 8)
    ring.remap(memory, *rings_of(driver, memory))
    del machine, memory
    chain.write(b"gone")
    assert chain.read(4) == b"gone"
    ring.push(chain)
    assert driver.used_index == 1


def rings_of(driver: SplitDriver, memory: GuestMemory) -> tuple[Window, Window, Window]:
    desc, avail, used = SplitRing.footprint(driver.size)
    return (
        memory.guest(driver.desc_addr, desc),
        memory.guest(driver.avail_addr, avail),
        memory.guest(driver.used_addr, used),
    )


# --- Where the ring lies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("addr", [USER - 1, USER + 2**16 - 100, GUEST, 0, 2**64 - 1])
def test_ring_outside_a_region(addr: int) -> None:
    with pytest.raises(RefusedRequest, match=f"user address {addr:#x}"):
        two_regions().user(addr, SplitRing.footprint(8)[0])


# --- The avail ring ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [0, 65535])
@pytest.mark.parametrize("jump", [9, 10, 32768, 65535])
def test_avail_index_jumps(base: int, jump: int) -> None:
    machine = Machine(8, base=base)
    machine.driver.set_avail_index((base + jump) % 65536)
    refused(machine, BadRing, f"avail index went from {base} to {(base + jump) % 65536}")


def test_avail_index_may_announce_the_whole_ring(machine: Machine) -> None:
    for head in range(8):
        machine.driver.descriptor(head, DATA, 1, 0, 0)
        machine.driver.offer(head)
    machine.driver.publish(8)
    chains = [machine.pop() for _ in range(8)]
    assert machine.ring.pop() is None
    machine.driver.set_avail_index(9)
    with pytest.raises(BadRing, match="head 0 is in flight already"):
        machine.ring.pop()
    assert [chain.head for chain in chains] == list(range(8))


@pytest.mark.parametrize("head", [8, 9, 32768, 65535])
def test_head_out_of_range(machine: Machine, head: int) -> None:
    machine.offer(head=head)
    refused(machine, BadRing, f"head {head} of 8 descriptors")


def test_same_head_twice(machine: Machine) -> None:
    machine.offer((DATA, 1, 0, 0))
    chain = machine.pop()
    machine.offer()
    with pytest.raises(BadRing, match="head 0 is in flight already"):
        machine.ring.pop()
    assert (machine.ring.base, machine.ring.in_flight) == (1, 1)
    machine.ring.push(chain)
    assert machine.pop().head == 0


# --- Direct descriptors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("following", [8, 9, 32768, 65535])
def test_next_out_of_range(machine: Machine, following: int) -> None:
    machine.offer((DATA, 1, NEXT, following))
    refused(machine, BadDescriptor, f"chain 0: next is {following}, of 8 descriptors")


@pytest.mark.parametrize("descriptors", [[0], [1, 0], [1, 1], [1, 2, 3, 4, 5, 6, 7, 0]])
def test_loops(machine: Machine, descriptors: list[int]) -> None:
    machine.offer(*((DATA, 1, NEXT, following) for following in descriptors))
    refused(machine, BadDescriptor, "chain 0: a loop, or more than 8 descriptors")


def test_loop_of_empty_buffers(machine: Machine) -> None:
    machine.offer((0, 0, NEXT, 0))
    refused(machine, BadDescriptor, "a loop")


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (GUEST - 1, 1),
        (GUEST - 1, 16),
        (END, 1),
        (END - 1, 2),
        (GUEST, 2**32 - 1),
        (0, 1),
        (2**64 - 1, 1),
        (2**64 - 1, 2),
        (2**64 - 2**31, 2**32 - 1),
        (USER, 1),
    ],
)
@pytest.mark.parametrize("flags", [0, WRITE])
def test_address_out_of_range(machine: Machine, addr: int, length: int, flags: int) -> None:
    """The chain is there, and whatever touches such memory is refused and moves nothing."""
    machine.offer((addr, length, flags, 0))
    chain = machine.pop()
    assert (chain.readable, chain.writable) == ((length, 0) if flags == 0 else (0, length))
    assert chain.unreachable is not None
    assert re.search(r"bytes at guest address 0x[0-9a-f]+ are outside the memory", chain.unreachable)
    with memory_file() as fd:
        deeds: list[Callable[[], object]] = [lambda: chain.read(length), lambda: chain.pwritev(fd, 0, length)]
        if flags == WRITE:
            deeds = [lambda: chain.write(bytes(min(length, SIZE + 1))), lambda: chain.preadv(fd, 0, length)]
        for deed in deeds:
            with pytest.raises(BadRequest, match=r"is share=on missing from a memory backend\?"):
                deed()
        assert os.fstat(fd).st_size == 0
    assert (chain.readable, chain.writable) == ((length, 0) if flags == 0 else (0, length))
    machine.ring.push(chain)
    assert machine.driver.used_index == 1


def test_what_is_beside_a_hole_is_as_good_as_ever(machine: Machine) -> None:
    machine.memory.write(DATA, b"header")
    chain = machine.chain(
        [(DATA, 6, False), (0, 1 << 20, False), (END - 4, 4, False), (0, 1 << 20, True), (DATA, 1, True)]
    )
    assert chain.read(6) == b"header"
    chain.skip(1 << 20)
    assert chain.read(4) == bytes(4)
    chain.skip_writable(1 << 20)
    chain.write(b"!")
    machine.ring.push(chain)
    assert machine.driver.used() == (0, (1 << 20) + 1)
    assert machine.memory.read(DATA, 1) == b"!"


def test_a_hole_begins_where_the_memory_ends(machine: Machine) -> None:
    chain = machine.chain([(END - 4, 8, False)])
    assert chain.unreachable is not None
    assert f"4 bytes at guest address {END:#x}" in chain.unreachable
    assert chain.read(4) == bytes(4)
    with pytest.raises(BadRequest):
        chain.read(1)


@pytest.mark.parametrize("in_threads", [False, True])
@pytest.mark.parametrize("skipped", [0, 1, 1 << 30])
def test_a_hole_in_an_io_uring(skipped: int, machine: Machine, *, in_threads: bool) -> None:
    """Also when much of it was passed over: the kernel is never led to memory of ours."""
    with memory_file() as fd, closing(Uring(4, in_threads=in_threads)) as uring:
        os.write(fd, b"x" * 64)
        for writable in (False, True):
            chain = machine.chain([(0, (1 << 30) + 64, writable)])
            if writable:
                chain.skip_writable(skipped)
                uring.preadv(chain, fd, 0, 64, "moved")
            else:
                chain.skip(skipped)
                uring.pwritev(chain, fd, 0, 64, "moved")
            uring.submit()
            assert select.select([uring], [], [], PATIENCE)[0]
            assert uring.completions() == [("moved", -errno.EFAULT)]
            machine.ring.push(chain)


@contextmanager
def memory_file() -> Iterator[int]:
    fd = memfd(0)
    try:
        yield fd
    finally:
        os.close(fd)


def test_buffer_at_the_top_of_the_address_space() -> None:
    fd = memfd(0x10000 + 15)
    start = 2**64 - 1 - 0x10000
    memory = GuestMemory([Region(fd, guest_addr=start, user_addr=0, size=0x10000, offset=15)])
    os.close(fd)
    driver = SplitDriver(memory, start, 4)
    ring = device_half(driver, memory)
    driver.descriptor(0, 2**64 - 3, 2, 0, 0)
    driver.descriptor(1, 2**64 - 3, 3, 0, 0)
    driver.descriptor(2, 2**64 - 3, 2**32 - 1, 0, 0)
    for head in range(3):
        driver.offer(head)
    driver.publish(3)
    whole, beyond, far_beyond = ring.pop(), ring.pop(), ring.pop()
    assert whole is not None
    assert beyond is not None
    assert far_beyond is not None
    assert whole.unreachable is None
    assert whole.read(2) == b"\0\0"
    for chain in (beyond, far_beyond):
        assert chain.unreachable is not None
        assert chain.read(2) == b"\0\0"
        with pytest.raises(BadRequest):
            chain.read(1)


def test_readable_after_writable(machine: Machine) -> None:
    machine.offer((DATA, 1, WRITE | NEXT, 1), (DATA, 1, 0, 0))
    refused(machine, BadDescriptor, "a readable buffer at 0x10008000 after a writable one")


def test_empty_buffers_keep_the_order_too(machine: Machine) -> None:
    machine.offer((DATA, 0, WRITE | NEXT, 1), (DATA, 0, 0, 0))
    refused(machine, BadDescriptor, "after a writable one")


def test_more_bytes_than_can_be_counted() -> None:
    """Memory much larger than the machine's, which nobody touches."""
    big = 2**31
    fd = memfd(big)
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=big)])
    os.close(fd)
    driver = SplitDriver(memory, 0, 8)
    ring = device_half(driver, memory)
    driver.add([(0, big, True), (0, big - 1, True)])
    chain = ring.pop()
    assert chain is not None
    assert chain.writable == 2**32 - 1
    chain.skip_writable(2**32 - 1)
    ring.push(chain)
    assert driver.used() == (0, 2**32 - 1)
    driver.add([(0, big, False), (0, big, True)])
    with pytest.raises(BadDescriptor, match="more than 0xffffffff bytes"):
        ring.pop()


def test_a_chain_in_very_many_regions() -> None:
    """Which only a front-end can cause: each byte is a region."""
    fd = memfd(PAGE)
    dust = [Region(fd, guest_addr=END + i, user_addr=END + i, size=1, offset=i) for i in range(500)]
    memory = GuestMemory([*two_regions().regions, *dust])
    os.close(fd)
    driver = SplitDriver(memory, GUEST, 256)
    ring = device_half(driver, memory)
    driver.add([(END, 500, True)] * 100)
    chain = ring.pop()
    assert chain is not None
    chain.write(bytes(50_000))
    ring.push(chain)
    assert driver.used() == (0, 50_000)
    driver.add([(END, 500, True)] * 140)
    with pytest.raises(BadDescriptor, match="more than 65536 pieces of guest memory"):
        ring.pop()


def test_reserved_flags_are_ignored(machine: Machine) -> None:
    machine.offer((DATA, 1, 0xFFF8, 0))
    assert machine.pop().readable == 1


# --- Indirect tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("addr", "length", "flags", "why"),
    [
        (DATA, 0, INDIRECT, "not a whole number of descriptors"),
        (DATA, 15, INDIRECT, "not a whole number of descriptors"),
        (DATA, 17, INDIRECT, "not a whole number of descriptors"),
        (DATA, 2**32 - 1, INDIRECT, "not a whole number of descriptors"),
        (DATA, 16 * 1025, INDIRECT, "more than 1024 descriptors"),
        (DATA, 2**32 - 16, INDIRECT, "more than 1024 descriptors"),
        (DATA, 16, INDIRECT | NEXT, "INDIRECT together with NEXT"),
        (GUEST - 16, 16, INDIRECT, "not in guest memory"),
        (END, 16, INDIRECT, "not in guest memory"),
        (END - 16, 32, INDIRECT, "not in guest memory"),
        (2**64 - 16, 16, INDIRECT, "not in guest memory"),
    ],
)
def test_indirect_table_refused(machine: Machine, addr: int, length: int, flags: int, why: str) -> None:
    machine.offer((addr, length, flags, 0))
    refused(machine, BadDescriptor, f"indirect table of {length} bytes at {addr:#x}: {why}")


def test_nested_indirect_table(machine: Machine) -> None:
    machine.table(DATA, (DATA + 0x100, 16, INDIRECT, 0))
    machine.table(DATA + 0x100, (DATA, 1, 0, 0))
    machine.offer((DATA, 16, INDIRECT, 0))
    refused(machine, BadDescriptor, "an indirect table in another")


@pytest.mark.parametrize("following", [0, 2, 65535])
def test_next_in_an_indirect_table(machine: Machine, following: int) -> None:
    machine.table(DATA, (DATA, 1, NEXT, following), (DATA, 1, NEXT, following))
    machine.offer((DATA, 32, INDIRECT, 0))
    refused(machine, BadDescriptor, "a loop" if following == 0 else f"next is {following}, of 2 descriptors")


def test_order_holds_across_an_indirect_table(machine: Machine) -> None:
    machine.table(DATA, (DATA, 1, 0, 0))
    machine.offer((DATA, 1, WRITE | NEXT, 1), (DATA, 16, INDIRECT, 0))
    refused(machine, BadDescriptor, "after a writable one")


# --- What the chain says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", range(16))
def test_header_cut_short(machine: Machine, length: int) -> None:
    chain = machine.chain([(DATA, length, False), (DATA, 1, True)])
    with pytest.raises(BadRequest, match=f"16 bytes to be read, {length} left"):
        chain.read(16)
    assert chain.readable == length


def test_no_room_for_a_status(machine: Machine) -> None:
    chain = machine.chain([(DATA, 16, False)])
    with pytest.raises(BadRequest, match="1 bytes to be written, 0 left"):
        chain.write(b"\0")
    machine.ring.push(chain)
    assert machine.driver.used() == (0, 0)


# --- A driver that changes its mind -----------------------------------------------------------------------


def test_descriptors_are_read_once(machine: Machine) -> None:
    machine.table(DATA + 0x100, (DATA, 4, 0, 0))
    machine.offer((DATA, 4, NEXT, 1), (DATA + 0x100, 16, INDIRECT, 0))
    chain = machine.pop()
    for i in range(8):
        machine.driver.descriptor(i, 2**64 - 1, 2**32 - 1, 0xFFFF, 0xFFFF)
    machine.table(DATA + 0x100, (2**64 - 1, 2**32 - 1, 0xFFFF, 0xFFFF))
    machine.driver.set_avail_index(12345)
    assert chain.readable == 8
    assert chain.read(8) == bytes(8)
    machine.ring.push(chain)
    assert machine.driver.used() == (0, 0)


def test_descriptors_that_change_while_they_are_read() -> None:
    """Another process flips descriptors between good and bad: each chain is wholly good or wholly refused."""
    machine = Machine(4, features=0)
    good, bad = (DATA, 16, 0, 0), (2**64 - 1, 2**32 - 1, NEXT | WRITE, 0xFFFF)
    machine.driver.descriptor(0, *good)
    child = os.fork()
    if not child:
        while True:
            machine.driver.descriptor(0, *bad)
            machine.driver.descriptor(0, *good)
    try:
        for _ in range(20_000):
            machine.driver.offer(0)
            machine.driver.publish()
            try:
                chain = machine.pop()
            except BadDescriptor:
                machine.driver.set_avail_index(machine.ring.base)
                continue
            if chain.unreachable is None:
                assert len(chain.read(chain.readable)) in (16, 0)
            machine.ring.push(chain)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


# --- Kicks for nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_kicks_for_nothing(features: int) -> None:
    machine = Machine(8, features=features)
    for _ in range(1000):
        machine.ring.disarm()
        assert machine.ring.pop() is None
        assert not machine.ring.arm()
        assert not machine.ring.must_call()
