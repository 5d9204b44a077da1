"""Notifications through each kind of fd, whatever others do to the fd's flags."""

import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from vhostd.errors import RefusedRequest
from vhostd.vhost_user.notification import Notification, notification
from vhostd.wire.fds import Fd


def eventfds() -> tuple[Fd, Fd]:
    number = os.eventfd(0)
    return Fd(number), Fd(os.dup(number))


def pipes() -> tuple[Fd, Fd]:
    reader, writer = os.pipe()
    return Fd(reader), Fd(writer)


def fifos() -> tuple[Fd, Fd]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/fifo"
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        return Fd(reader), Fd(os.open(path, os.O_WRONLY))


def sockets(kind: socket.SocketKind) -> Callable[[], tuple[Fd, Fd]]:
    def make() -> tuple[Fd, Fd]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        return Fd(ours.detach()), Fd(theirs.detach())

    return make


KINDS = {
    "eventfd": eventfds,
    "pipe": pipes,
    "fifo": fifos,
    "stream": sockets(socket.SOCK_STREAM),
    "datagrams": sockets(socket.SOCK_DGRAM),
    "packets": sockets(socket.SOCK_SEQPACKET),
}


class Ends:
    """A notification to wait for and one to signal, of the same kind; `others` share their descriptions."""

    def __init__(self, kind: str) -> None:
        reader, writer = KINDS[kind]()
        self.others = [os.dup(reader.fileno()), os.dup(writer.fileno())]
        self.waited = notification(reader)
        self.signalled = notification(writer)
        for other in self.others:  # as those who passed them may do at any time
            os.set_blocking(other, True)

    def close(self) -> None:
        self.waited.close()
        self.signalled.close()
        for other in self.others:
            os.close(other)


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    made = Ends(request.param)
    yield made
    made.close()


def readable(waited: Notification) -> bool:
    return bool(select.select([waited], [], [], 0)[0])


def test_a_signal_arrives_once(ends: Ends) -> None:
    assert not ends.waited.clear()
    ends.signalled.signal()
    assert readable(ends.waited)
    assert ends.waited.clear()
    assert not readable(ends.waited)
    assert not ends.waited.clear()


def test_what_is_read_is_what_an_eventfd_would_give(ends: Ends) -> None:
    """User-mode Linux reads 8 bytes, and takes nothing less."""
    ends.signalled.signal()
    assert os.read(ends.others[0], 100) == (1).to_bytes(8, "little")


def test_neither_side_ever_waits(ends: Ends) -> None:
    """A pipe has room for 64 KiB, a socket for some hundred messages."""
    for _ in range(70_000):
        ends.signalled.signal()
    assert ends.waited.clear()


def test_a_full_eventfd_keeps_nobody_waiting() -> None:
    ends = Ends("eventfd")
    os.eventfd_write(ends.others[0], (1 << 64) - 2)
    ends.signalled.signal()
    assert ends.waited.clear()
    ends.close()


@pytest.mark.parametrize("kind", ["pipe", "stream", "packets"])
def test_an_end_that_nobody_has_any_more(kind: str) -> None:
    ends = Ends(kind)
    os.close(ends.others.pop())
    ends.signalled.close()
    with pytest.raises(OSError, match="other end is closed"):
        ends.waited.clear()
    ends.close()


def test_nobody_needs_to_read_a_signal(ends: Ends) -> None:
    os.close(ends.others.pop(0))
    ends.waited.close()
    ends.signalled.signal()


def test_a_pipe_that_nobody_reads_is_taken_as_well() -> None:
    reader, writer = pipes()
    reader.close()
    signalled = notification(writer)
    signalled.signal()
    signalled.close()


def reopened(number: int, *others: int) -> int:
    """An fd that does no more than name what another one is."""
    fd = os.open(f"/proc/self/fd/{number}", os.O_PATH)
    for each in (number, *others):
        os.close(each)
    return fd


@pytest.mark.parametrize(
    "make",
    [
        lambda: os.open("/", os.O_RDONLY),
        lambda: os.open("/etc/passwd", os.O_RDONLY),
        lambda: os.open("/dev/null", os.O_RDWR),  # as a terminal, which may keep a writer waiting
        lambda: os.memfd_create("memory"),
        lambda: os.pidfd_open(os.getpid()),
        lambda: reopened(os.eventfd(0)),
        lambda: reopened(*os.pipe()),
        lambda: reopened(socket.socket(socket.AF_UNIX).detach()),
    ],
    ids=["folder", "file", "device", "memory", "process", "path-eventfd", "path-pipe", "path-socket"],
)
def test_what_carries_no_notifications(make: Callable[[], int]) -> None:
    fd = Fd(make())
    with pytest.raises(RefusedRequest, match="carries no notifications"):
        notification(fd)
    fd.close()  # it is still the caller's


def test_without_aio_it_is_a_write() -> None:
    """As in a process that is not allowed to have any of the machine's."""
    script = """
import ctypes, errno, os
class Rule(ctypes.Structure):
    _fields_ = ("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)
IO_SETUP, FAIL, ALLOW = 206, 0x50000 | errno.EAGAIN, 0x7FFF0000
rules = (Rule * 4)((0x20, 0, 0, 0), (0x15, 0, 1, IO_SETUP), (6, 0, 0, FAIL), (6, 0, 0, ALLOW))
class Filter(ctypes.Structure):
    _fields_ = ("len", ctypes.c_ushort), ("filter", ctypes.POINTER(Rule))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Filter(4, rules))) == 0, os.strerror(ctypes.get_errno())
from vhostd.wire.fds import Fd
from vhostd.vhost_user.notification import notification
fd = os.eventfd(0)
call = notification(Fd(os.dup(fd)))
os.set_blocking(fd, True)
call.signal()
assert os.eventfd_read(fd) == 1
os.eventfd_write(fd, (1 << 64) - 2)
call.signal()
print("full")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "full\n"
    assert "there is no AIO" in done.stderr
