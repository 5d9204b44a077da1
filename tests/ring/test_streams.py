"""What a shortcut does with the streams of a chain: peek, take, put, and system calls that are tried."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.ring.machine import DATA, END, SEAM, Machine, memfd
from tests.ring.native import built
from tests.ring.test_lost_memory import PAGE, Shrinking
from tests.ring.test_write_log import Log
from vhostd.errors import BadRequest, MemoryLost
from vhostd.ring import Chain

TEXT = b"hello, world!"


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built("streams", tmp_path_factory.mktemp("streams"))


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(16)
    yield machine
    machine.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        yield near, far


def pieces(*, writes: bool) -> list[tuple[int, int, bool]]:
    """13 bytes in three buffers, the second of which crosses regions."""
    return [(DATA, 3, writes), (SEAM - 4, 8, writes), (DATA + 0x100, 2, writes)]


def fill(machine: Machine) -> None:
    """Writes the text into the pieces."""
    machine.memory.write(DATA, TEXT[:3])
    machine.memory.write(SEAM - 4, TEXT[3:11])
    machine.memory.write(DATA + 0x100, TEXT[11:])


def filled(machine: Machine) -> bytes:
    """What is in the pieces."""
    return b"".join(machine.memory.read(addr, size) for addr, size, _ in pieces(writes=True))


# --- Bytes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", range(14))
def test_take_goes_on_where_it_ended(native: Any, machine: Machine, cut: int) -> None:
    fill(machine)
    chain = machine.chain(pieces(writes=False))
    assert native.take(chain, cut) + native.take(chain, 13 - cut) == TEXT
    assert chain.readable == 0


@pytest.mark.parametrize("cut", range(1, 13))
def test_put_goes_on_where_it_ended(native: Any, machine: Machine, cut: int) -> None:
    chain = machine.chain(pieces(writes=True))
    native.put(chain, TEXT[:cut])
    native.put(chain, TEXT[cut:])
    assert filled(machine) == TEXT
    assert (chain.writable, chain.written) == (0, 13)


def test_peek_gives_what_lies_in_one_piece_and_stays(native: Any, machine: Machine) -> None:
    fill(machine)
    chain = machine.chain(pieces(writes=False))
    assert [native.peek(chain, 3), native.peek(chain, 1), native.peek(chain, 4)] == [b"hel", b"h", None]
    assert native.take(chain, 3) == b"hel"
    assert native.peek(chain, 5) is None  # the regions meet within
    assert native.peek(chain, 4) == TEXT[3:7]
    assert native.peek(chain, 100) is None


def test_there_is_no_more_than_there_is(native: Any, machine: Machine) -> None:
    """Neither stream has moved then."""
    chain = machine.chain([*pieces(writes=False), (DATA + 0x200, 4, True)])
    with pytest.raises(BadRequest, match="14 bytes"):
        native.take(chain, 14)
    with pytest.raises(BadRequest, match="5 bytes"):
        native.put(chain, b"12345")
    assert (chain.readable, chain.writable, chain.written) == (13, 4, 0)


def test_a_hole_is_not_reached_into(native: Any, machine: Machine) -> None:
    machine.memory.write(DATA, TEXT[:3])
    chain = machine.chain(
        [(DATA, 3, False), (END - 2, 4, False), (DATA + 0x100, 3, True), (END - 2, 4, True)]
    )
    assert native.peek(chain, 1) is None
    assert native.take(chain, 5)[:3] == TEXT[:3]
    native.put(chain, b"12345")
    with pytest.raises(BadRequest, match=r"not in guest memory|outside"):
        native.take(chain, 1)
    with pytest.raises(BadRequest, match=r"not in guest memory|outside"):
        native.put(chain, b"6")


# --- System calls ---------------------------------------------------------------------------------------


def test_what_is_tried_leaves_the_streams_where_they_are(native: Any, machine: Machine) -> None:
    fill(machine)
    chain = machine.chain([*pieces(writes=False), (DATA + 0x200, 20, True)])
    fd = memfd(0)
    try:
        assert native.attempt(chain, "write", fd, 4, 13, 0, 0) == 13
        assert os.pread(fd, 100, 0) == bytes(4) + TEXT
        assert native.attempt(chain, "read", fd, 4, 20, 0, 0) == 13
        assert native.attempt(chain, "read", fd, 17, 20, 0, 0) == 0
    finally:
        os.close(fd)
    assert machine.memory.read(DATA + 0x200, 13) == TEXT
    assert (chain.readable, chain.writable, chain.written) == (13, 20, 0)


@pytest.mark.parametrize("skip", range(13))
def test_a_part_is_received(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket], skip: int
) -> None:
    """What is before it, and behind it, stays as it was."""
    fill(machine)
    chain = machine.chain(pieces(writes=True))
    pair[1].send(b"*" * 20)  # more than fits: a message is cut
    most = min(5, 13 - skip)
    assert native.attempt(chain, "receive", pair[0].fileno(), 0, most, 0, skip) == most
    assert filled(machine) == TEXT[:skip] + b"*" * most + TEXT[skip + most :]


@pytest.mark.parametrize("skip", range(13))
def test_a_part_is_sent(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket], skip: int
) -> None:
    fill(machine)
    chain = machine.chain(pieces(writes=False))
    most = min(5, 13 - skip)
    assert native.attempt(chain, "send", pair[0].fileno(), 0, most, 0, skip) == most
    assert pair[1].recv(100) == TEXT[skip : skip + most]


def test_it_begins_where_the_stream_is(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket]
) -> None:
    fill(machine)
    chain = machine.chain(pieces(writes=False))
    assert native.take(chain, 4) == TEXT[:4]
    assert native.attempt(chain, "send", pair[0].fileno(), 0, 8, 0, 1) == 8
    assert pair[1].recv(100) == TEXT[5:]


def test_a_call_that_fails_is_its_error(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket]
) -> None:
    chain = machine.chain([*pieces(writes=False), (DATA + 0x200, 20, True)])
    near, far = pair
    assert native.attempt(chain, "receive", near.fileno(), 0, 20, socket.MSG_DONTWAIT, 0) == -errno.EAGAIN
    assert native.attempt(chain, "read", -1, 0, 20, 0, 0) == -errno.EBADF
    far.close()
    assert native.attempt(chain, "receive", near.fileno(), 0, 20, 0, 0) == 0
    assert native.attempt(chain, "send", near.fileno(), 0, 13, socket.MSG_NOSIGNAL, 0) == -errno.EPIPE
    assert (chain.readable, chain.writable, chain.written) == (13, 20, 0)


def test_the_kernel_reaches_into_no_hole(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket]
) -> None:
    chain = machine.chain([(END + PAGE, 8, False), (END + PAGE, 8, True)])
    assert native.attempt(chain, "send", pair[0].fileno(), 0, 8, 0, 0) == -errno.EFAULT
    pair[1].send(b"*" * 8)
    assert native.attempt(chain, "receive", pair[0].fileno(), 0, 8, 0, 0) == -errno.EFAULT


@pytest.mark.parametrize("how", ["put", "receive"])
def test_what_is_written_is_logged(
    native: Any, machine: Machine, pair: tuple[socket.socket, socket.socket], how: str
) -> None:
    log = Log()
    machine.ring.log_writes(log)
    chain = machine.chain(pieces(writes=True))
    if how == "put":
        native.put(chain, TEXT[:9])
    else:
        pair[1].send(TEXT[:9])
        assert native.attempt(chain, "receive", pair[0].fileno(), 0, 13, 0, 0) == 9
    assert log.dirty == {*range(DATA, DATA + 3), *range(SEAM - 4, SEAM + 2)}


# --- Memory that vanishes -------------------------------------------------------------------------------


LOSING: dict[str, Callable[[Any, Chain, int], object]] = {
    "take": lambda native, chain, _: native.take(chain, chain.readable),
    "put": lambda native, chain, _: native.put(chain, bytes(chain.writable)),
    "send": lambda native, chain, fd: native.attempt(chain, "send", fd, 0, 64, 0, 0),
    "receive": lambda native, chain, fd: native.attempt(chain, "receive", fd, 0, 64, 0, 0),
}


@pytest.mark.parametrize("what", LOSING)
def test_lost_memory_is_told_of(native: Any, pair: tuple[socket.socket, socket.socket], what: str) -> None:
    with closing(Shrinking()) as machine:
        chain = machine.chain()
        machine.shrink(8 * PAGE)
        pair[1].send(bytes(64))
        with pytest.raises(MemoryLost, match="the file behind it shrank"):
            LOSING[what](native, chain, pair[0].fileno())
