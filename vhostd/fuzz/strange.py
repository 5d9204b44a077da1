"""File descriptors that a front-end may send, right or wrong."""

import os
import socket
from collections.abc import Callable

from vhostd.wire.fds import Fd

GARBAGE = bytes(range(256))
_FLAGS = os.O_CLOEXEC


def open_fd(kind: str) -> Fd:
    """A new fd of a kind in `KINDS`."""
    return KINDS[kind]()


def _file(size: int, mode: int = os.O_RDWR) -> Fd:
    with Fd(os.memfd_create("fuzz", os.MFD_CLOEXEC)) as fd:
        os.ftruncate(fd.fileno(), size)
        return Fd(os.open(f"/proc/self/fd/{fd.fileno()}", mode | _FLAGS))


def _full_pipe() -> Fd:
    """The end to read from of a pipe that has something in it, and then ends."""
    ours, theirs = os.pipe2(_FLAGS)
    os.write(theirs, GARBAGE)
    os.close(theirs)
    return Fd(ours)


def _broken_pipe() -> Fd:
    """The end to write to of a pipe that nobody reads."""
    ours, theirs = os.pipe2(_FLAGS)
    os.close(ours)
    return Fd(theirs)


def _lonely_socket() -> Fd:
    """A socket whose other end is closed."""
    ours, theirs = socket.socketpair()
    ours.close()
    return Fd(theirs.detach())


KINDS: dict[str, Callable[[], Fd]] = {
    "eventfd": lambda: Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)),
    "semaphore": lambda: Fd(os.eventfd(1, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)),
    "full eventfd": lambda: Fd(os.eventfd(2**32 - 2, os.EFD_CLOEXEC)),
    "pipe": _full_pipe,
    "broken pipe": _broken_pipe,
    "socket": _lonely_socket,
    "datagrams": lambda: Fd(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()),
    "folder": lambda: Fd(os.open("/", os.O_RDONLY | _FLAGS)),
    "path": lambda: Fd(os.open("/", os.O_PATH | _FLAGS)),
    "null": lambda: Fd(os.open("/dev/null", os.O_RDWR | _FLAGS)),
    "file": lambda: _file(1 << 20),
    "empty file": lambda: _file(0),
    "short file": lambda: _file(4096 + 100),
    "read-only file": lambda: _file(1 << 20, os.O_RDONLY),
}
