"""Notifications through each kind of fd, whatever others do to the fd's flags."""

import os
import select
import socket
import tempfile
from collections.abc import Callable, Iterator

import pytest

from vhostd.errors import RefusedRequest
from vhostd.fds import Fd
from vhostd.notification import Notification, notification


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
