"""Where the front-end is met: a socket made at a path, or one handed over by a launcher or by systemd."""

import errno
import grp
import logging
import os
import socket
import stat
from contextlib import ExitStack, closing

from vhostd.errors import SetupError, UsageError
from vhostd.fds import Fd
from vhostd.grants import Grants
from vhostd.removal import Removal
from vhostd.sockets import has_peer, is_unix_stream

log = logging.getLogger(__name__)

MAX_ID = 0xFFFF_FFFE  # of groups; the number above it means none
BACKLOG = 4  # only one front-end is served; the others are accepted to be refused


class Endpoint:
    """A socket that listens, or is connected already; owns it, and the file that it made."""

    def __init__(self, sock: socket.socket, path: str | None = None) -> None:
        self.socket = sock
        self._removal = Removal(path) if path is not None else None
        self._made = _identity(path) if path is not None else None
        sock.setblocking(False)

    @property
    def listening(self) -> bool:
        """Whether front-ends are to be accepted; else the only one is connected already."""
        return _listens(self.socket)

    def grants(self) -> Grants:
        """The removal of the file that it made."""
        return Grants() if self._removal is None else Grants(removed=(self._removal,))

    def close(self) -> None:
        """Closes the socket, and removes its file unless another has taken its place; idempotent."""
        self.socket.close()
        if self._removal is not None and _identity(self._removal.path) == self._made:
            try:
                self._removal()
            except OSError as error:  # root without its capabilities, in somebody else's folder
                log.warning("%s is left behind: %s", self._removal.path, error.strerror)
        self._removal = None


def choose(socket_path: str | None, fd: int | None, activated: Fd | None) -> str | Fd:
    """Which of the three ways was meant; UsageError unless it is exactly one."""
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
    """An endpoint on a socket that another process made; SetupError if it is no AF_UNIX stream socket."""
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


def listen(path: str, *, mode: int | None = None, group: int | None = None) -> Endpoint:
    """Makes a socket at `path` and listens; replaces a stale one, SetupError if the path is in use.

    Nobody can connect before mode and group are set: that needs listening, which comes last.
    """
    with ExitStack() as on_failure:
        try:
            sock = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _remove_stale(path)
            sock.bind(path)
            endpoint = on_failure.enter_context(closing(Endpoint(sock, path)))
            if group is not None:
                _give_to(group, path)
            if mode is not None:
                os.chmod(path, mode)
            sock.listen(BACKLOG)
        except OSError as error:
            raise SetupError(f"cannot listen at {path}: {error.strerror or error}") from None
        on_failure.pop_all()
    return endpoint


def group_id(name: str) -> int:
    """The id of a group given by name or number; ValueError if there is none."""
    if name.isdecimal() and len(name) <= 10 and int(name) <= MAX_ID:
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ValueError(f"no group {name!r}") from None


def _lack(sock: socket.socket) -> str | None:
    """What keeps a socket from being of use here."""
    if not is_unix_stream(sock):
        return "not an AF_UNIX stream socket"
    if not _listens(sock) and not has_peer(sock):
        return "a socket that neither listens nor is connected"
    return None


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _remove_stale(path: str) -> None:
    """Removes a socket that nobody listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    if error == errno.ENOENT:
        return
    if not _is_socket(path):
        raise SetupError(f"cannot listen at {path}: what is there is no socket")
    if error != errno.ECONNREFUSED:  # such as 0; EAGAIN for a full backlog; EACCES, EPROTOTYPE
        raise SetupError(f"cannot listen at {path}: another socket is in use there")
    os.unlink(path)


def _give_to(group: int, path: str) -> None:
    try:
        os.chown(path, -1, group)
    except OSError as error:
        raise SetupError(
            f"--socket-group: {path} cannot be given to group {group}: {error.strerror}"
        ) from None


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
