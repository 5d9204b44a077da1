"""Notifications between driver and device: an fd that one side signals and the other waits for.

vhost-user's names for them are kick, call and err. QEMU passes eventfds, User-mode Linux one end of a socket
pair, others pipes. The front-end may share an fd's open file description, and clear its O_NONBLOCK at any
time. So nothing here relies on this flag, and no call waits.
"""

import errno
import fcntl
import logging
import os
import select
import socket
from abc import ABC, abstractmethod
from functools import cache

from vhostd.errors import RefusedRequest
from vhostd.ring import notify
from vhostd.wire.fds import Fd

log = logging.getLogger(__name__)

_ONE = (1).to_bytes(8, "little")  # as read from an eventfd; User-mode Linux expects all 8 bytes
_MOST = 4096  # bytes that are read from a socket at a time; their number has no meaning


def notification(fd: Fd) -> "Notification":
    """Makes a notification from the `fd` of a message: an eventfd, a pipe or a socket.

    Raises RefusedRequest, and leaves `fd` to the caller, if it is none of these. No call here asks the file's
    file system, since it might never answer.
    """
    for kind in (_Pipe, _Socket, _Eventfd):
        try:
            return kind(fd)
        except OSError:
            continue
    raise RefusedRequest("an fd that is no eventfd, pipe or socket carries no notifications")


class Notification(ABC):
    """A kick, call or err fd; owns it."""

    def __init__(self, file: Fd | socket.socket) -> None:
        self._file = file

    def fileno(self) -> int:
        """The fd. It is readable while there is a signal to clear."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes the fd; idempotent."""
        self._file.close()

    def signal(self) -> None:
        """Notifies the other side. A full fd, or one that nobody reads, is no error."""
        try:
            self._signal()
        except OSError as error:
            log.debug("notification lost: %s", error)

    def clear(self) -> bool:
        """Takes the signals of the other side; False if there are none.

        Raises OSError if no signal can come any more.
        """
        try:
            size = self._read()
        except BlockingIOError:
            return False
        if not size:  # end of file: the fd would stay readable for ever
            raise ConnectionResetError("its other end is closed")
        return True

    @abstractmethod
    def _signal(self) -> None: ...

    @abstractmethod
    def _read(self) -> int: ...


class _Eventfd(Notification):
    def __init__(self, fd: Fd) -> None:
        if _proc_link(fd) not in ("anon_inode:[eventfd]", None):
            raise OSError(errno.EINVAL, "not an eventfd")
        os.set_blocking(fd.fileno(), False)  # for kernels without the better ways below
        if not notify.has_aio():
            _warn_without_aio()
        super().__init__(Fd(fd.take()))
        self._number = self.fileno()  # at hand: this is for each interrupt, and for each kick

    def close(self) -> None:
        self._number = -1
        super().close()

    def signal(self) -> None:
        if notify.has_aio():
            try:
                notify.signal_eventfd(self._number)
            except OSError as error:
                log.debug("notification lost: %s", error)
        else:
            super().signal()

    def clear(self) -> bool:
        try:
            return notify.clear_eventfd(self._number)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # before Linux 5.8
                raise
            return super().clear()

    def _signal(self) -> None:
        room = select.poll()
        room.register(self, select.POLLOUT)
        if room.poll(0):  # this waits if the front-end fills it now and has cleared O_NONBLOCK
            os.write(self.fileno(), _ONE)

    def _read(self) -> int:
        return len(os.read(self.fileno(), 8))


class _Pipe(Notification):
    def __init__(self, fd: Fd) -> None:
        fcntl.fcntl(fd.fileno(), fcntl.F_GETPIPE_SZ)  # succeeds for pipes only
        super().__init__(Fd(fd.take()))

    def _signal(self) -> None:
        notify.write_pipe(self.fileno())

    def _read(self) -> int:
        return notify.read_pipe(self.fileno())


class _Socket(Notification):
    def __init__(self, fd: Fd) -> None:
        self._socket = socket.socket(fileno=fd.fileno())
        fd.take()
        self._socket.setblocking(False)  # so that Python does not wait before the call
        super().__init__(self._socket)

    def _signal(self) -> None:
        self._socket.send(_ONE, socket.MSG_DONTWAIT)

    def _read(self) -> int:
        return len(self._socket.recv(_MOST, socket.MSG_DONTWAIT))


def _proc_link(fd: Fd) -> str | None:
    """The target of the fd's link in /proc; None without /proc."""
    try:
        return os.readlink(f"/proc/self/fd/{fd.fileno()}")
    except OSError:
        return None


@cache
def _warn_without_aio() -> None:
    log.warning("there is no AIO for this program (fs.aio-max-nr): a hostile front-end can make it wait")
