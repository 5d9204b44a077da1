"""Notifications between driver and device: an fd that one side signals and the other waits for.

vhost-user calls them kick, call and err. QEMU passes eventfds, User-mode Linux one end of a pair of sockets,
others pipes. Whoever passed an fd may share its open file description with us, and with it O_NONBLOCK, which
he can clear at any time. So nothing here relies on that flag: it never waits.
"""

import errno
import fcntl
import logging
import os
import socket
import stat
from abc import ABC, abstractmethod

from vhostd.errors import RefusedRequest
from vhostd.fds import Fd
from vhostd.ring import eventfd

log = logging.getLogger(__name__)

_MOST = 4096  # bytes of a pipe or socket that are taken at a time; how many there are tells nothing


def notification(fd: Fd) -> "Notification":
    """What an fd that came with a message notifies by, out of `fd`.

    Raises RefusedRequest, and leaves `fd` to the caller, if it carries no notifications.
    """
    mode = os.fstat(fd.fileno()).st_mode
    if stat.S_ISSOCK(mode):
        return _Socket(fd)
    if stat.S_ISFIFO(mode):
        return _Pipe(fd)
    if _is_eventfd(fd, mode):
        return _Eventfd(fd)
    raise RefusedRequest(f"an fd that is no eventfd, pipe or socket (mode {mode:o}) carries no notifications")


class Notification(ABC):
    """A kick, call or err fd; owns it."""

    def __init__(self, file: Fd | socket.socket) -> None:
        self._file = file

    def fileno(self) -> int:
        """The fd, which is readable while there is something to clear."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes the fd; idempotent."""
        self._file.close()

    def signal(self) -> None:
        """Notifies the other side; one that is full, or that nobody reads, is as notified as it can be."""
        try:
            self._signal()
        except OSError as error:
            log.debug("notification lost: %s", error)

    def clear(self) -> bool:
        """Takes what the other side has signalled; False if that is nothing.

        Raises OSError if no signal can come any more.
        """
        try:
            size = self._read()
        except BlockingIOError:
            return False
        if not size:  # else it would be readable for ever
            raise ConnectionResetError("its other end is closed")
        return True

    @abstractmethod
    def _signal(self) -> None: ...

    @abstractmethod
    def _read(self) -> int: ...


class _Eventfd(Notification):
    def __init__(self, fd: Fd) -> None:
        os.set_blocking(fd.fileno(), False)  # where the kernel knows no better way
        super().__init__(Fd(fd.take()))
        self._count = bytearray(8)

    def _signal(self) -> None:
        eventfd.signal(self.fileno())

    def _read(self) -> int:
        try:
            return os.preadv(self.fileno(), [self._count], -1, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # before Linux 5.8
                raise
            return len(os.read(self.fileno(), 8))


class _Pipe(Notification):
    """Opened once more, by which it gets an open file description that is ours alone."""

    def __init__(self, fd: Fd) -> None:
        access = fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
        try:
            ours = os.open(f"/proc/self/fd/{fd.fileno()}", access | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody reads it, or there is no /proc
            os.set_blocking(fd.fileno(), False)
            ours = fd.take()
        fd.close()
        super().__init__(Fd(ours))

    def _signal(self) -> None:
        os.write(self.fileno(), b"\1")

    def _read(self) -> int:
        return len(os.read(self.fileno(), _MOST))


class _Socket(Notification):
    def __init__(self, fd: Fd) -> None:
        self._socket = socket.socket(fileno=fd.take())
        self._socket.setblocking(False)  # so Python itself does not wait either
        super().__init__(self._socket)

    def _signal(self) -> None:
        self._socket.send(b"\1", socket.MSG_DONTWAIT)

    def _read(self) -> int:
        return len(self._socket.recv(_MOST, socket.MSG_DONTWAIT))


def _is_eventfd(fd: Fd, mode: int) -> bool:
    if stat.S_IFMT(mode):
        return False
    try:
        return os.readlink(f"/proc/self/fd/{fd.fileno()}") == "anon_inode:[eventfd]"
    except OSError:  # there is no /proc: what else it is does no harm
        return True
