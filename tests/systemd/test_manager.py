"""The units as a service manager runs them: sockets, readiness, watchdog, end."""

import grp
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import pytest

from tests.programs import PATIENCE, PROGRAMS, connect, get_features, is_refused
from tests.systemd.manager import Manager
from tests.systemd.units import CHECKOUT

DISK = 1 << 20
METRICS_PAGE = CHECKOUT / "docs/metrics.md"

PROGRAM = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as manager:
        disk = manager.state / "vhost-user-blk/a/disk.img"
        disk.parent.mkdir(parents=True)
        with disk.open("xb") as file:
            file.truncate(DISK)
        disk.chmod(0o666)  # the system's manager would give it to the service's user
        manager.drop_in(
            "vhost-user-input@.service",
            "SupplementaryGroups=",  # which not every machine has
            "RuntimeDirectory=vhost-user-input-%i",
        )
        manager.configure("vhost-user-input", f"--event-socket={manager.runtime}/vhost-user-input-a/events")
        manager.drop_in("vhost-user-net@.service", "SupplementaryGroups=")
        manager.configure("vhost-user-net", f"--stream={manager.runtime}/passt")
        manager.configure("vhost-user-vsock", f"--uds-path={manager.runtime}/vhost-user-vsock-a/vm")
        yield manager


def start_socket(manager: Manager, program: str) -> Path:
    """Starts the socket unit; where it listens."""
    manager.run("start", f"{program}@a.socket")
    return manager.socket_path(program)


@PROGRAM
def test_a_front_end_starts_the_program(manager: Manager, program: str) -> None:
    service = f"{program}@a.service"
    path = start_socket(manager, program)
    status = path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    assert status.st_gid == grp.getgrnam("kvm").gr_gid
    assert manager.show(service, "ActiveState") == "inactive"
    with connect(path) as sock:
        assert get_features(sock)
        manager.shows(service, "ActiveState", "active")
        manager.shows(service, "StatusText", "serving a front-end")
        assert manager.show(service, "LimitNOFILE") == "4096"
        assert int(manager.show(service, "TasksMax")) <= 512
    manager.shows(service, "StatusText", "waiting for a front-end")


@PROGRAM
def test_it_runs_as_nobody_who_can_do_anything(manager: Manager, program: str) -> None:
    with connect(start_socket(manager, program)) as sock:
        assert get_features(sock)
        status = Path("/proc", manager.show(f"{program}@a.service", "MainPID"), "status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert 0 not in map(int, fields["Uid"].split())
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert int(fields["CapBnd"], 16) == 0


@PROGRAM
def test_it_is_stopped_and_leaves_nothing(manager: Manager, program: str) -> None:
    service = f"{program}@a.service"
    path = start_socket(manager, program)
    with connect(path) as sock:
        assert get_features(sock)
        manager.shows(service, "ActiveState", "active")
        manager.run("stop", service)
        assert manager.show(service, "Result") == "success"
        assert (manager.show(service, "ExecMainCode"), manager.show(service, "ExecMainStatus")) == ("1", "0")
    assert path.is_socket()  # it starts again when somebody connects
    manager.run("stop", f"{program}@a.socket")
    assert not path.exists()


@PROGRAM
def test_one_that_hangs_is_replaced(manager: Manager, program: str) -> None:
    service = f"{program}@a.service"
    manager.drop_in(f"{program}@.service", "WatchdogSec=1", "TimeoutAbortSec=1")
    path = start_socket(manager, program)
    with connect(path) as sock:
        assert get_features(sock)
        manager.shows(service, "ActiveState", "active")
        hung = manager.show(service, "MainPID")
        manager.run("kill", f"--signal={signal.SIGSTOP.value}", service)
        manager.shows(service, "Result", "watchdog")
        assert sock.recv(1) == b""  # the front-end notices, and may reconnect
        manager.shows(service, "ActiveState", "failed")
    with connect(path) as sock:
        assert get_features(sock)
        assert manager.show(service, "MainPID") != hung
    manager.shows(service, "StatusText", "waiting for a front-end")


def test_one_that_crashes_is_replaced(manager: Manager) -> None:
    service = "vhost-user-rng@a.service"
    path = start_socket(manager, "vhost-user-rng")
    with connect(path) as sock:
        assert get_features(sock)
        manager.shows(service, "ActiveState", "active")
        manager.run("kill", "--signal=SEGV", service)
        assert sock.recv(1) == b""
        manager.shows(service, "ActiveState", "failed")
    with connect(path) as sock:
        assert get_features(sock)


BURST = 25  # connections: more than systemd takes, by default, for a socket's and for a service's limit


def is_turned_away(path: Path) -> bool:
    """Connects; whether that is closed, and nothing is left to be served."""
    with connect(path) as sock:
        return is_refused(sock)


def test_a_disk_that_was_away_is_served_again(manager: Manager) -> None:
    """However long that takes, and however often somebody asks for it meanwhile."""
    service, unit = "vhost-user-blk@a.service", "vhost-user-blk@a.socket"
    disk = manager.state / "vhost-user-blk/a/disk.img"
    away = disk.rename(disk.with_name("away"))
    path = start_socket(manager, "vhost-user-blk")
    for _ in range(BURST):
        assert is_turned_away(path)
        assert manager.show(unit, "ActiveState") == "active"
    manager.shows(unit, "SubState", "listening")  # nothing is tried again before somebody connects
    assert manager.show(service, "ActiveState") == "failed"
    assert manager.show(service, "ExecMainStatus") == "1"
    away.rename(disk)
    with connect(path) as sock:
        assert get_features(sock)
        manager.shows(service, "StatusText", "serving a front-end")


@PROGRAM
def test_a_program_that_was_away_is_started_again(manager: Manager, program: str) -> None:
    """As while it is brought up to date."""
    manager.drop_in(f"{program}@a.service", "ExecStart=", "ExecStart=/nowhere")
    path = start_socket(manager, program)
    for _ in range(BURST):
        assert is_turned_away(path)
    manager.shows(f"{program}@a.socket", "SubState", "listening")
    manager.undo_drop_ins(f"{program}@a.service")
    with connect(path) as sock:
        assert get_features(sock)


def test_it_is_active_only_when_it_says_so(manager: Manager) -> None:
    """A program that cannot tell that it is ready is never taken for it."""
    service = "vhost-user-rng@a.service"
    manager.drop_in("vhost-user-rng@.service", "TimeoutStartSec=1")
    notified = manager.runtime / "systemd/notify"
    notified.chmod(0)
    with connect(start_socket(manager, "vhost-user-rng")) as sock, suppress(ConnectionResetError):
        get_features(sock)
        manager.shows(service, "ActiveState", "failed")
    assert manager.show(service, "Result") == "timeout"
    notified.chmod(0o777)
    manager.run("reset-failed", service, "vhost-user-rng@a.socket")
    manager.run("restart", "vhost-user-rng@a.socket")
    manager.run("start", service)  # which waits for it
    assert manager.show(service, "ActiveState") == "active"


def test_options_are_those_of_the_instance(manager: Manager) -> None:
    manager.configure("vhost-user-rng", "--max-bytes=16 --period=1000")
    with connect(start_socket(manager, "vhost-user-rng")) as sock:
        assert get_features(sock)
        process = Path("/proc", manager.show("vhost-user-rng@a.service", "MainPID"))
        assert (process / "cmdline").read_bytes().split(b"\0")[-3:] == [
            b"--max-bytes=16",
            b"--period=1000",
            b"",
        ]


def test_options_that_make_no_sense_are_not_tried_again(manager: Manager) -> None:
    service = "vhost-user-rng@a.service"
    manager.configure("vhost-user-rng", "--period=none")
    path = start_socket(manager, "vhost-user-rng")
    with connect(path):
        manager.shows(service, "ExecMainStatus", "2")
        manager.shows(service, "ActiveState", "failed")


def test_a_group_may_write_events(manager: Manager) -> None:
    """As the unit's comments have it."""
    place = manager.runtime / "vhost-user-input-a/events"
    manager.configure("vhost-user-input", f"--event-socket={place} --event-socket-mode=0660")
    manager.drop_in("vhost-user-input@a.service", "Group=kvm")
    with connect(start_socket(manager, "vhost-user-input")) as sock:
        assert get_features(sock)
        status = place.stat()
        assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o660, grp.getgrnam("kvm").gr_gid)


def test_a_disk_elsewhere_needs_to_be_let_in(manager: Manager, tmp_path: Path) -> None:
    """As the unit's comments have it."""
    folder = tmp_path / "images"
    folder.mkdir(mode=0o755)
    image = folder / "disk.img"
    image.write_bytes(bytes(DISK))
    image.chmod(0o666)
    manager.configure("vhost-user-blk", f"--blk-file={image}", "b")
    service = "vhost-user-blk@b.service"
    manager.run("start", "vhost-user-blk@b.socket")
    assert manager.call("start", service).returncode
    assert manager.show(service, "ExecMainStatus") == "1"
    manager.drop_in("vhost-user-blk@b.service", f"BindPaths={folder}")
    manager.run("start", service)
    with connect(manager.socket_path("vhost-user-blk", "b")) as sock:
        assert get_features(sock)


def drop_in_of_the_pages(first: str) -> list[str]:
    """The lines of a drop-in that docs/metrics.md has users write, of which `first` is the first setting."""
    _, _, rest = METRICS_PAGE.read_text().partition(f"```\n[Service]\n{first}\n")
    assert rest
    return [first, *takewhile(lambda line: line != "```", rest.splitlines())]


@PROGRAM
def test_metrics_at_a_port(manager: Manager, program: str) -> None:
    """As docs/metrics.md has it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    needed = {
        "vhost-user-blk": f"--blk-file={manager.state}/vhost-user-blk/a/disk.img",
        "vhost-user-input": f"--event-socket={manager.runtime}/vhost-user-input-a/events",
        "vhost-user-net": f"--stream={manager.runtime}/passt",
        "vhost-user-vsock": f"--uds-path={manager.runtime}/vhost-user-vsock-a/vm",
    }
    manager.configure(program, f"{needed.get(program, '')} --metrics=:{port}")
    path = start_socket(manager, program)
    assert is_turned_away(path)
    manager.drop_in(f"{program}@a.service", *drop_in_of_the_pages("PrivateNetwork=no"))
    with connect(path) as sock:
        assert get_features(sock)
        assert "vhost_user_front_end_connected 1.0\n" in scrape(socket.create_connection(("127.0.0.1", port)))


def test_metrics_at_a_path(manager: Manager) -> None:
    """As docs/metrics.md has it."""
    text = " ".join(METRICS_PAGE.read_text().split())
    assert "`--metrics=unix:/run/metrics-NAME/metrics.sock` takes `RuntimeDirectory=metrics-NAME`" in text
    place = manager.runtime / "metrics-a/metrics.sock"
    manager.configure("vhost-user-rng", f"--metrics=unix:{place}")
    manager.drop_in("vhost-user-rng@a.service", "RuntimeDirectory=metrics-a")
    with connect(start_socket(manager, "vhost-user-rng")) as sock:
        assert get_features(sock)
        assert "vhost_user_front_end_connected 1.0\n" in scrape(connect(place))


def scrape(sock: socket.socket) -> str:
    """The page of metrics."""
    with sock:
        sock.settimeout(PATIENCE)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with sock.makefile("rb") as page:
            return page.read().decode()
