import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vhostd.errors import SetupError, UsageError
from vhostd.program.endpoint import Endpoint, adopt, choose, group_id, listen
from vhostd.wire.fds import Fd


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


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


def test_what_a_person_is_told(path: str) -> None:
    with closing(listen(path)) as endpoint:
        assert str(endpoint) == f"listening at {path}"
        with closing(adopt(Fd(os.dup(endpoint.socket.fileno())))) as adopted:
            assert str(adopted) == f"listening at fd {adopted.socket.fileno()}, {path}"
    ours, theirs = socket.socketpair()
    with ours, closing(adopt(Fd(theirs.detach()))) as connected:
        assert str(connected) == f"serving the front-end at fd {connected.socket.fileno()}"


@pytest.mark.parametrize(("name", "shown"), [(b"lamp", "@lamp"), (b"lamp\xff", "@lamp\udcff")])
def test_an_abstract_address_is_told_as_ss_shows_it(name: bytes, shown: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(b"\0" + name)
    sock.listen()
    with closing(adopt(Fd(sock.detach()))) as endpoint:
        assert str(endpoint).endswith(f", {shown}")


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


def test_as_many_as_are_wanted_may_wait(path: str) -> None:
    endpoint = listen(path, backlog=64)
    waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(64)]
    for sock in waiting:
        sock.setblocking(False)
        assert sock.connect_ex(path) == 0
    for sock in waiting:
        sock.close()
    endpoint.close()


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
    [("/nowhere/socket", "No such file"), ("/" + "x" * 200, "too long"), ("''", "that names no file")],
)
def test_an_impossible_path_is_refused(path: str, why: str) -> None:
    refused_to_listen(path.strip("'"), f"cannot listen at {path}: .*{why}")


def test_another_s_socket_at_the_path_is_left_at_the_end(path: str) -> None:
    first = listen(path)
    os.rename(path, f"{path}.old")  # keeps its inode from being used again
    second = listen(path)
    first.close()
    assert connects(path)
    second.close()
    assert not os.path.exists(path)


def test_a_path_that_was_removed_is_no_matter_at_the_end(path: str) -> None:
    endpoint = listen(path)
    os.unlink(path)
    endpoint.close()


# --- group_id -------------------------------------------------------------------------------------------


def test_groups_go_by_name_or_number() -> None:
    assert group_id("root") == 0
    assert group_id("0") == 0
    assert group_id("4294967294") == 0xFFFF_FFFE


@pytest.mark.parametrize("name", ["", "no such group", "-1", "4294967295", "9" * 30])
def test_a_group_that_does_not_exist_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"no group '{name}'"):
        group_id(name)
