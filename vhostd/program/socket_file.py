"""The file by which a socket is found: made with its mode and group, and no other file is ever touched.

The folder may be another user's, who can at any time put something else where our file was, or a link. So no
step relies on the one before by naming the same path: what the file is to have it has from its first moment,
and what would be changed later is changed only where nobody else can be at work.
"""

import errno
import fcntl
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
PATIENCE = 1.0  # seconds for others that start at the same place, which takes them less than one thousandth
PAUSE = 0.01


class SocketFile:
    """Has a socket listen at a path, and holds the file that this makes; a stale one is replaced.

    Nobody can connect before mode and group are set: that needs listening, which comes last. Raises
    SetupError if the path is in use, and, like OSError, leaves no file then.
    """

    def __init__(
        self,
        sock: socket.socket,
        path: str,
        *,
        backlog: int,
        mode: int | None = None,
        group: int | None = None,
    ) -> None:
        self.path = path
        if not os.path.isdir(FDS):
            raise SetupError(f"cannot listen at {path}: there is no {FDS}, by which files are held")
        place, self._name = os.path.split(path)
        if not self._name:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self.folder = Folder(place)
        self.removal = Removal(self.folder, self._name)
        try:
            with _alone_in(self.folder):
                _remove_stale(self.folder, self._name, path)
                with _made_with(mode, group):
                    sock.bind(path)  # by its own name, which ss(8) and fuser(1) show
                self._made = self.folder.pin(self._name)
                self._finish(sock, backlog, mode, group)
        except BaseException:
            self.folder.close()
            raise

    def _finish(self, sock: socket.socket, backlog: int, mode: int | None, group: int | None) -> None:
        try:
            _mend(self._made, self.folder, self.path, mode, group)
            sock.listen(backlog)
        except BaseException:
            with suppress(OSError):
                self.remove()
            raise

    def remove(self) -> None:
        """Removes the file unless another has taken its place, and lets the folder go; raises OSError."""
        with self._made:
            try:
                if self.folder.has(self._name, self._made):
                    with suppress(FileNotFoundError):
                        self.removal()
            finally:
                self.folder.close()


@contextmanager
def _alone_in(folder: Folder) -> Iterator[None]:
    """Lets programs that start at the same place do so one after another.

    A socket that another one has bound, and does not listen at yet, would be taken for a stale one. Whoever
    may read the folder can hold the lock, and nobody is waited for long.
    """
    try:
        lock = Fd(os.open(os.curdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.fileno()))
    except OSError:  # it may not be read
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
    except OSError:  # another one has it
        return False
    return True


def _remove_stale(folder: Folder, name: str, path: str) -> None:
    """Removes a socket that nobody listens at."""
    try:
        there = folder.pin(name)
    except FileNotFoundError:
        return
    with there, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        status = os.fstat(there.fileno())
        if not stat.S_ISSOCK(status.st_mode):
            raise SetupError(f"cannot listen at {path}: what is there is no socket")
        probe.setblocking(False)
        # 0, or EAGAIN for a full backlog; EACCES, EPROTOTYPE
        if probe.connect_ex(reopened(there)) != errno.ECONNREFUSED:
            raise SetupError(f"cannot listen at {path}: another socket is in use there")
    # Here another one may have been put there since, unless it is our own, which nobody else can move away.
    if folder.is_sticky and status.st_uid != os.geteuid():
        raise SetupError(f"cannot listen at {path}: another user has left a socket there")
    folder.remove(name)


@contextmanager
def _made_with(mode: int | None, group: int | None) -> Iterator[None]:
    """Lets files that are made meanwhile have this mode, and this group if we are root."""
    umask = os.umask(ALL & ~mode) if mode is not None else None
    own = os.getegid()
    if group not in (None, own) and os.geteuid() == 0:
        with suppress(OSError):  # no capability for it; _mend sees
            os.setegid(group)
    try:
        yield
    finally:
        if os.getegid() != own:
            os.setegid(own)
        if umask is not None:
            os.umask(umask)


def _mend(made: Fd, folder: Folder, path: str, mode: int | None, group: int | None) -> None:
    """Sets what the folder has made otherwise, by its setgid bit or its ACL, or what only chown(2) can."""
    status = os.fstat(made.fileno())
    if group is not None and group != status.st_gid:
        _expect_safety(folder, path, f"group {group}")
        try:
            os.chown(reopened(made), -1, group)
        except OSError as error:
            fault = f"it cannot be given group {group}: {error.strerror}"
            raise SetupError(f"cannot listen at {path}: {fault}") from None
    if mode is not None and mode != stat.S_IMODE(status.st_mode):
        _expect_safety(folder, path, f"mode {mode:o}")
        os.chmod(reopened(made), mode)


def _expect_safety(folder: Folder, path: str, what: str) -> None:
    if folder.is_open_to_others:
        raise SetupError(f"cannot listen at {path}: others may replace it there before it is given {what}")
