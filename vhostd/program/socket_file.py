"""The file of a socket: made with its mode and group. No other file is ever changed.

The folder may be another user's, who can replace the file by another one, or by a link, at any time. So no
step names the same path again to find the file of the step before. The file has its mode and group from its
first moment. They are changed later only in a folder where nobody else can replace the file.
"""

import errno
import fcntl
import grp
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from vhostd.errors import SetupError
from vhostd.host.folder import FDS, Folder, reopened
from vhostd.host.removal import Removal
from vhostd.wire.fds import Fd

ALL = 0o777
PATIENCE = 1.0  # seconds to wait for other programs that start in this folder; each needs less than 1 ms
PAUSE = 0.01


class SocketFile:
    """Makes a socket listen at a path, and holds the file for it. Replaces a stale socket.

    Nobody can connect before mode and group are set, because the socket listens only after that; one for
    datagrams, without a `backlog`, does not listen. Raises
    SetupError if the path is in use. After a SetupError or an OSError no file is left.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: str,
        *,
        backlog: int | None,
        mode: int | None = None,
        group: int | None = None,
    ) -> None:
        self.path = path
        if not os.path.isdir(FDS):
            raise SetupError(f"cannot listen at {path}: there is no {FDS}, by which files are held")
        place, self._name = os.path.split(path)
        if not self._name:
            raise SetupError(f"cannot listen at {path!r}: that names no file")
        self.folder = Folder(place)
        self.removal = Removal(self.folder, self._name)
        try:
            with _folder_locked(self.folder):
                _remove_stale(self.folder, self._name, path)
                with _made_with(mode, group):
                    sock.bind(path)  # by the path as given, because ss(8) and fuser(1) show it
                self._made = self.folder.pin(self._name)
                self._finish(sock, backlog, mode, group)
        except BaseException:
            self.folder.close()
            raise

    def _finish(self, sock: socket.socket, backlog: int | None, mode: int | None, group: int | None) -> None:
        try:
            _correct(self._made, self.folder, self.path, mode, group)
            if backlog is not None:
                sock.listen(backlog)
        except BaseException:
            with suppress(OSError):
                self.remove()
            raise

    def remove(self) -> None:
        """Removes the file unless another file has replaced it, and closes the folder; raises OSError."""
        with self._made:
            try:
                if self.folder.has(self._name, self._made):
                    with suppress(FileNotFoundError):
                        self.removal()
            finally:
                self.folder.close()


@contextmanager
def _folder_locked(folder: Folder) -> Iterator[None]:
    """Locks the folder, so that programs that start in it do so one after another.

    Without the lock, a socket that another program has bound, but does not listen on yet, would look stale.
    Any user who may read the folder can hold the lock. So the wait is short, and ends without the lock.
    """
    try:
        lock = Fd(os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fileno()))
    except OSError:  # the folder may not be read
        yield
        return
    with lock:
        end = time.monotonic() + PATIENCE
        while not _locked(lock) and time.monotonic() < end:
            time.sleep(PAUSE)
        yield


def _locked(lock: Fd) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another program has the lock
        return False
    return True


def _remove_stale(folder: Folder, name: str, path: str) -> None:
    """Removes a socket if nobody listens on it."""
    try:
        there = folder.pin(name)
    except FileNotFoundError:
        return
    # Datagrams cannot connect to a stream: whoever serves there hears nothing of the probe.
    with there, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        status = os.fstat(there.fileno())
        if not stat.S_ISSOCK(status.st_mode):
            raise SetupError(f"cannot listen at {path}: what is there is no socket")
        probe.setblocking(False)
        failure = probe.connect_ex(reopened(there))
        if failure == errno.EACCES:
            raise SetupError(f"cannot listen at {path}: another user has a socket there, or has left it")
        # in use: EPROTOTYPE; 0, EPERM for datagrams
        if failure != errno.ECONNREFUSED:
            raise SetupError(f"cannot listen at {path}: another socket is in use there")
    # In a sticky folder nobody else can move our own socket away. Any other one may have been replaced since.
    if folder.is_sticky and status.st_uid != os.geteuid():
        raise SetupError(f"cannot listen at {path}: another user has left a socket there")
    folder.remove(name)


@contextmanager
def _made_with(mode: int | None, group: int | None) -> Iterator[None]:
    """Files that are made meanwhile get this mode, and this group if the program is root."""
    umask = os.umask(ALL & ~mode) if mode is not None else None
    own = os.getegid()
    if group not in (None, own) and os.geteuid() == 0:
        with suppress(OSError):  # no capability for it; `_correct` sets the group then
            os.setegid(group)
    try:
        yield
    finally:
        if os.getegid() != own:
            os.setegid(own)
        if umask is not None:
            os.umask(umask)


def _correct(made: Fd, folder: Folder, path: str, mode: int | None, group: int | None) -> None:
    """Sets mode and group if the folder's setgid bit or ACL gave the file others, or only chown(2) can."""
    status = os.fstat(made.fileno())
    if group is not None and group != status.st_gid:
        name = _group_name(group)
        _require_private(folder, path, f"group {name}")
        try:
            os.chown(reopened(made), -1, group)
        except OSError as error:
            fault = f"it cannot be given to group {name}: {error.strerror}"
            raise SetupError(f"cannot listen at {path}: {fault}") from None
    if mode is not None and mode != stat.S_IMODE(status.st_mode):
        _require_private(folder, path, f"mode {mode:o}")
        os.chmod(reopened(made), mode)


def _group_name(group: int) -> str:
    """The group as messages show it: by name and number, or by number if it has no name."""
    try:
        return f"{grp.getgrgid(group).gr_name} ({group})"
    except KeyError:
        return str(group)


def _require_private(folder: Folder, path: str, what: str) -> None:
    if folder.is_open_to_others:
        raise SetupError(f"cannot listen at {path}: others may replace it there before it is given {what}")
