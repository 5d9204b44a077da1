import fcntl
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from vhostd import socket_file
from vhostd.endpoint import Endpoint, adopt, choose, group_id, listen
from vhostd.errors import SetupError, UsageError
from vhostd.fds import Fd

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


@pytest.fixture
def stale(path: str) -> None:
    """A socket at `path` that nobody listens at any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)


@pytest.fixture
def _used(path: str) -> Iterator[None]:
    """A socket at `path` that somebody listens at."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
        sock.listen(1)
        yield


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        return sock.connect_ex(path) == 0


def refused_to_listen(path: str, why: str) -> None:
    with pytest.raises(SetupError, match=why):
        listen(path)


# --- choose ---------------------------------------------------------------------------------------------


def test_one_way_is_chosen() -> None:
    assert choose("/run/socket", None, None) == "/run/socket"
    with Fd(os.dup(0)) as activated:
        assert choose(None, None, activated) is activated
    given = choose(None, os.dup(0), None)
    assert isinstance(given, Fd)
    given.close()


def test_fd_0_is_given_too() -> None:
    given = choose(None, 0, None)
    assert isinstance(given, Fd)
    assert given.take() == 0


def test_none_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="one of --socket-path, --fd or systemd socket activation is needed"):
        choose(None, None, None)


@pytest.mark.parametrize(
    ("path", "fd", "activated", "message"),
    [
        ("/run/socket", 0, False, "--socket-path and --fd exclude each other"),
        ("/run/socket", None, True, "--socket-path and systemd's LISTEN_FDS exclude each other"),
        (None, 0, True, "--fd and systemd's LISTEN_FDS exclude each other"),
        ("/run/socket", 0, True, "--socket-path and --fd and systemd's LISTEN_FDS exclude each other"),
    ],
)
def test_two_are_a_usage_error(*, path: str | None, fd: int | None, activated: bool, message: str) -> None:
    with Fd(os.dup(0)) as passed, pytest.raises(UsageError, match=message):
        choose(path, fd, passed if activated else None)


# --- adopt ----------------------------------------------------------------------------------------------


def adopted(sock: socket.socket) -> Endpoint:
    return adopt(Fd(sock.detach()))


def test_a_connected_socket_is_adopted() -> None:
    ours, theirs = socket.socketpair()
    os.set_inheritable(ours.fileno(), True)
    endpoint = adopted(ours)
    assert not endpoint.listening
    assert not endpoint.socket.getblocking()
    assert not endpoint.socket.get_inheritable()
    endpoint.close()
    assert theirs.recv(1) == b""
    theirs.close()


def test_a_listening_socket_is_adopted_and_its_file_is_left_alone(path: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    sock.listen(1)
    endpoint = adopted(sock)
    assert endpoint.listening
    assert connects(path)
    endpoint.close()
    assert os.path.exists(path)


def test_a_socket_whose_peer_has_gone_is_adopted() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    adopted(ours).close()


@pytest.mark.parametrize(
    ("family", "kind", "why"),
    [
        (socket.AF_UNIX, socket.SOCK_DGRAM, "is not an AF_UNIX stream socket"),
        (socket.AF_UNIX, socket.SOCK_SEQPACKET, "is not an AF_UNIX stream socket"),
        (socket.AF_INET, socket.SOCK_STREAM, "is not an AF_UNIX stream socket"),
        (socket.AF_UNIX, socket.SOCK_STREAM, "is a socket that neither listens nor is connected"),
    ],
)
def test_other_sockets_are_refused(family: int, kind: int, why: str) -> None:
    number = socket.socket(family, kind).detach()
    with pytest.raises(SetupError, match=f"fd {number} {why}"):
        adopt(Fd(number))
    os.close(number)  # what the launcher gave is left as it is


def test_what_is_no_socket_is_refused() -> None:
    number = os.open("/dev/null", os.O_RDWR)
    with pytest.raises(SetupError, match=f"fd {number} is no socket"):
        adopt(Fd(number))
    os.close(number)


def test_what_is_not_open_is_refused() -> None:
    number = os.dup(0)
    os.close(number)
    with pytest.raises(SetupError, match=f"fd {number} is no socket: Bad file descriptor"):
        adopt(Fd(number))


# --- listen ---------------------------------------------------------------------------------------------


def test_listens_at_the_path_and_removes_it_in_the_end(path: str) -> None:
    endpoint = listen(path)
    assert endpoint.listening
    assert not endpoint.socket.getblocking()
    assert connects(path)
    endpoint.close()
    assert not os.path.exists(path)
    endpoint.close()


def test_a_mode_and_a_group_are_set(path: str) -> None:
    endpoint = listen(path, mode=0o640, group=os.getgid())
    status = os.stat(path)
    assert (status.st_mode & 0o777, status.st_gid) == (0o640, os.getgid())
    endpoint.close()


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


@pytest.mark.usefixtures("stale")
def test_a_stale_socket_is_replaced(path: str) -> None:
    endpoint = listen(path)
    assert connects(path)
    endpoint.close()


@pytest.mark.usefixtures("_used")
def test_a_socket_in_use_is_refused_and_left(path: str) -> None:
    refused_to_listen(path, "cannot listen at .*: another socket is in use there")
    assert connects(path)


@pytest.mark.usefixtures("_used")
def test_a_socket_with_a_full_backlog_is_in_use(path: str) -> None:
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(4)]
    for sock in waiting:
        sock.setblocking(False)
        sock.connect_ex(path)
    refused_to_listen(path, "another socket is in use there")
    for sock in waiting:
        sock.close()


def test_a_socket_of_another_type_is_in_use(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        refused_to_listen(path, "another socket is in use there")
    assert os.path.exists(path)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "dangling link"])
def test_what_is_no_socket_is_refused_and_left(kind: str, path: str) -> None:
    if kind == "file":
        Path(path).write_text("precious")
    elif kind == "folder":
        os.mkdir(path)
    else:
        os.symlink("/etc/passwd" if kind == "link" else "/nowhere", path)
    refused_to_listen(path, f"cannot listen at {path}: ")
    assert os.path.lexists(path)


@pytest.mark.parametrize(
    ("path", "why"),
    [("/nowhere/socket", "No such file"), ("/" + "x" * 200, "too long"), ("", "No such file")],
)
def test_an_impossible_path_is_refused(path: str, why: str) -> None:
    refused_to_listen(path, f"cannot listen at {path}: .*{why}")


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


def test_another_s_socket_at_the_path_is_left_at_the_end(path: str) -> None:
    first = listen(path)
    os.rename(path, f"{path}.old")  # keeps its inode from being used again
    second = listen(path)
    first.close()
    assert connects(path)
    second.close()
    assert not os.path.exists(path)


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


def test_a_path_that_was_removed_is_no_matter_at_the_end(path: str) -> None:
    endpoint = listen(path)
    os.unlink(path)
    endpoint.close()


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
        (folder,) = endpoint.grants().cleared
        assert os.path.samestat(os.stat(folder), before)


def test_a_stale_socket_of_another_user_s_is_left_where_all_may_write(path: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(path)
    os.chown(path, NOBODY, NOBODY)
    refused_to_listen(path, "cannot listen at .*: another user has left a socket there")
    assert os.path.exists(path)
    os.chown(path, os.getuid(), -1)
    listen(path).close()


# --- group_id -------------------------------------------------------------------------------------------


def test_groups_go_by_name_or_number() -> None:
    assert group_id("root") == 0
    assert group_id("0") == 0
    assert group_id("4294967294") == 0xFFFF_FFFE


@pytest.mark.parametrize("name", ["", "no such group", "-1", "4294967295", "9" * 30])
def test_a_group_that_does_not_exist_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"no group '{name}'"):
        group_id(name)
