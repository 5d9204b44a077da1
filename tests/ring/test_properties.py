"""Random drivers, legal and not. The invariants:

Legal traffic: chains come out in the order and with the bytes that went in, come back with the bytes written,
both indices count every chain across their wrap at 65536, and neither side ever sleeps while the other has
something for it and saw no reason to wake it.

Garbage: whatever lies in guest memory, `pop` does what a slow and simple reading of the specification does,
and only a GuestError ever comes out; no byte outside the writable buffers and the used ring changes.
"""

import struct
from collections import deque
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
    SEAM,
    SIZE,
    Machine,
)
from vhostd.errors import BadRequest, GuestError
from vhostd.ring import Chain

quick = settings(max_examples=150)


# --- Legal traffic ----------------------------------------------------------------------------------------

FORMS = st.sampled_from(["direct", "indirect"])
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 6), FORMS
        ),
        st.tuples(st.just("pop")),
        st.tuples(st.just("push"), st.integers(0, 7), st.binary(max_size=60)),
        st.tuples(st.just("push_all"), st.permutations(range(4)), st.binary(max_size=60)),
        st.tuples(st.just("put_back")),
        st.tuples(st.just("used")),
    ),
    max_size=80,
)


class Traffic:
    """A driver and a device that sleep when they have nothing to do, and what should be between them."""

    def __init__(self, size: int, features: int, base: int | None = None) -> None:
        self.machine = Machine(size, features=features, base=base)
        self.features = features
        self.size = size
        self.added: deque[tuple[int, bytes, list[tuple[int, int]]]] = deque()
        self.popped: list[tuple[Chain, list[tuple[int, int]]]] = []
        self.gone: list[tuple[Chain, bytes]] = []  # what was popped and not put back, and what was sent in it
        self.pushed: deque[tuple[int, bytes, list[tuple[int, int]]]] = deque()
        self.count = 0
        self.slots = list(range(size))
        self.slot_of: dict[int, int] = {}
        self.device_sleeps = self.driver_sleeps = False

    def add(self, lengths: list[int], readable: int, form: str) -> None:
        indirect = form == "indirect" and bool(self.features & INDIRECT_DESC)
        lengths = lengths[: self.size]
        driver = self.machine.driver
        if driver.free < (1 if indirect else len(lengths)):
            return
        slot = self.slots.pop()
        start = DATA + slot * 0x800 if slot % 2 else SEAM - 100 + slot * 0x400
        buffers, sent = [], b""
        addr = start
        for i, length in enumerate(lengths):
            buffers.append((addr, length, i >= readable))
            if i < readable:
                data = bytes((self.count + i + j) % 256 for j in range(length))
                self.machine.memory.write(addr, data)
                sent += data
            addr += length + 1
        head = driver.add(buffers, indirect=start + 0x300 if indirect else None)
        self.count += 1
        self.slot_of[head] = slot
        self.added.append((head, sent, [(at, length) for at, length, writes in buffers if writes]))
        if driver.must_kick():
            self.device_sleeps = False
        assert not self.device_sleeps, "a chain was added and the device still sleeps"

    def pop(self) -> None:
        ring = self.machine.ring
        if self.device_sleeps:
            return
        ring.disarm()
        chain = ring.pop()
        if not self.added:
            assert chain is None
            self.device_sleeps = not ring.arm()
            assert self.device_sleeps
            return
        head, sent, writable = self.added.popleft()
        assert chain is not None
        assert (chain.head, chain.readable) == (head, len(sent))
        assert chain.writable == sum(length for _, length in writable)
        half = len(sent) // 2
        assert chain.read(half) + chain.read(len(sent) - half) == sent
        self.popped.append((chain, writable))
        self.gone.append((chain, sent))

    def put_back(self) -> None:
        if not self.popped:
            return
        chain, writable = self.popped[-1]
        if chain is not self.gone[-1][0]:
            with pytest.raises(ValueError, match="popped last"):
                self.machine.ring.put_back(chain)
            return
        self.popped.pop()
        self.machine.ring.put_back(chain)
        self.added.appendleft((chain.head, self.gone.pop()[1], writable))
        self.device_sleeps = False

    def push(self, which: int, data: bytes) -> None:
        if not self.popped:
            return
        chain, writable = self.popped.pop(which % len(self.popped))
        data = data[: chain.writable]
        chain.write(data[:7])
        chain.write(data[7:])
        self.machine.ring.push(chain)
        self.pushed.append((chain.head, data, writable))
        self._tell()

    def push_all(self, order: list[int], data: bytes) -> None:
        batch = [self.popped[i] for i in order if i < len(self.popped)]
        if not batch:
            return
        for chain, writable in batch:
            part = data[: chain.writable]
            chain.write(part)
            self.pushed.append((chain.head, part, writable))
        self.machine.ring.push_all(chain for chain, _ in batch)
        self.popped = [each for each in self.popped if each not in batch]
        self._tell()

    def _tell(self) -> None:
        if self.machine.ring.must_call():
            self.driver_sleeps = False
        assert not self.driver_sleeps, "a chain was pushed and the driver still sleeps"

    def used(self) -> None:
        if self.driver_sleeps:
            return
        driver = self.machine.driver
        driver.disarm()
        answer = driver.used()
        if not self.pushed:
            assert answer is None
            self.driver_sleeps = not driver.arm()
            assert self.driver_sleeps
            return
        head, data, writable = self.pushed.popleft()
        assert answer == (head, len(data))
        got = b"".join(self.machine.memory.read(addr, length) for addr, length in writable)
        assert got[: len(data)] == data
        self.slots.append(self.slot_of.pop(head))


@quick
@given(
    size=st.sampled_from([1, 2, 4, 8]),
    features=st.sampled_from([0, INDIRECT_DESC, EVENT_IDX, BOTH]),
    base=st.one_of(st.just(0), st.integers(65500, 65535), st.integers(32760, 32775)),
    steps=STEPS,
)
def test_legal_traffic(size: int, features: int, base: int, steps: list[tuple[object, ...]]) -> None:
    traffic = Traffic(size, features, base)
    for name, *arguments in steps:
        getattr(traffic, str(name))(*arguments)
        ring = traffic.machine.ring
        assert ring.in_flight == len(traffic.popped)
        assert ring.base == (base + traffic.count - len(traffic.added)) % 65536


@quick
@given(
    size=st.integers(1, 8),
    features=st.sampled_from([0, INDIRECT_DESC, EVENT_IDX, BOTH]),
    rounds=st.integers(0, 2),
    steps=STEPS,
)
def test_legal_traffic_of_a_packed_ring(
    size: int, features: int, rounds: int, steps: list[tuple[object, ...]]
) -> None:
    traffic = Traffic(size, features | PACKED)
    for _ in range(rounds * size // 2):
        traffic.add([3], 1, "direct")
        traffic.pop()
        traffic.push(0, b"")
        traffic.used()
    for name, *arguments in steps:
        getattr(traffic, str(name))(*arguments)
        assert traffic.machine.ring.in_flight == len(traffic.popped)


FORMATS = st.one_of(st.tuples(st.just(0), st.integers(65400, 65535)), st.just((PACKED, None)))


@quick
@given(form=FORMATS, features=st.sampled_from([0, BOTH]), size=st.sampled_from([2, 4]))
def test_long_runs_wrap(form: tuple[int, int | None], features: int, size: int) -> None:
    bit, base = form
    traffic = Traffic(size, features | bit, base)
    for i in range(150):
        traffic.add([3, 5], 1, ["direct", "indirect"][i % 2])
        traffic.pop()
        traffic.push(0, b"abc")
        traffic.used()
        traffic.used()
        traffic.pop()


# --- Garbage ----------------------------------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.sampled_from(
        [0, GUEST - 1, GUEST, DATA, DATA + 0x100, SEAM - 8, SEAM, END - 16, END - 1, END, 2**64 - 1]
    ),
    st.integers(GUEST, END),
    st.integers(0, 2**64 - 1),
)
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 15, 16, 32, 64, 80, 0x1000, SIZE, 2**32 - 1]), st.integers(0, 2**32 - 1)
)
FLAGS = st.one_of(st.integers(0, 7), st.sampled_from([0, 1, 2, 3, 4]), st.integers(0, 65535))
DESCRIPTORS = st.tuples(ADDRESSES, LENGTHS, FLAGS, st.one_of(st.integers(0, 5), st.integers(0, 65535)))


class Broken(Exception):
    """The simple reading refuses a chain."""


class Simple:
    """The specification, read slowly: a chain as a list of (address, length, writable)."""

    def __init__(self, machine: Machine, features: int) -> None:
        self.machine = machine
        self.size = machine.driver.size
        self.indirect = bool(features & INDIRECT_DESC)

    def chain(self, head: int) -> list[tuple[int, int, bool]]:
        if head >= self.size:
            raise Broken
        table = self.machine.memory.read(self.machine.driver.desc_addr, 16 * self.size)
        buffers = self.walk(table, head, nested=False)
        if sorted(writable for _, _, writable in buffers) != [writable for _, _, writable in buffers]:
            raise Broken
        if sum(length for _, length, _ in buffers) >= 2**32:
            raise Broken
        return buffers

    def walk(self, table: bytes, at: int, *, nested: bool) -> list[tuple[int, int, bool]]:
        buffers: list[tuple[int, int, bool]] = []
        for _ in range(len(table) // 16):
            if at >= len(table) // 16:
                raise Broken
            addr, length, flags, following = struct.unpack_from("<QIHH", table, 16 * at)
            if flags & 4:
                return buffers + self.indirect_table(addr, length, flags, nested=nested)
            buffers.append((addr, length, bool(flags & 2)))
            if not flags & 1:
                return buffers
            at = following
        raise Broken

    def indirect_table(
        self, addr: int, length: int, flags: int, *, nested: bool
    ) -> list[tuple[int, int, bool]]:
        if nested or not self.indirect or flags & 1 or not length or length % 16 or length > 16 * 1024:
            raise Broken
        if not GUEST <= addr <= addr + length <= END:
            raise Broken
        return self.walk(self.machine.memory.read(addr, length), 0, nested=True)


def check_one_chain(machine: Machine, features: int, head: int) -> None:
    try:
        expected = Simple(machine, features).chain(head)
    except Broken:
        expected = None
    try:
        chain = machine.ring.pop()
    except GuestError:
        assert expected is None
        return
    assert expected is not None
    assert chain is not None
    assert chain.readable == sum(length for _, length, writable in expected if not writable)
    assert chain.writable == sum(length for _, length, writable in expected if writable)
    outside = [buffer for buffer in expected if buffer[1] and not is_shared(*buffer)]
    assert (chain.unreachable is not None) == bool(outside)
    if outside:
        check_holes(chain, outside)
    elif chain.readable + chain.writable <= 4 * SIZE:
        check_bytes(machine, chain, expected)
    machine.ring.push(chain)


def is_shared(addr: int, length: int, _writable: bool) -> bool:  # noqa: FBT001
    return GUEST <= addr <= addr + length <= END


def check_holes(chain: Chain, outside: list[tuple[int, int, bool]]) -> None:
    """Each stream that has a hole can be passed over, and not read or written as a whole."""
    if any(not writable for _, _, writable in outside):
        with pytest.raises(BadRequest):
            chain.read(chain.readable)
    if any(writable for _, _, writable in outside) and chain.writable <= 4 * SIZE:
        with pytest.raises(BadRequest):
            chain.write(bytes(chain.writable))
    chain.skip(chain.readable)
    chain.skip_writable(chain.writable)


def check_bytes(machine: Machine, chain: Chain, buffers: list[tuple[int, int, bool]]) -> None:
    read = machine.memory.read
    assert chain.read(chain.readable) == b"".join(
        read(a, n) for a, n, writable in buffers if n and not writable
    )
    after = bytearray(read(GUEST, SIZE))
    for addr, length, writable in buffers:
        if writable:
            after[addr - GUEST : addr - GUEST + length] = b"\xa5" * length if length else b""
    chain.write(b"\xa5" * chain.writable)
    assert read(GUEST, SIZE) == after


@quick
@given(
    features=st.sampled_from([0, BOTH]),
    table=st.lists(DESCRIPTORS, min_size=4, max_size=4),
    nested=st.lists(DESCRIPTORS, min_size=5, max_size=5),
    head=st.one_of(st.integers(0, 4), st.integers(0, 65535)),
)
def test_garbage_in_descriptors(
    features: int,
    table: list[tuple[int, int, int, int]],
    nested: list[tuple[int, int, int, int]],
    head: int,
) -> None:
    machine = Machine(4, features=features)
    machine.table(DATA, *nested)
    machine.table(DATA + 0x100, *nested)
    machine.offer(*table, head=head)
    check_one_chain(machine, features, head)


@quick
@given(
    content=st.binary(min_size=64, max_size=180), pops=st.integers(1, 6), features=st.sampled_from([0, BOTH])
)
def test_garbage_in_the_whole_ring(content: bytes, pops: int, features: int) -> None:
    machine = Machine(4, features=features)
    machine.memory.write(GUEST, content)
    for _ in range(pops):
        try:
            chain = machine.ring.pop()
        except GuestError:
            continue
        if chain is not None:
            chain.skip(chain.readable)
            with suppress(BadRequest):  # not all of it is guest memory
                chain.write(bytes(min(chain.writable, SIZE)))
            machine.ring.push(chain)
        machine.ring.arm()
        machine.ring.must_call()
        machine.ring.disarm()
