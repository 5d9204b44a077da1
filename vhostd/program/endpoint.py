"""The socket for the front-end: made at a path, or passed by a launcher or by systemd."""

import grp
import logging
import os
import socket

from vhostd.errors import SetupError, UsageError
from vhostd.host.grants import Grants
from vhostd.program.socket_file import SocketFile
from vhostd.wire.fds import Fd
from vhostd.wire.sockets import has_peer, is_unix_stream

log = logging.getLogger(__name__)

BACKLOG = 4  # one front-end is served; others are accepted only to be refused
MAX_ID = 0xFFFF_FFFE  # of groups; the next number, (gid_t)-1, means no group


class Endpoint:
    """A socket that listens, or is already connected. Owns the socket, and the file that was made for it."""

    def __init__(self, sock: socket.socket, file: SocketFile | None = None) -> None:
        self.socket = sock
        self._file = file
        sock.setblocking(False)

    def __str__(self) -> str:
        """What the program does with it, for a person."""
        if self._file is not None:
            return f"listening at {self._file.path}"
        fd = self.socket.fileno()
        if not self.listening:
            return f"serving the front-end at fd {fd}"
        path = self.socket.getsockname()
        return f"listening at fd {fd}, {path if isinstance(path, str) else '@' + os.fsdecode(path[1:])}"

    @property
    def listening(self) -> bool:
        """Whether the socket listens. If not, it is connected to the only front-end."""
        return _listens(self.socket)

    def grants(self) -> Grants:
        """The removal of the socket's file."""
        return Grants() if self._file is None else Grants(removed=(self._file.removal,))

    def close(self) -> None:
        """Closes the socket and removes its file, unless another file has replaced it; idempotent."""
        self.socket.close()
        if self._file is not None:
            try:
                self._file.remove()
            except OSError as error:  # root without its capabilities, in somebody else's folder
                log.warning("%s is left behind: %s", self._file.path, error.strerror)
        self._file = None


def choose(socket_path: str | None, fd: int | None, activated: Fd | None) -> str | Fd:
    """Chooses between path, fd and systemd's socket; raises UsageError unless exactly one is given."""
    ways = {"--socket-path": socket_path, "--fd": fd, "systemd's LISTEN_FDS": activated}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        if activated is not None:
            activated.close()
        raise UsageError(f"{' and '.join(given)} exclude each other")
    if socket_path is not None:
        return socket_path
    if fd is not None:
        return Fd(fd)
    if activated is not None:
        return activated
    raise UsageError("one of --socket-path, --fd or systemd socket activation is needed")


def adopt(fd: Fd) -> Endpoint:
    """An endpoint on a socket that another process made; SetupError if the socket is of no use."""
    number = fd.take()
    try:
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise SetupError(f"fd {number} is no socket: {error.strerror}") from None
    if lack := _lack(sock):
        sock.detach()
        raise SetupError(f"fd {number} is {lack}")
    os.set_inheritable(number, False)
    return Endpoint(sock)


def listen(
    path: str,
    *,
    mode: int | None = None,
    group: int | None = None,
    backlog: int = BACKLOG,
    kind: int = socket.SOCK_STREAM,
) -> Endpoint:
    """Makes a socket at `path` and listens. Replaces a stale one; raises SetupError if the path is in use.

    `backlog` clients may wait until they are accepted. Further clients wait in connect(2); if they are
    non-blocking, they are refused.

    Nobody can connect before mode and group are set. `kind` is the type of the socket: a stream, or
    SOCK_SEQPACKET.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        return Endpoint(sock, SocketFile(sock, path, backlog=backlog, mode=mode, group=group))
    except OSError as error:
        sock.close()
        raise SetupError(f"cannot listen at {path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise


def receive_at(path: str) -> Endpoint:
    """Makes a socket for datagrams at `path`. Replaces a stale one; SetupError if the path is in use."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        return Endpoint(sock, SocketFile(sock, path, backlog=None))
    except OSError as error:
        sock.close()
        raise SetupError(f"cannot receive at {path}: {error.strerror or error}") from None
    except BaseException:
        sock.close()
        raise


def group_id(name: str) -> int:
    """The id of a group given by name or number; ValueError if there is none."""
    if name.isdecimal() and len(name) <= 10 and int(name) <= MAX_ID:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"no group {name!r}") from None


def _lack(sock: socket.socket) -> str | None:
    """Why a socket is of no use here; None if it is fine."""
    if not is_unix_stream(sock):
        return "not an AF_UNIX stream socket"
    if not _listens(sock) and not has_peer(sock):
        return "a socket that neither listens nor is connected"
    return None


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
