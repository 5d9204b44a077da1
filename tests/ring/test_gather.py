"""Gathered ranges as one span: rows come from where they should, whatever a guest says of them."""

import fcntl
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ring.machine import DATA, END, GUEST, SEAM, SIZE, USER, Machine, device_half, memfd, unmade
from vhostd.errors import BadDescriptor, BadRequest, MemoryLost
from vhostd.ring import Chain, Gather, GuestMemory, Region
from vhostd.ring.driver import SplitDriver

PAGE = 4096
HALF = SIZE // 2
quick = settings(max_examples=150)


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.close()


@pytest.fixture
def chain(machine: Machine) -> Chain:
    """A chain to gather from, in memory where every byte tells where it is."""
    machine.memory.write(DATA, PATTERN[DATA - GUEST :])
    return machine.chain([(DATA, 4, False)])


PATTERN = bytes((i ^ i >> 8) % 256 for i in range(SIZE))


def pattern(addr: int, length: int) -> bytes:
    return PATTERN[addr - GUEST : addr - GUEST + length]


def content(gather: Gather) -> bytes:
    """All bytes of the span."""
    into = bytearray(len(gather))
    n = len(into)
    gather.copy_rows(into, 0, offset=0, row=n, rows=1, stride=n, into_stride=n)
    return bytes(into)


def scattered(memory: GuestMemory, size: int = 4) -> Chain:
    """A chain in memory that has no ring yet."""
    driver = SplitDriver(memory, memory.regions[0].guest_addr, size)
    ring = device_half(driver, memory)
    driver.add([(memory.regions[0].guest_addr, 0, False)])
    chain = ring.pop()
    assert chain is not None
    return chain


HUGE = [-1, 2**63, 2**64 - 1, 2**64, 2**70, -(2**70)]
ADDRESSES = st.one_of(
    st.integers(DATA, END - 64), st.integers(SEAM - 40, SEAM + 8), st.integers(DATA, DATA + 9)
)
RANGES = st.lists(st.tuples(ADDRESSES, st.integers(0, 60), st.booleans()), max_size=12)
NUMBERS = st.one_of(st.integers(-2, 90), st.sampled_from(HUGE))
COUNTS = st.one_of(st.integers(0, 6), NUMBERS)


def joined(ranges: Sequence[tuple[int, int, bool]]) -> list[tuple[int, int]]:
    """The ranges, some of which begin where the one before ends."""
    made: list[tuple[int, int]] = []
    for addr, length, meets in ranges:
        made.append((min(sum(made[-1]), END - 60) if meets and made else addr, length))
    return made


# --- Ranges -----------------------------------------------------------------------------------------------


def test_ranges_are_one_span(chain: Chain) -> None:
    gather = chain.gather([(DATA + 100, 5), (DATA + 7, 1), (DATA + 100, 3)])
    assert (len(gather), gather.ranges) == (9, 3)
    assert content(gather) == pattern(DATA + 100, 5) + pattern(DATA + 7, 1) + pattern(DATA + 100, 3)
    assert (chain.readable, chain.writable) == (4, 0)


def test_ranges_that_meet_are_merged(chain: Chain) -> None:
    gather = chain.gather((DATA + i * 8, 8) for i in (0, 1, 2, 4, 5, 3))
    assert (len(gather), gather.ranges) == (48, 3)
    assert content(gather) == pattern(DATA, 24) + pattern(DATA + 32, 16) + pattern(DATA + 24, 8)


def test_a_range_may_cross_regions(chain: Chain) -> None:
    gather = chain.gather([(SEAM - 3, 6), (SEAM + 3, 2)])
    assert (len(gather), gather.ranges) == (8, 2)
    assert content(gather) == pattern(SEAM - 3, 8)


def test_the_same_can_be_gathered_again(machine: Machine, chain: Chain) -> None:
    gather = chain.gather([(DATA + 100, 5), (SEAM - 3, 6), (DATA + 7, 1), (DATA + 8, 0)])
    ranges = gather.guest_ranges()
    assert ranges == [(DATA + 100, 5), (SEAM - 3, 3), (SEAM, 3), (DATA + 7, 1)]
    again = machine.ring.gather(ranges)
    assert (again.guest_ranges(), content(again)) == (ranges, content(gather))
    with pytest.raises(MemoryError):
        machine.ring.gather(ranges, 3)
    with pytest.raises(BadDescriptor):
        machine.ring.gather([(END - 1, 2)])


def test_regions_are_never_merged() -> None:
    """Not even where the kernel happens to map one right behind the other."""
    fd = memfd(8 * PAGE)
    regions = [
        Region(fd, guest_addr=i * PAGE, user_addr=i * PAGE, size=PAGE, offset=i * PAGE) for i in range(8)
    ]
    os.close(fd)
    chain = scattered(GuestMemory(regions))
    for ranges in ([(0, 8 * PAGE)], [(i * PAGE, PAGE) for i in reversed(range(8))]):
        gather = chain.gather(ranges)
        assert gather.ranges == 8
        assert sorted(offset for _, offset, _ in gather.files()) == [i * PAGE for i in range(8)]


@pytest.mark.parametrize("ranges", [[], [(DATA, 0)], [(0, 0), (2**64 - 1, 0)]])
def test_an_empty_span(chain: Chain, ranges: list[tuple[int, int]]) -> None:
    gather = chain.gather(ranges)
    assert (len(gather), gather.ranges, gather.files(), content(gather)) == (0, 0, [], b"")
    with pytest.raises(BadRequest):
        gather.copy_rows(bytearray(1), 0, offset=0, row=1, rows=1, stride=1, into_stride=1)
    left, right = socket.socketpair()
    with left, right:
        assert gather.sendmsg(left.fileno(), 0, 0) == 0


def test_empty_ranges_add_nothing(chain: Chain) -> None:
    gather = chain.gather([(0, 0), (DATA, 4), (1, 0), (DATA + 4, 4), (END, 0)])
    assert (len(gather), gather.ranges) == (8, 1)


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (GUEST - 1, 1),
        (GUEST - 1, 2),
        (END, 1),
        (END - 1, 2),
        (GUEST, SIZE + 1),
        (GUEST, 2**63 - 1),
        *((DATA, n) for n in HUGE),
        *((n, 1) for n in HUGE),
        *((n, m) for n in (-1, 2**64) for m in (0, *HUGE)),
    ],
)
def test_not_guest_memory(chain: Chain, addr: int, length: int) -> None:
    for ranges in ([(addr, length)], [(DATA, 4), (addr, length), (DATA, 4)]):
        with pytest.raises(BadDescriptor, match=f"{length} bytes at guest address {addr:#x}"):
            chain.gather(ranges)


def test_more_bytes_than_can_be_counted() -> None:
    """Memory much larger than the machine's, which nobody touches."""
    big = 2**44
    fd = memfd(big)
    chain = scattered(GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=big)]))
    os.close(fd)
    most = [(0, big)] * (2**19 - 1)
    assert len(chain.gather([*most, (0, big - 1)])) == 2**63 - 1
    with pytest.raises(BadDescriptor, match="more than can be counted"):
        chain.gather([*most, (0, big)])


@pytest.mark.parametrize("ranges", [5, [5], [(1,)], [(1, 2, 3)], [("1", 2)], [(DATA, None)]])
def test_ranges_must_be_pairs_of_integers(chain: Chain, ranges: Sequence[tuple[int, int]]) -> None:
    with pytest.raises((TypeError, ValueError)):
        chain.gather(ranges)


def test_gathers_are_not_made_by_hand(machine: Machine) -> None:
    with pytest.raises(TypeError, match=r"comes from Chain\.gather"):
        Gather(machine.memory)  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError):
        unmade(Gather)
    gather = Gather.__new__(Gather, machine.memory)  # type: ignore[call-arg]  # what is tested
    assert content(gather) == b""


# --- Rows -------------------------------------------------------------------------------------------------


def test_rows(chain: Chain) -> None:
    gather = chain.gather([(DATA, 10), (DATA + 100, 10)])
    into = bytearray(b"." * 20)
    gather.copy_rows(into, 1, offset=2, row=3, rows=3, stride=6, into_stride=5)
    span = pattern(DATA, 10) + pattern(DATA + 100, 10)
    assert into == b"." + span[2:5] + b".." + span[8:11] + b".." + span[14:17] + b"." * 6


def test_rows_without_a_gap(chain: Chain) -> None:
    gather = chain.gather([(DATA, 10), (DATA + 100, 10)])
    into = bytearray(20)
    gather.copy_rows(into, 2, offset=4, row=4, rows=4, stride=4, into_stride=4)
    assert into == b"\0\0" + content(gather)[4:] + b"\0\0"


def test_into_guest_memory(machine: Machine, chain: Chain) -> None:
    """Any writable buffer will do, also one that overlaps the ranges."""
    gather = chain.gather([(DATA, 8)])
    gather.copy_rows(machine.memory.guest(DATA + 2, 8), 0, offset=0, row=8, rows=1, stride=8, into_stride=8)
    assert machine.memory.read(DATA, 10) == pattern(DATA, 2) + pattern(DATA, 8)


def test_into_what_cannot_be_written(chain: Chain) -> None:
    gather = chain.gather([(DATA, 8)])
    for into in (b"12345678", memoryview(bytearray(16))[::2]):
        with pytest.raises(BufferError):
            gather.copy_rows(into, 0, offset=0, row=8, rows=1, stride=8, into_stride=8)


@pytest.mark.parametrize(
    "rows",
    [
        *({name: n} for name in ("offset", "row", "rows", "stride") for n in HUGE),
        {"offset": 3},
        {"row": 9},
        {"rows": 4},
        {"stride": 9},
        {"offset": 27, "rows": 0},
        {"offset": 2**64, "rows": 0},
        {"offset": 2**64, "row": 0, "rows": 1},
        {"offset": 1, "row": 2**64 - 1, "rows": 1},
        {"stride": 2**32, "rows": 2**32},
        {"stride": 2**63, "rows": 3, "row": 0},
    ],
)
def test_rows_outside_the_span(chain: Chain, rows: dict[str, int]) -> None:
    gather = chain.gather([(DATA, 10), (DATA + 20, 16)])
    inside = {"offset": 2, "row": 8, "rows": 3, "stride": 8}
    gather.copy_rows(bytearray(24), 0, into_stride=8, **inside)
    into = bytearray(24)
    with pytest.raises(BadRequest, match="are not inside the 26 gathered"):
        gather.copy_rows(into, 0, into_stride=8, **(inside | rows))
    assert into == bytes(24)


@pytest.mark.parametrize(
    ("at", "into_stride"),
    [
        *((n, 6) for n in HUGE),
        *((0, n) for n in HUGE),
        (11, 6),
        (0, 12),
        (0, 0),
        (0, 5),
    ],
)
def test_rows_outside_the_buffer(chain: Chain, at: int, into_stride: int) -> None:
    gather = chain.gather([(DATA, 64)])
    into = bytearray(28)
    with pytest.raises(ValueError, match=f"3 rows of 6 bytes, {into_stride} apart, at {at} of 28"):
        gather.copy_rows(into, at, offset=0, row=6, rows=3, stride=8, into_stride=into_stride)
    assert into == bytes(28)


def test_many_rows_of_the_same_bytes_are_refused_at_once(chain: Chain) -> None:
    gather = chain.gather([(DATA, 64)])
    with pytest.raises(ValueError, match="1267650600228229401496703205376 rows"):
        gather.copy_rows(bytearray(8), 0, offset=0, row=8, rows=2**100, stride=0, into_stride=0)
    gather.copy_rows(bytearray(8), 0, offset=0, row=0, rows=2**100, stride=0, into_stride=0)


@pytest.mark.parametrize("rows", [{"row": 2**70, "rows": 0}, {"row": 4, "rows": 1}])
def test_numbers_that_do_not_matter_may_be_any(chain: Chain, rows: dict[str, int]) -> None:
    gather = chain.gather([(DATA, 4)])
    gather.copy_rows(bytearray(4), 0, offset=0, stride=2**70, into_stride=2**70, **rows)


def model(
    span: bytes, into: bytes, at: int, offset: int, row: int, rows: int, stride: int, into_stride: int
) -> bytes | type[Exception]:
    """What `into` should be, or what should be raised."""
    if min(offset, row, rows, stride) < 0 or offset > len(span):
        return BadRequest
    if rows and offset + (rows - 1) * stride + row > len(span):
        return BadRequest
    if min(at, into_stride) < 0 or at > len(into) or (rows > 1 and into_stride < row):
        return ValueError
    if rows and at + (rows - 1) * into_stride + row > len(into):
        return ValueError
    copied = bytearray(into)
    for i in range(rows if row else 0):
        to, start = at + i * into_stride, offset + i * stride
        copied[to : to + row] = span[start : start + row]
    return bytes(copied)


@quick
@given(
    ranges=RANGES,
    size=st.integers(0, 200),
    at=NUMBERS,
    offset=NUMBERS,
    row=COUNTS,
    rows=COUNTS,
    strides=st.one_of(st.none(), st.tuples(COUNTS, COUNTS)),
)
def test_rows_are_those_of_the_model(
    ranges: list[tuple[int, int, bool]],
    size: int,
    at: int,
    offset: int,
    row: int,
    rows: int,
    strides: tuple[int, int] | None,
) -> None:
    stride, into_stride = strides or (row, row)
    machine = Machine()
    machine.memory.write(DATA, PATTERN[DATA - GUEST :])
    gather = machine.chain([(DATA, 1, False)]).gather(joined(ranges))
    span = b"".join(pattern(addr, length) for addr, length in joined(ranges))
    assert content(gather) == span
    before = b"." * size
    into = bytearray(before)
    expected = model(span, before, at, offset, row, rows, stride, into_stride)
    rest = {"offset": offset, "row": row, "rows": rows, "stride": stride, "into_stride": into_stride}
    if isinstance(expected, bytes):
        gather.copy_rows(into, at, **rest)
        assert into == expected
    else:
        with pytest.raises(expected):
            gather.copy_rows(into, at, **rest)
        assert into == before


# --- Sockets ----------------------------------------------------------------------------------------------


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        yield left, right


Sockets = tuple[socket.socket, socket.socket]


def test_sendmsg(chain: Chain, sockets: Sockets) -> None:
    left, right = sockets
    gather = chain.gather([(DATA, 10), (SEAM - 5, 10), (DATA + 100, 10)])
    for offset, n in [(0, 30), (0, 1), (9, 2), (10, 5), (14, 2), (12, 12), (29, 1), (30, 0), (7, 0)]:
        assert gather.sendmsg(left.fileno(), offset, n) == n
        assert (right.recv(100) if n else b"") == content(gather)[offset : offset + n]


@quick
@given(ranges=RANGES, offset=NUMBERS, n=NUMBERS)
def test_sent_is_what_the_model_says(ranges: list[tuple[int, int, bool]], offset: int, n: int) -> None:
    machine = Machine()
    machine.memory.write(DATA, PATTERN[DATA - GUEST :])
    gather = machine.chain([(DATA, 1, False)]).gather(joined(ranges))
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        if offset >= 0 <= n and offset + n <= len(gather):
            assert gather.sendmsg(left.fileno(), offset, n) == n
            assert right.recv(1000) == content(gather)[offset : offset + n]
        else:
            with pytest.raises(BadRequest, match=f"{n} bytes at {offset} are not inside"):
                gather.sendmsg(left.fileno(), offset, n)


def test_more_ranges_than_a_system_call_takes(chain: Chain, sockets: Sockets) -> None:
    left, right = sockets
    gather = chain.gather((DATA + 2 * i, 1) for i in range(1500))
    assert gather.sendmsg(left.fileno(), 3, 1497) == 1024
    assert gather.sendmsg(left.fileno(), 3 + 1024, 473) == 473
    assert right.recv(2000) == pattern(DATA, 3000)[6::2]


def test_partial_sends(chain: Chain, sockets: Sockets) -> None:
    left, right = sockets
    left.setblocking(False)
    gather = chain.gather([(DATA + 16, SIZE - HALF), (DATA, 7)] * 20)
    sent, received = 0, b""
    while sent < len(gather):
        try:
            sent += gather.sendmsg(left.fileno(), sent, len(gather) - sent)
        except BlockingIOError:
            received += right.recv(sent - len(received), socket.MSG_WAITALL)
    received += right.recv(sent - len(received), socket.MSG_WAITALL)
    assert received == content(gather)


def test_a_full_socket(chain: Chain, sockets: Sockets) -> None:
    left, _ = sockets
    left.setblocking(False)
    gather = chain.gather([(DATA, 100)])
    with suppress(BlockingIOError):
        while True:
            left.send(bytes(1000))
    with pytest.raises(BlockingIOError):
        gather.sendmsg(left.fileno(), 0, 100)


def test_flags_and_failures(chain: Chain, sockets: Sockets) -> None:
    left, right = sockets
    right.close()
    gather = chain.gather([(DATA, 100)])
    with pytest.raises(BrokenPipeError):
        gather.sendmsg(left.fileno(), 0, 100, socket.MSG_NOSIGNAL)
    with pytest.raises(OSError, match="Bad file descriptor"):
        gather.sendmsg(-1, 0, 100)


def test_other_threads_run_during_a_send(chain: Chain, sockets: Sockets) -> None:
    left, right = sockets
    gather = chain.gather([(DATA, HALF), (DATA + 1, HALF - 1)] * 10)  # more than a socket holds
    received: list[bytes] = []
    receiver = threading.Thread(target=lambda: received.append(right.recv(len(gather), socket.MSG_WAITALL)))
    receiver.start()
    assert gather.sendmsg(left.fileno(), 0, len(gather)) == len(gather)
    receiver.join()
    assert received == [content(gather)]


# --- Memory that goes --------------------------------------------------------------------------------------


@pytest.fixture
def shrinking() -> Iterator[tuple[int, Gather]]:
    """A file, and a span of its 16 pages in reverse order."""
    fd = memfd(16 * PAGE)
    chain = scattered(GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=16 * PAGE)]))
    gather = chain.gather((i * PAGE, PAGE) for i in reversed(range(16)))
    del chain
    yield fd, gather
    os.close(fd)


def test_rows_of_lost_memory(shrinking: tuple[int, Gather]) -> None:
    fd, gather = shrinking
    os.pwrite(fd, b"x" * 16 * PAGE, 0)
    os.ftruncate(fd, 8 * PAGE)
    into = bytearray(b"." * 4)
    gather.copy_rows(into, 0, offset=15 * PAGE, row=1, rows=4, stride=1, into_stride=1)
    assert into == b"xxxx"
    with pytest.raises(MemoryLost, match="the file behind it shrank"):
        gather.copy_rows(into, 0, offset=8 * PAGE - 2, row=4, rows=1, stride=4, into_stride=4)
    assert into == b"\0\0xx"


def test_sends_of_lost_memory(shrinking: tuple[int, Gather], sockets: Sockets) -> None:
    fd, gather = shrinking
    os.ftruncate(fd, 8 * PAGE)
    assert gather.sendmsg(sockets[0].fileno(), 8 * PAGE, 8 * PAGE) == 8 * PAGE
    with pytest.raises(MemoryLost, match="the file behind it shrank"):
        gather.sendmsg(sockets[0].fileno(), 0, PAGE)


def test_numbers_from_lost_memory_are_not_blamed_on_the_driver(shrinking: tuple[int, Gather]) -> None:
    fd, gather = shrinking
    os.ftruncate(fd, 0)
    with pytest.raises(MemoryLost):
        content(gather)
    with pytest.raises(MemoryLost, match="1 bytes at 65536 are not inside"):
        gather.sendmsg(-1, 16 * PAGE, 1)
    with pytest.raises(MemoryLost, match="2 rows of 1 bytes"):
        gather.copy_rows(b"", 0, offset=0, row=1, rows=2, stride=2**63, into_stride=1)


def test_a_gather_keeps_its_memory() -> None:
    name = "memfd:kept"
    fd = os.memfd_create("kept", os.MFD_CLOEXEC)
    os.ftruncate(fd, 2 * PAGE)
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=2 * PAGE)])
    os.close(fd)
    memory.write(PAGE, b"still here")
    chain = scattered(memory)
    gather = chain.gather([(PAGE, 10)])
    del memory, chain
    assert content(gather) == b"still here"
    assert name in Path("/proc/self/maps").read_text()
    ((kept, offset, length),) = gather.files()
    assert os.pread(kept, length, offset) == b"still here"
    del gather
    assert name not in Path("/proc/self/maps").read_text()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


# --- Files -------------------------------------------------------------------------------------------------


def test_files(chain: Chain) -> None:
    """The first half of the machine's memory is the second of its file."""
    gather = chain.gather([(DATA + 5, 7), (SEAM - 2, 4), (DATA, 5)])
    files = gather.files()
    assert [(offset, length) for _, offset, length in files] == [
        (HALF + DATA - GUEST + 5, 7),
        (SIZE - 2, 2),
        (0, 2),
        (HALF + DATA - GUEST, 5),
    ]
    assert b"".join(os.pread(fd, length, offset) for fd, offset, length in files) == content(gather)
    first, last_of_first, second, _ = (fd for fd, _, _ in files)
    assert first == last_of_first != second
    assert files == gather.files()
    assert fcntl.fcntl(first, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_files_of_a_region_that_starts_within_a_page() -> None:
    fd = memfd(4 * PAGE)
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=USER, size=2 * PAGE, offset=PAGE + 16)])
    os.pwrite(fd, b"here", 2 * PAGE + 16 + 3)
    os.close(fd)
    gather = scattered(memory).gather([(PAGE + 3, 4)])
    ((kept, offset, length),) = gather.files()
    assert (offset, length) == (2 * PAGE + 19, 4)
    assert os.pread(kept, length, offset) == content(gather) == b"here"
