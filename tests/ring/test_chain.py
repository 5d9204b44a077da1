"""Chains as two streams: framing does not show, counts are exact, system calls move what they say."""

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ring.machine import DATA, END, SEAM, Machine, memfd, unmade
from vhostd.errors import BadRequest
from vhostd.ring import Chain, GuestMemory, Ready, Reserved
from vhostd.wire.layout import Layout, u16, u32


class Header(Layout):
    kind: u32
    flags: u16


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(16)
    yield machine
    machine.close()


@pytest.fixture
def file() -> Iterator[int]:
    fd = memfd(0)
    os.write(fd, bytes(range(256)))
    yield fd
    os.close(fd)


def test_streams(machine: Machine) -> None:
    machine.memory.write(DATA, b"request")
    chain = machine.chain([(DATA, 7, False), (DATA + 0x100, 4, True)])
    assert (chain.head, chain.readable, chain.writable, chain.written) == (0, 7, 4, 0)
    assert chain.read(3) == b"req"
    chain.write(b"ok")
    assert repr(chain) == "Chain(head=0, readable=4, writable=2, written=2)"
    assert chain.read(4) == b"uest"
    assert machine.memory.read(DATA + 0x100, 4) == b"ok\0\0"


@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("indirect", [None, DATA + 0x4000])
def test_framing_does_not_show(machine: Machine, cut: int, indirect: int | None) -> None:
    """The same 13 bytes each way, in two buffers that meet at any byte, or in one per byte."""
    text = b"hello, world!"
    cuts = [(0, cut), (cut, 13 - cut)] if cut < 12 else [(i, 1) for i in range(6)] + [(6, 7)]
    readable = [(DATA + 0x100 * i + at, size, False) for i, (at, size) in enumerate(cuts)]
    writable = [(addr + 0x2000, size, True) for addr, size, _ in readable]
    for (addr, size, _), (at, _) in zip(readable, cuts, strict=True):
        machine.memory.write(addr, text[at : at + size])
    chain = machine.chain([*readable, *writable], indirect=indirect)
    assert chain.read(5) + chain.read(8) == text
    chain.write(text[:2])
    chain.write(text[2:])
    assert b"".join(machine.memory.read(addr, size) for addr, size, _ in writable) == text
    assert (chain.readable, chain.writable, chain.written) == (0, 0, 13)


def test_buffer_across_regions(machine: Machine) -> None:
    machine.memory.write(SEAM - 4, b"12345678")
    chain = machine.chain([(SEAM - 4, 8, False), (SEAM - 2, 4, True)])
    assert chain.read(8) == b"12345678"
    chain.write(b"abcd")
    assert machine.memory.read(SEAM - 4, 8) == b"12abcd78"


def test_empty_buffers_vanish(machine: Machine) -> None:
    chain = machine.chain([(0, 0, False), (DATA, 2, False), (1, 0, False), (2, 0, True), (DATA, 2, True)])
    assert (chain.readable, chain.writable) == (2, 2)
    assert chain.read(2) == b"\0\0"
    chain.write(b"ab")


def test_more_pieces_than_fit_inline(machine: Machine) -> None:
    half = [(DATA + i, 1, False) for i in range(7)] + [(SEAM - 1, 2, False)]
    machine.memory.write(DATA, b"abcdefg")
    machine.memory.write(SEAM - 1, b"hi")
    chain = machine.chain([*half, *((addr, size, True) for addr, size, _ in half)])
    assert chain.read(9) == b"abcdefghi"
    chain.write(b"ABCDEFGHI")
    assert machine.memory.read(DATA, 7) + machine.memory.read(SEAM - 1, 2) == b"ABCDEFGHI"


@pytest.mark.parametrize("n", [5, 2**32, 2**63, 2**64, -1, -(2**70)])
def test_counts_that_do_not_fit(machine: Machine, file: int, n: int) -> None:
    chain = machine.chain([(DATA, 4, False), (DATA, 4, True)])
    for call in (
        lambda: chain.read(n),
        lambda: chain.skip(n),
        lambda: chain.skip_writable(n),
        lambda: chain.preadv(file, 0, n),
        lambda: chain.pwritev(file, 0, n),
        lambda: chain.sendmsg(file, n),
        lambda: chain.recvmsg(file, n),
    ):
        with pytest.raises(BadRequest, match=f"chain 0: {n} bytes .* 4 left"):
            call()
    assert (chain.readable, chain.writable, chain.written) == (4, 4, 0)


def test_write_that_does_not_fit(machine: Machine) -> None:
    chain = machine.chain([(DATA, 4, True)])
    with pytest.raises(BadRequest):
        chain.write(b"12345")
    assert (chain.writable, chain.written) == (4, 0)
    assert machine.memory.read(DATA, 5) == bytes(5)


def test_counts_must_be_integers(machine: Machine) -> None:
    chain = machine.chain([(DATA, 4, False)])
    with pytest.raises(TypeError):
        chain.read("4")  # type: ignore[arg-type]  # what is tested
    with pytest.raises(TypeError):
        chain.write(4)  # type: ignore[arg-type]  # what is tested


def test_unpack(machine: Machine) -> None:
    machine.memory.write(DATA, Header(kind=7, flags=9).pack())
    chain = machine.chain([(DATA, 2, False), (DATA + 2, 6, False)])
    assert chain.unpack(Header) == Header(kind=7, flags=9)
    assert chain.readable == 2
    with pytest.raises(BadRequest):
        chain.unpack(Header)


def test_skip(machine: Machine) -> None:
    machine.memory.write(DATA, b"abcd")
    chain = machine.chain([(DATA, 2, False), (DATA + 2, 2, False), (DATA + 8, 3, True)])
    chain.skip(3)
    assert chain.read(1) == b"d"
    chain.skip_writable(2)
    chain.write(b"!")
    assert chain.written == 3
    assert machine.memory.read(DATA + 8, 3) == b"\0\0!"


def test_preadv(machine: Machine, file: int) -> None:
    chain = machine.chain([(DATA, 3, True), (SEAM - 2, 4, True), (DATA + 8, 1, True)])
    assert chain.preadv(file, 10, 2) == 2
    assert chain.preadv(file, 12, 5) == 5
    assert (chain.writable, chain.written) == (1, 7)
    assert machine.memory.read(DATA, 3) + machine.memory.read(SEAM - 2, 4) == bytes(range(10, 17))


def test_preadv_at_the_end_of_the_file(machine: Machine, file: int) -> None:
    chain = machine.chain([(DATA, 8, True)])
    assert chain.preadv(file, 254, 8) == 2
    assert chain.preadv(file, 256, 6) == 0
    assert (chain.writable, chain.written) == (6, 2)


def test_pwritev(machine: Machine, file: int) -> None:
    machine.memory.write(DATA, b"abcdef")
    chain = machine.chain([(DATA, 2, False), (DATA + 2, 4, False)])
    assert chain.pwritev(file, 100, 5) == 5
    assert os.pread(file, 7, 99) == b"\x63abcde\x69"
    assert chain.readable == 1


def test_preadv_from_the_page_cache_only(machine: Machine, tmp_path: Path) -> None:
    with open(tmp_path / "image", "w+b", buffering=0) as image:
        fd = image.fileno()
        image.write(b"abcd")
        chain = machine.chain([(DATA, 8, True)])
        assert chain.preadv(fd, 0, 4, os.RWF_NOWAIT) == 4
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            moved = chain.preadv(fd, 0, 4, os.RWF_NOWAIT)
        except BlockingIOError:  # unless the file system lives in memory, or was quick
            moved = 0
        assert (chain.writable, chain.written) == (4 - moved, 4 + moved)


def test_pwritev_flags(machine: Machine, file: int) -> None:
    machine.memory.write(DATA, b"abcd")
    chain = machine.chain([(DATA, 4, False)])
    assert chain.pwritev(file, 0, 2, flags=os.RWF_DSYNC) == 2
    with pytest.raises(OSError, match="not supported"):
        chain.pwritev(file, 2, 2, 1 << 30)
    assert (chain.readable, os.pread(file, 4, 0)) == (2, b"ab\x02\x03")


@pytest.mark.parametrize("offset", [-1, 2**63 - 1, 2**63, 2**64])
def test_offset_of_no_file(machine: Machine, file: int, offset: int) -> None:
    chain = machine.chain([(DATA, 8, True)])
    with pytest.raises(BadRequest, match=f"no file has 8 bytes at offset {offset}"):
        chain.preadv(file, offset, 8)


def test_failed_call_moves_nothing(machine: Machine) -> None:
    chain = machine.chain([(DATA, 8, True)])
    with pytest.raises(OSError, match="Bad file descriptor") as error:
        chain.preadv(-1, 0, 8)
    assert error.value.errno == errno.EBADF
    assert (chain.writable, chain.written) == (8, 0)


def test_sockets(machine: Machine) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        machine.memory.write(DATA, b"frame")
        chain = machine.chain(
            [(DATA, 3, False), (DATA + 3, 2, False), (DATA + 16, 2, True), (DATA + 32, 6, True)]
        )
        assert chain.sendmsg(left.fileno(), 5) == 5
        assert right.recv(100) == b"frame"
        right.send(b"answer")
        assert chain.recvmsg(left.fileno(), chain.writable) == 6
        assert machine.memory.read(DATA + 16, 2) + machine.memory.read(DATA + 32, 4) == b"answer"
        with pytest.raises(BlockingIOError):
            chain.recvmsg(left.fileno(), 1, socket.MSG_DONTWAIT)
        assert chain.written == 6


def test_truncated_datagram_advances_by_what_was_asked_for(machine: Machine) -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        right.send(b"12345678")
        chain = machine.chain([(DATA, 4, True)])
        assert chain.recvmsg(left.fileno(), 3, socket.MSG_TRUNC) == 8
        assert (chain.writable, chain.written) == (1, 3)


def test_more_pieces_than_a_system_call_takes(file: int) -> None:
    machine = Machine(1024)
    pieces = [(DATA + 2 * i, 1, True) for i in range(1025)]
    with pytest.raises(IndexError):
        machine.driver.add(pieces)
    seam = [(SEAM - 1, 2, True)] * 1024  # 2048 pieces
    chain = machine.chain(seam)
    os.ftruncate(file, 4096)
    assert chain.preadv(file, 0, 2048) == 1024
    assert chain.writable == 1024


def test_other_threads_run_during_a_system_call(machine: Machine) -> None:
    reader, writer = os.pipe()
    chain = machine.chain([(DATA, 2, False), (DATA, 4, True)])
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=right.send, args=(b"late",))
        sender.start()
        assert chain.recvmsg(left.fileno(), 4, socket.MSG_WAITALL) == 4
        sender.join()
    os.close(reader)
    os.close(writer)
    assert machine.memory.read(DATA, 4) == b"late"


def test_chain_keeps_its_memory() -> None:
    machine = Machine()
    chain = machine.chain([(END - 1, 1, True)])
    del machine
    chain.write(b"x")
    assert chain.written == 1


def test_chains_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError):
        Chain()
    chain = unmade(Chain)
    assert (chain.readable, chain.writable) == (0, 0)
    assert chain.read(0) == b""
    with pytest.raises(BadRequest):
        chain.write(b"x")


@pytest.mark.parametrize("value", [None, 5, (), (1, 2), KeyError("k"), StopIteration(3), GuestMemory()])
def test_ready(value: object) -> None:
    async def wait() -> object:
        return await Ready(value)

    assert asyncio.run(wait()) is value


def test_ready_in_async_for() -> None:
    class Three:
        left = 3

        def __aiter__(self) -> "Three":
            return self

        def __anext__(self) -> Ready[int]:
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return Ready(self.left)

    async def collect() -> list[int]:
        return [i async for i in Three()]

    coroutine = collect()
    with pytest.raises(StopIteration) as stop:  # no event loop was needed
        coroutine.send(None)
    assert stop.value.value == [2, 1, 0]


# --- What is filled in later ------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [1, 5, 11, 12, 13])
def test_a_header_is_filled_in_after_its_payload(machine: Machine, cut: int) -> None:
    chain = machine.chain([(DATA, cut, True), (SEAM - 10, 100, True)])
    header = chain.reserve(12)
    assert (header.size, chain.written, chain.writable) == (12, 12, cut + 88)
    chain.write(b"payload")
    header.fill(b"HEADERHEADER")
    written = (machine.memory.read(DATA, cut) + machine.memory.read(SEAM - 10, 100))[:19]
    assert written == b"HEADERHEADERpayload"
    machine.ring.push(chain)
    assert machine.driver.used() == (0, 19)


def test_several_parts_may_be_reserved(machine: Machine) -> None:
    chain = machine.chain([(DATA, 10, True)])
    parts = [chain.reserve(n) for n in (2, 0, 3)]
    chain.write(b"end")
    for part, data in zip(reversed(parts), (b"bcd", b"", b"aa"), strict=True):
        part.fill(data)
    assert machine.memory.read(DATA, 8) == b"aabcdend"


@pytest.mark.parametrize("n", [-1, 11, 2**70])
def test_no_more_can_be_reserved_than_is_left(machine: Machine, n: int) -> None:
    chain = machine.chain([(DATA, 10, True)])
    with pytest.raises(BadRequest, match="10 left"):
        chain.reserve(n)
    assert chain.writable == 10


def test_a_hole_cannot_be_reserved(machine: Machine) -> None:
    chain = machine.chain([(DATA, 4, True), (END + 4096, 8, True), (DATA + 8, 4, True)])
    chain.reserve(4)
    with pytest.raises(BadRequest, match="outside the memory"):
        chain.reserve(5)
    assert chain.writable == 12
    chain.skip_writable(8)
    chain.reserve(4).fill(b"last")
    assert machine.memory.read(DATA + 8, 4) == b"last"


def test_a_part_is_filled_once_wholly_and_before_the_push(machine: Machine) -> None:
    chain = machine.chain([(DATA, 10, True)])
    first, second = chain.reserve(4), chain.reserve(4)
    for data in (b"", b"123", b"12345"):
        with pytest.raises(ValueError, match="to fill 4"):
            first.fill(data)
    first.fill(b"1234")
    with pytest.raises(ValueError, match="filled already"):
        first.fill(b"5678")
    machine.ring.push(chain)
    with pytest.raises(ValueError, match="given back"):
        second.fill(b"5678")
    assert machine.memory.read(DATA, 8) == b"1234\0\0\0\0"


def test_a_part_keeps_its_chain(machine: Machine) -> None:
    part = machine.chain([(DATA, 10, True)]).reserve(4)
    assert machine.ring.in_flight == 1
    part.fill(b"1234")
    assert machine.ring.in_flight == 0


def test_a_part_comes_from_a_chain() -> None:
    with pytest.raises(TypeError):
        Reserved()
    with pytest.raises(ValueError, match="given back"):
        unmade(Reserved).fill(b"")
