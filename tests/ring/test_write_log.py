"""Every byte that the device writes is told the log that there is then, by its guest address."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.ring.machine import (
    BOTH,
    DATA,
    END,
    EVENT_IDX,
    GUEST,
    SEAM,
    SIZE,
    Machine,
    device_half,
    two_regions,
)
from tests.ring.test_lost_memory import PAGE, Shrinking
from vhostd.errors import BadRequest, MemoryLost
from vhostd.ring import Chain, GuestMemory, Ring, WriteLog
from vhostd.ring.uring import Uring


class Log(WriteLog):
    """A test's log: the guest addresses that were told."""

    def __init__(self) -> None:
        self.dirty: set[int] = set()

    def dirtied(self, guest_addr: int, length: int) -> None:
        self.dirty.update(range(guest_addr, guest_addr + length))


def changed(memory: GuestMemory, before: bytes, first: int = GUEST) -> set[int]:
    """The guest addresses of the bytes that are not what they were."""
    after = memory.read(first, len(before))
    return {first + i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(16, features=0)
    yield machine
    machine.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 251)) * 4)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def across(machine: Machine) -> Chain:
    """A chain whose writable stream lies in both regions, in pieces."""
    return machine.chain([(SEAM - 150, 300, True), (DATA, 100, True), (END - 100, 100, True)])


def receive(chain: Chain, size: int) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        left.send(b"d" * size)
        chain.recvmsg(right.fileno(), chain.writable)


def with_uring(chain: Chain, fd: int) -> None:
    uring = Uring(4)
    uring.preadv(chain, fd, 10, chain.writable, "token")
    uring.submit()
    assert uring.completions()
    uring.close()


def abandoned(chain: Chain, fd: int) -> None:
    """A Uring that is closed before its completion was taken."""
    uring = Uring(4)
    uring.preadv(chain, fd, 10, chain.writable, "token")
    uring.submit()
    uring.close()


WRITES: dict[str, Callable[[Chain, int], object]] = {
    "write": lambda chain, _: chain.write(b"w" * 321),
    "preadv": lambda chain, fd: chain.preadv(fd, 0, 400),
    "preadv that ends early": lambda chain, fd: chain.preadv(fd, 700, 500),
    "recvmsg": lambda chain, _: receive(chain, 222),
    "uring": with_uring,
    "abandoned uring": abandoned,
    "reserve": lambda chain, _: chain.reserve(350).fill(b"r" * 350),
}


@pytest.mark.parametrize("what", WRITES)
def test_all_that_is_written_to_a_chain(machine: Machine, file: int, what: str) -> None:
    log = Log()
    machine.ring.log_writes(log)
    chain = across(machine)
    before = machine.memory.read(GUEST, SIZE)
    WRITES[what](chain, file)
    found = changed(machine.memory, before)
    assert found
    assert found <= log.dirty
    offered = {*range(SEAM - 150, SEAM + 150), *range(DATA, DATA + 100), *range(END - 100, END)}
    assert log.dirty <= offered


def test_a_datagram_dirties_no_more_than_it_has(machine: Machine) -> None:
    log = Log()
    machine.ring.log_writes(log)
    receive(across(machine), 200)
    assert log.dirty == set(range(SEAM - 150, SEAM + 50))


def test_a_receive_that_finds_nothing_dirties_nothing(machine: Machine) -> None:
    log = Log()
    machine.ring.log_writes(log)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right, pytest.raises(BlockingIOError):
        across(machine).recvmsg(right.fileno(), 100, socket.MSG_DONTWAIT)
    assert not log.dirty


def test_what_only_counts_as_written_is_not_dirty(machine: Machine) -> None:
    log = Log()
    machine.ring.log_writes(log)
    chain = across(machine)
    chain.skip_writable(20)
    chain.write(b"x")
    assert log.dirty == {SEAM - 130}


def test_what_is_read_is_not_dirty(machine: Machine, file: int) -> None:
    log = Log()
    machine.ring.log_writes(log)
    chain = machine.chain([(DATA, 100, False), (DATA + 200, 1, True)])
    chain.read(10)
    with open("/dev/null", "wb") as null:
        chain.pwritev(null.fileno(), 0, 50)
    assert not log.dirty


@pytest.mark.parametrize("what", ["preadv", "uring"])
def test_a_read_that_fails_in_the_middle(file: int, what: str) -> None:
    machine = Shrinking()
    log = Log()
    machine.ring.log_writes(log)
    chain = machine.chain()  # the last 16 bytes of a page, and two thirds of the next ones
    there = 8 * PAGE
    before = machine.memory.read(0, there)
    machine.shrink(there)
    with suppress(MemoryLost):
        if what == "preadv":
            chain.preadv(file, 0, 500)
        else:
            with_uring(chain, file)
    after = os.pread(machine.fd, there, 0)
    found = {i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
    assert found <= log.dirty
    assert log.dirty >= set(range(there - 16, there + 400))
    del chain
    machine.close()


def test_a_hole_is_nobody_s_page(machine: Machine) -> None:
    log = Log()
    machine.ring.log_writes(log)
    chain = machine.chain([(DATA, 4, True), (END + 4096, 10, True)])
    chain.write(b"abcd")
    for call in (lambda: chain.write(b"x"), lambda: chain.reserve(1)):
        with pytest.raises(BadRequest):
            call()
    assert log.dirty == set(range(DATA, DATA + 4))


# --- The ring ---------------------------------------------------------------------------------------------


def used_ring(machine: Machine) -> set[int]:
    return set(range(machine.driver.used_addr, machine.driver.used_addr + 4 + 8 * 16 + 2))


@pytest.mark.parametrize("features", [0, EVENT_IDX])
@pytest.mark.parametrize("what", ["push", "push_all", "arm", "disarm"])
def test_all_that_is_written_to_the_ring(what: str, features: int) -> None:
    machine = Machine(16, features=features, base=3)
    chains = []
    for _ in range(3):
        chains.append(machine.chain([(DATA, 16, True)]))
        chains[-1].write(b"x")
    if what == "arm":
        machine.ring.disarm()
    log = Log()
    machine.ring.log_writes(log)
    calls: dict[str, Callable[[Ring], object]] = {
        "push": lambda ring: ring.push(chains[2]),
        "push_all": lambda ring: ring.push_all(chains),
        "arm": lambda ring: ring.arm(),
        "disarm": lambda ring: ring.disarm(),
    }
    before = machine.memory.read(GUEST, SIZE)
    calls[what](machine.ring)
    found = changed(machine.memory, before)
    assert found or (what, features) == ("disarm", EVENT_IDX)
    assert found <= log.dirty <= used_ring(machine)
    machine.close()


# --- Which log, and which map -----------------------------------------------------------------------------


def test_a_chain_in_flight_tells_the_log_that_there_is_now(machine: Machine) -> None:
    """Also when it was popped before there was any, and from a map that was replaced meanwhile."""
    chain = across(machine)
    chain.write(b"1")
    first, second = Log(), Log()
    machine.ring.log_writes(first)
    chain.write(b"2")
    other = two_regions()
    driver = machine.driver
    windows = [
        other.guest(addr, size)
        for addr, size in zip(
            (driver.desc_addr, driver.avail_addr, driver.used_addr), machine.ring.footprint(16), strict=True
        )
    ]
    machine.ring.remap(other, *windows)
    machine.ring.log_writes(second)
    chain.write(b"3")
    machine.ring.log_writes(None)
    chain.write(b"4")
    assert first.dirty == {SEAM - 149}
    assert second.dirty == {SEAM - 148}


def test_rings_have_logs_of_their_own(machine: Machine) -> None:
    log = Log()
    other = device_half(machine.driver, machine.memory, features=BOTH)
    other.log_writes(log)
    across(machine).write(b"x")
    assert not log.dirty
