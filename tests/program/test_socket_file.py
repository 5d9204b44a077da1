"""The file of a socket, also where others are at work; what is listened at is tested with `listen`."""

import errno
import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from vhostd.errors import SetupError
from vhostd.program import socket_file
from vhostd.program.endpoint import listen
from vhostd.wire.fds import Fd

NOBODY = 65534
OTHER, FOLDER_S = 12345, 12346  # groups


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


class Hooked:
    """What is to be done in between: once a socket has been bound, or has tried to connect."""

    def __init__(self) -> None:
        self.after_bind: Callable[[], object] = list
        self.after_connect: Callable[[], object] = list


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Hooked:
    hooks = Hooked()
    original = socket.socket

    class Socket(original):  # type: ignore[misc,valid-type]  # what is replaced
        def bind(self, address: str) -> None:
            super().bind(address)
            hooks.after_bind()

        def connect_ex(self, address: str) -> int:
            result: int = super().connect_ex(address)
            once, hooks.after_connect = hooks.after_connect, list
            once()
            return result

    monkeypatch.setattr(socket, "socket", Socket)
    return hooks


@pytest.fixture
def setgid(tmp_path: Path) -> Path:
    """The folder of `path`, which gives its own group to what is made in it."""
    os.chown(tmp_path, -1, FOLDER_S)
    tmp_path.chmod(0o2755)
    return tmp_path


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(path) == 0


def test_nobody_connects_before_mode_and_group_are_set(path: str, hooked: Hooked) -> None:
    connected = []
    hooked.after_bind = lambda: connected.append(connects(path))
    listen(path, mode=0o600).close()
    assert connected == [False]


def test_the_mode_is_that_whatever_the_umask_is(path: str) -> None:
    before = os.umask(0o077)
    try:
        listened = listen(path, mode=0o666)
        after = os.umask(0o077)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o666
    assert after == 0o077
    listened.close()


def test_the_group_is_that_of_the_process_again(path: str) -> None:
    listen(path, group=OTHER).close()
    assert os.getegid() == os.getgid()


def test_a_folder_s_own_group_is_not_that_of_the_socket(path: str, setgid: Path) -> None:
    endpoint = listen(path, group=OTHER)
    assert (os.stat(path).st_gid, os.stat(setgid).st_gid) == (OTHER, FOLDER_S)
    endpoint.close()


@pytest.mark.usefixtures("setgid")
def test_a_failure_after_the_bind_leaves_no_file(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", fail)
    with pytest.raises(SetupError, match="Operation not permitted"):
        listen(path, group=OTHER)
    assert not os.path.exists(path)


@pytest.mark.usefixtures("setgid")
@pytest.mark.parametrize(("group", "shown"), [(1, "daemon \\(1\\)"), (0xFFFF_FF00, "4294967040")])
def test_a_group_that_cannot_be_set_is_named(
    path: str, monkeypatch: pytest.MonkeyPatch, group: int, shown: str
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", fail)
    with pytest.raises(SetupError, match=f"it cannot be given to group {shown}: Operation not permitted"):
        listen(path, group=group)


def test_of_two_that_start_at_once_one_listens(
    path: str, hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first has bound, and does not listen at yet, is not stale."""
    second: list[str] = []
    tried = threading.Event()
    monkeypatch.setattr(time, "sleep", lambda _: tried.set())  # it waits for the first

    def start() -> None:
        try:
            listen(path).close()
        except SetupError as error:
            second.append(str(error))
        tried.set()

    starting = threading.Thread(target=start)

    def start_second() -> None:
        hooked.after_bind = list
        starting.start()
        tried.wait(20)

    hooked.after_bind = start_second
    with closing(listen(path)):
        starting.join(20)
        assert connects(path)
    assert second == [f"cannot listen at {path}: another socket is in use there"]


def test_a_lock_that_somebody_keeps_is_not_waited_for(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_file, "PATIENCE", 0.02)
    with Fd(os.open(tmp_path, os.O_RDONLY)) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with closing(listen(path)):
            assert connects(path)


# --- a folder of somebody else's ------------------------------------------------------------------------


class Theirs:
    """A folder of another user's, who has put a link to a file of ours where our socket was."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "theirs"
        self.folder.mkdir()
        os.chown(self.folder, NOBODY, NOBODY)
        self.path = str(self.folder / "socket")
        self.precious = folder / "precious"
        self.precious.write_text("precious")
        self.precious.chmod(0o600)

    def put_a_link(self) -> None:
        os.unlink(self.path)
        os.symlink(self.precious, self.path)

    def lead_to(self, other: Path) -> None:
        """Puts a link to another folder in the place of theirs."""
        os.rename(self.folder, f"{self.folder}.away")
        os.symlink(other, self.folder)


@pytest.fixture
def theirs(tmp_path: Path) -> Theirs:
    return Theirs(tmp_path)


@pytest.mark.parametrize("group", [None, OTHER])
def test_no_other_file_gets_the_mode_or_the_group(theirs: Theirs, hooked: Hooked, group: int | None) -> None:
    hooked.after_bind = theirs.put_a_link
    with suppress(SetupError):
        listen(theirs.path, mode=0o666, group=group).close()
    status = os.stat(theirs.precious)
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o600, os.getgid())
    assert theirs.precious.read_text() == "precious"


def test_a_socket_in_their_folder_has_mode_and_group(theirs: Theirs) -> None:
    endpoint = listen(theirs.path, mode=0o666, group=OTHER)
    status = os.stat(theirs.path)
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o666, OTHER)
    endpoint.close()
    assert not os.path.exists(theirs.path)


def test_what_cannot_be_safe_there_is_refused(theirs: Theirs) -> None:
    theirs.folder.chmod(0o2755)
    with pytest.raises(SetupError, match=f"others may replace it there before it is given group {OTHER}"):
        listen(theirs.path, group=OTHER)
    assert os.listdir(theirs.folder) == []


def test_no_stale_socket_is_removed_but_the_one_that_was_looked_at(
    theirs: Theirs, hooked: Hooked, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(theirs.path)
    ours = tmp_path / "ours"
    ours.mkdir()
    with closing(listen(str(ours / "socket"))):
        hooked.after_connect = lambda: theirs.lead_to(ours)
        with pytest.raises(SetupError):
            listen(theirs.path)
        assert connects(str(ours / "socket"))


def test_the_sandbox_lets_it_remove_files_from_its_folder_alone(theirs: Theirs, tmp_path: Path) -> None:
    before = os.stat(theirs.folder)
    with closing(listen(theirs.path)) as endpoint:
        theirs.lead_to(tmp_path)
        (removal,) = endpoint.grants().removed
        assert os.path.samestat(os.stat(removal.folder.path), before)


def test_a_stale_socket_of_another_user_s_is_left_where_all_may_write(path: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(SetupError, match=r"cannot listen at .*: another user has left a socket there"):
        listen(path)
    assert os.path.exists(path)
    os.chown(path, os.getuid(), -1)
    listen(path).close()


def test_a_socket_of_another_user_s_cannot_be_asked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether somebody listens there is not known then."""

    class Closed(socket.socket):
        def connect_ex(self, address: object) -> int:
            return errno.EACCES

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
    monkeypatch.setattr("vhostd.program.socket_file.socket.socket", Closed)
    with pytest.raises(SetupError, match="another user has a socket there, or has left it"):
        listen(path)
    assert os.path.exists(path)
