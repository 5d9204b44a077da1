"""The programs as their users, libvirt and systemd run them: every sentence of the conventions is a test."""

import asyncio
import fcntl
import grp
import importlib.metadata
import json
import os
import random
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import Run
from tests.programs import (
    Program,
    connect,
    connected,
    executable,
    get_features,
    is_refused,
    listening,
    listens_at,
    notified,
    on_this_machine,
)
from vhostd.errors import RefusedRequest, SetupError
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.program.endpoint import listen
from vhostd.vhost_user.messages import GET_QUEUE_NUM, SET_MEM_TABLE, SET_VRING_KICK, MemoryTable, VringFd
from vhostd.wire.framing import HEADER, VERSION
from vhostd.wire.rows import Empty

Command = list[str]

CHECKOUT = Path(__file__).parents[2]
RNG = executable("vhost-user-rng")
INPUT = executable("vhost-user-input")
GPU = executable("vhost-user-gpu")
BLK = executable("vhost-user-blk")
CONSOLE = executable("vhost-user-console")
TYPES = {RNG: "rng", INPUT: "input", GPU: "gpu", BLK: "block", CONSOLE: "console"}
EXIT_LIMIT = 0.1  # seconds from SIGTERM to the end, on an idle machine
NONSENSE = b"GET / HTTP/1"  # as long as a header, but none
CLOSE_ON_EXEC = 0o2000000  # in the flags of /proc/PID/fdinfo


@pytest.fixture
def rng() -> Command:
    """The command line of vhost-user-rng, without a socket."""
    return [RNG]


@pytest.fixture(params=[RNG, INPUT, GPU, BLK, CONSOLE], ids=["rng", "input", "gpu", "blk", "console"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> Command:
    """The command line of each program, without a socket."""
    options = {BLK: ["--ram=1M"], INPUT: [f"--event-socket={tmp_path / 'events'}"]}
    return [request.param, *options.get(request.param, [])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where to listen."""
    return tmp_path / "vhost.sock"


def output(command: Sequence[str]) -> str:
    """What a command prints; it must end with status 0 and nothing on stderr."""
    with Program(command, stdout=subprocess.PIPE) as program:
        out, err = program.process.communicate()
    assert (program.process.returncode, err) == (0, b"")
    text: str = out.decode()
    return text


def complaint(command: Sequence[str], fds: Sequence[int] = ()) -> tuple[int, str]:
    """The status of a program that cannot start, and the only line on its stderr."""
    with Program(command, fds=fds) as program:
        status, lines = program.ends()
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"{Path(command[0]).name}: error: ")
    return status, lines[0]


def ended_well(program: Program) -> list[str]:
    """What the program said on stderr; it must have ended with status 0 and without a traceback."""
    status, lines = program.ends()
    assert status == 0, lines
    assert not any("Traceback" in line or "Exception ignored" in line for line in lines), lines
    return lines


@contextmanager
def launcher_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket as libvirt makes one for its --fd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()
        yield sock


# --- What a program says of itself ----------------------------------------------------------------------


@pytest.mark.parametrize("others", [[], ["--fd=1000", "--socket-path=/", "--no-such-option", "stray"]])
def test_capabilities_are_one_json_object_whatever_the_options(command: Command, others: Command) -> None:
    printed = output([command[0], *others, "--print-capabilities"])
    capabilities = json.loads(printed)
    schema = json.loads((CHECKOUT / "share/vhost-user/vhost-user.schema.json").read_text())
    jsonschema.validate(capabilities, {**schema, "oneOf": [{"$ref": "#/$defs/capabilities"}]})
    assert capabilities["type"] == TYPES[command[0]]


@pytest.mark.parametrize("module", ["vhost_user_rng", "vhost_user_blk", "vhost_user_gpu", "vhost_user_input"])
def test_capabilities_load_nothing_that_costs_time(module: str) -> None:
    code = f"import sys; sys.argv[1:] = ['--print-capabilities']; import {module}; {module}.main()"
    loaded = output([sys.executable, "-c", f"{code}; print(*sys.modules)"]).splitlines()[1].split()
    costly = {"asyncio", "uvloop", "argparse", "logging", "socket", "json", "pydantic", "jsonschema", "evdev"}
    assert costly.isdisjoint(loaded)


def test_help_names_the_shared_options(command: Command) -> None:
    text = output([command[0], "--help"])
    shared = (
        "socket-path",
        "fd",
        "socket-mode",
        "socket-group",
        "sandbox",
        "metrics",
        "offer",
        "log-level",
        "print-capabilities",
        "version",
    )
    assert all(f"--{option}" in text for option in shared)
    assert text.startswith(f"usage: {Path(command[0]).name} ")


def test_version(command: Command) -> None:
    version = importlib.metadata.version("vhostd")
    assert output([command[0], "--version"]) == f"{Path(command[0]).name} {version}\n"


def test_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "vhost_user_rng"]
    assert output([*command, "--version"]).startswith("vhost-user-rng ")
    with connected(command) as (program, sock):
        assert get_features(sock)
        sock.close()
        assert ended_well(program)[0].startswith("vhost-user-rng: ")


def test_log_level(rng: Command) -> None:
    with connected([*rng, "--log-level=debug"]) as (program, sock):
        get_features(sock)
        program.hear("GET_FEATURES")
    with connected([*rng, "--log-level=warning"]) as (program, sock):
        get_features(sock)
        sock.close()
        assert ended_well(program) == []


# --- Wrong usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--fd=three",
        "--fd=-1",
        "--fd=2147483648",
        "--fd=4294967299",
        "--fd=",
        "--socket-path=x --socket-mode=0888",
        "--socket-path=x --socket-mode=1777",
        "--socket-path=x --socket-mode=-1",
        "--socket-path=x --socket-mode=rw",
        "--socket-path=x --socket-group=no-such-group",
        "--socket-path=x --socket-group=4294967295",
        "--socket-path=x --socket-group=-1",
        "--log-level=loud",
        "--no-such-option",
        "--socket=x",
        "stray",
        "--max-bytes=0 --fd=1",
        "--max-bytes=many --fd=1",
        "--period=-5 --fd=1",
    ],
)
def test_a_usage_error_ends_with_2_and_names_the_value(rng: Command, options: str) -> None:
    status, line = complaint([*rng, *options.split()])
    assert status == 2
    value = next(option for option in options.split() if option not in ("--socket-path=x", "--fd=1"))
    assert value.partition("=")[2] in line or value in line
    assert value.partition("=")[0] in line


@pytest.mark.parametrize("options", ["--socket-mode=660 --fd=1", "--socket-group=0 --fd=1"])
def test_socket_options_need_a_socket_path(rng: Command, options: str) -> None:
    status, line = complaint([*rng, *options.split()])
    assert (status, "--socket-path" in line) == (2, True)


def test_a_program_without_a_socket_is_a_usage_error(command: Command) -> None:
    status, line = complaint(command)
    assert status == 2
    assert all(way in line for way in ("--socket-path", "--fd", "systemd"))


def test_ways_to_the_socket_exclude_each_other(rng: Command, path: Path) -> None:
    status, line = complaint([*rng, f"--socket-path={path}", "--fd=0"])
    assert status == 2
    assert "--socket-path" in line
    assert "--fd" in line
    assert not path.exists()


def test_input_needs_a_source(path: Path) -> None:
    status, line = complaint([INPUT, f"--socket-path={path}"])
    assert (status, "--event-socket" in line) == (2, True)
    assert not path.exists()


# --- Sockets that are of no use -------------------------------------------------------------------------


def unconnected() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def datagrams() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("make", [unconnected, datagrams, udp, tcp])
def test_an_fd_that_is_another_kind_of_socket(command: Command, make: Callable[[], socket.socket]) -> None:
    with make() as sock:
        status, line = complaint([*command, f"--fd={sock.fileno()}"], fds=[sock.fileno()])
        assert (status, f"fd {sock.fileno()} is " in line) == (1, True)


def test_an_fd_that_is_no_socket(command: Command) -> None:
    assert complaint([*command, "--fd=1"])[0] == 1


@pytest.mark.parametrize("number", [19999, 2147483647])
def test_an_fd_that_is_not_open(command: Command, number: int) -> None:
    status, line = complaint([*command, f"--fd={number}"])
    assert status == 1
    assert str(number) in line
    assert os.strerror(9) in line


def test_a_path_that_is_too_long(command: Command, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 108)
    status, line = complaint([*command, f"--socket-path={long}"])
    assert status == 1
    assert str(long) in line
    assert "too long" in line


@pytest.mark.parametrize("where", ["missing/vhost.sock", "file/vhost.sock", "file", "directory", "link"])
def test_a_path_where_no_socket_can_be(command: Command, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    status, line = complaint([*command, f"--socket-path={tmp_path / where}"])
    assert status == 1
    assert str(tmp_path / where) in line
    assert (tmp_path / "file").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()


def test_an_empty_path(rng: Command) -> None:
    status, line = complaint([*rng, "--socket-path="])
    assert (status, line.partition("error: ")[2]) == (1, "cannot listen at '': that names no file")


def test_a_live_socket_is_an_error_and_goes_on_serving(rng: Command, path: Path) -> None:
    with listening(rng, path) as first, connect(path) as sock:
        assert get_features(sock)
        status, line = complaint([*rng, f"--socket-path={path}"])
        assert (status, str(path) in line) == (1, True)
        assert get_features(sock)
        assert first.process.poll() is None


def test_a_person_at_a_terminal_is_told_where_it_listens(command: Command, path: Path) -> None:
    ours, theirs = os.openpty()
    with open(ours, "rb", buffering=0) as terminal, listening(command, path, stderr=theirs) as program:
        os.close(theirs)
        name = Path(command[0]).name
        heard = terminal.read(4096)
        while len(heard.splitlines()) < (2 if INPUT in command else 1) or not heard.endswith(b"\n"):
            heard += terminal.read(4096)
        program.stop()
    lines = heard.decode().splitlines()
    assert lines[0] == f"{name}: listening at {path}"
    assert [line.removesuffix(str(path.parent / "events")) for line in lines[1:]] == (
        [f"{name}: events are taken at "] if INPUT in command else []
    )


def test_a_second_start_disturbs_nobody(rng: Command, path: Path) -> None:
    with listening(rng, path) as first:
        assert complaint([*rng, f"--socket-path={path}"])[0] == 1
        first.send()
        assert ended_well(first) == []


def test_a_live_socket_of_another_kind_is_an_error(rng: Command, path: Path) -> None:
    with datagrams() as sock:
        sock.bind(str(path))
        assert complaint([*rng, f"--socket-path={path}"])[0] == 1
    assert path.is_socket()


def test_a_missing_source_is_named(rng: Command, path: Path, tmp_path: Path) -> None:
    status, line = complaint([*rng, f"--socket-path={path}", f"--rng-source={tmp_path / 'none'}"])
    assert (status, str(tmp_path / "none") in line) == (1, True)
    assert not path.exists()


def test_a_socket_is_closed_when_the_device_cannot_be_made(rng: Command, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [*rng, f"--fd={theirs.fileno()}", f"--rng-source={tmp_path / 'none'}"]
        done = subprocess.run(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def test_a_front_end_that_floods_keeps_nobody_waiting(rng: Command, path: Path) -> None:
    """Neither the one that is to be refused, nor SIGTERM."""
    flood = HEADER.pack(4, VERSION, 0) * 10000  # RESET_OWNER, which has no reply

    def pour(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock.sendall(flood)

    with listening(rng, path) as program, socket.socket(socket.AF_UNIX) as first:
        first.connect(str(path))
        pouring = threading.Thread(target=pour, args=(first,))
        pouring.start()
        with socket.socket(socket.AF_UNIX) as second:
            second.settimeout(20)
            second.connect(str(path))
            assert second.recv(1) == b""
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(20) == 0
        pouring.join()


def test_no_file_is_left_where_its_group_cannot_be_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, os.strerror(1))

    path.parent.chmod(0o2755)  # so that the folder's own group has to be changed
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(SetupError, match="not permitted"):
        listen(str(path), group=os.getgid() + 1)
    assert not path.exists()


# --- A connected socket ---------------------------------------------------------------------------------


def test_a_connected_fd_is_served_until_the_front_end_goes(command: Command) -> None:
    with connected(command) as (program, sock):
        assert get_features(sock)
        assert get_features(sock)
        sock.close()
        ended_well(program)


def test_a_front_end_that_went_before_the_program_was_there(command: Command) -> None:
    with connected(command) as (program, sock):
        sock.close()
        ended_well(program)


def test_a_connected_fd_ends_when_the_front_end_makes_no_sense(rng: Command) -> None:
    with connected(rng) as (program, sock):
        sock.sendall(NONSENSE)
        assert sock.recv(100) == b""
        assert any("ERROR" in line for line in ended_well(program))


def test_connected_as_stdin(rng: Command) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, Program([*rng, "--fd=0"], stdin=theirs.fileno()) as program:
        theirs.close()
        assert get_features(ours)
        ours.close()
        ended_well(program)


# --- A listening socket ---------------------------------------------------------------------------------


def test_a_listening_fd_serves_one_after_another(command: Command, path: Path) -> None:
    with launcher_socket(path) as sock:
        number = sock.fileno()
        with Program([*command, f"--fd={number}"], fds=[number]) as program:
            for _ in range(3):
                with connect(path) as front_end:
                    assert get_features(front_end)
            program.stop()
    assert path.is_socket()  # the launcher made it, and may want it again


def test_a_socket_path_is_made_served_and_removed(command: Command, path: Path) -> None:
    with listening(command, path) as program:
        made = path.stat().st_ino
        for _ in range(3):
            with connect(path) as front_end:
                assert get_features(front_end)
            assert path.stat().st_ino == made
        program.stop()
    assert not path.exists()


def test_a_relative_path(rng: Command, tmp_path: Path) -> None:
    with Program([*rng, "--socket-path=vhost.sock"], cwd=str(tmp_path)) as program:
        program.until(lambda _: listens_at(Path("vhost.sock")))
        program.stop()
    assert list(tmp_path.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_stale_socket_is_replaced(command: Command, path: Path) -> None:
    with Program([*command, f"--socket-path={path}"]) as killed:
        killed.until(lambda _: listens_at(path))
    assert path.is_socket()
    for left in path.parent.glob("events"):
        left.unlink()
    with listening(command, path) as program, connect(path) as front_end:
        assert get_features(front_end)
        program.stop()
    assert not path.exists()


def test_a_socket_that_somebody_else_has_put_there_stays(rng: Command, path: Path) -> None:
    with listening(rng, path) as program:
        path.unlink()
        with launcher_socket(path):
            program.stop()
            assert path.is_socket()


@pytest.mark.parametrize(("option", "mode"), [("600", 0o600), ("0666", 0o666), ("0", 0)])
def test_socket_mode(rng: Command, path: Path, option: str, mode: int) -> None:
    with listening([*rng, f"--socket-mode={option}"], path):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_socket_group(rng: Command, path: Path) -> None:
    group = 1 if os.geteuid() == 0 else os.getgroups()[-1]
    for name in (str(group), grp.getgrgid(group).gr_name):
        with listening([*rng, f"--socket-group={name}", "--socket-mode=0660"], path) as program:
            status = path.stat()
            assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (group, 0o660)
            program.stop()


def test_a_second_front_end_is_refused_at_once_and_the_first_lives_on(command: Command, path: Path) -> None:
    with listening(command, path) as program, connect(path) as first:
        assert get_features(first)
        for _ in range(20):
            with connect(path) as second:
                assert second.recv(1) == b""
            with connect(path) as third:
                assert is_refused(third)
        assert get_features(first)
        program.hear("refused a second front-end")
        first.close()
        with connect(path) as next_one:
            assert get_features(next_one)


def test_a_quick_reconnect_is_never_refused(command: Command, path: Path) -> None:
    with listening(command, path):
        for _ in range(200):
            with connect(path) as sock:
                assert get_features(sock)


def test_a_reconnect_together_with_the_end_of_the_old_connection(rng: Command, path: Path) -> None:
    with listening(rng, path) as program, connect(path) as old:
        assert get_features(old)
        program.send(signal.SIGSTOP)
        old.close()
        connect(path).close()
        with connect(path) as new:
            program.send(signal.SIGCONT)
            assert get_features(new)


def test_a_front_end_that_makes_no_sense_costs_only_its_connection(rng: Command, path: Path) -> None:
    with listening(rng, path) as program:
        with connect(path) as sock:
            sock.sendall(NONSENSE)
            assert sock.recv(100) == b""
        program.hear("closing the connection")
        with connect(path) as sock:
            assert get_features(sock)


async def _one_life(path: Path) -> None:
    """Connects, sets all up, has one request served, and goes without a word."""
    frontend = await Frontend.connect(str(path))
    memory = SharedMemory(1 << 16)
    await frontend.negotiate()
    await frontend.share(memory)
    queue = await frontend.start(memory, size=16)
    assert len(await queue.request(room=16)) == 16
    frontend.close()
    queue.close()
    memory.close()


def test_a_thousand_reconnects_leave_nothing_behind(rng: Command, path: Path, run_async: Run) -> None:
    async def lives(count: int) -> None:
        for _ in range(count):
            await _one_life(path)

    def footprint(program: Program) -> tuple[dict[int, str], int, int, int]:
        with connect(path) as sock:  # served, so that the one before has been cleared away
            get_features(sock)
            fds = {number: what for number, what in program.fds().items() if "socket" not in what}
            mappings = program.mappings()
            shared = sum(line.split()[1].endswith("s") for line in mappings)
            return fds, shared, len(mappings), program.resident()

    with listening(rng, path) as program:
        run_async(lambda: lives(100))
        fds, shared, mappings, resident = footprint(program)
        for _ in range(10):
            run_async(lambda: lives(100))
        fds_after, shared_after, mappings_after, resident_after = footprint(program)
    assert (fds_after, shared_after) == (fds, shared)
    # Python may need another arena or two, but nothing for each connection.
    assert mappings_after - mappings < 10
    assert resident_after - resident < 512  # KiB


def test_the_guest_s_memory_is_given_up_with_its_front_end(
    command: Command, path: Path, run_async: Run
) -> None:
    """At once, also where a handler ends in a reference cycle, as with a TaskGroup of Python 3.11."""

    async def starts_a_ring() -> None:
        with closing(await Frontend.connect(str(path))) as frontend, closing(SharedMemory(1 << 16)) as memory:
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await frontend.start(memory, size=16)):
                assert [line for line in program.mappings() if "guest-memory" in line]

    with listening(command, path) as program:
        run_async(starts_a_ring)
        with connect(path) as sock:
            get_features(sock)
            assert not [line for line in program.mappings() if "guest-memory" in line]


# --- Socket activation ----------------------------------------------------------------------------------


def activation(path: Path, *options: str) -> Command:
    return ["systemd-socket-activate", f"--listen={path}", *options]


def test_systemd_passes_a_listening_socket(command: Command, path: Path) -> None:
    with Program([*activation(path), *command]) as program:
        program.until(lambda _: listens_at(path))
        with connect(path) as first:
            assert get_features(first)
            with connect(path) as second:
                assert is_refused(second)
        with connect(path) as third:
            assert get_features(third)
        program.stop()
    assert path.is_socket()


def test_systemd_passes_each_connection(command: Command, path: Path) -> None:
    with Program([*activation(path, "--accept"), *command]) as systemd:
        systemd.until(lambda _: listens_at(path))
        with connect(path) as front_end:
            assert get_features(front_end)
        assert "status 0" in systemd.hear("died with code").replace("code", "status")


@contextmanager
def activated(command: Command, *fds: int, count: str | None = None) -> Iterator[Program]:
    """A program that gets `fds` as systemd passes them, by a launcher that keeps its process id."""
    moves = "".join(f"os.dup2({fd}, {100 + at}); " for at, fd in enumerate(fds))
    places = "".join(f"os.dup2({100 + at}, {3 + at}); " for at in range(len(fds)))
    code = (
        f"import os, sys; {moves}{places}"
        f"os.environ |= {{'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': {count or str(len(fds))!r}}}; "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with Program([sys.executable, "-c", code, *command], fds=fds) as program:
        yield program


def test_activation_takes_exactly_one_socket(rng: Command, path: Path, tmp_path: Path) -> None:
    with launcher_socket(path) as one, launcher_socket(tmp_path / "other") as two:
        with activated(rng, one.fileno()) as program, connect(path) as front_end:
            assert get_features(front_end)
            program.stop()
        with activated(rng, one.fileno(), two.fileno()) as program:
            status, lines = program.ends()
            assert (status, len(lines), "2 sockets" in lines[0]) == (1, 1, True)


@pytest.mark.parametrize("count", ["many", "-1", "2000000"])
def test_activation_with_nonsense(rng: Command, count: str) -> None:
    with activated(rng, count=count) as program:
        status, lines = program.ends()
    assert (status, len(lines), count in lines[0]) == (1, 1, True)


@pytest.mark.parametrize("option", ["--fd=0", "--socket-path=x"])
def test_activation_excludes_the_options(rng: Command, path: Path, option: str) -> None:
    with launcher_socket(path) as sock, activated([*rng, option], sock.fileno()) as program:
        status, lines = program.ends()
    assert (status, len(lines)) == (2, 1)
    assert "LISTEN_FDS" in lines[0]
    assert option.partition("=")[0] in lines[0]


def test_activation_of_another_process_is_none(rng: Command) -> None:
    with connected(rng, env={"LISTEN_PID": "1", "LISTEN_FDS": "7"}) as (program, sock):
        assert get_features(sock)
        sock.close()
        ended_well(program)


# --- The service manager --------------------------------------------------------------------------------


def test_tells_the_service_manager(command: Command, path: Path) -> None:
    with notified() as manager:
        arguments = [*command, f"--socket-path={path}"]
        with Program(arguments, env={"NOTIFY_SOCKET": manager.name}) as program:
            assert manager.next() == ["STATUS=starting"]
            assert manager.next() == ["READY=1"]
            with connect(path) as sock:  # it is as ready as it says
                assert manager.next() == ["STATUS=waiting for a front-end"]
                assert get_features(sock)
                assert manager.next() == ["STATUS=serving a front-end"]
            assert manager.next() == ["STATUS=waiting for a front-end"]
            program.send()
            assert manager.next() == ["STOPPING=1"]
            ended_well(program)


def test_tells_the_service_manager_of_a_connected_socket(command: Command) -> None:
    with notified() as manager, connected(command, env={"NOTIFY_SOCKET": manager.name}) as (program, sock):
        assert manager.next() == ["STATUS=starting"]
        assert manager.next() == ["READY=1"]
        assert manager.next() == ["STATUS=serving a front-end"]
        sock.close()
        assert manager.next() == ["STOPPING=1"]
        ended_well(program)


def test_shows_the_watchdog_that_it_lives(command: Command) -> None:
    with notified() as manager:
        env = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "200000"}
        start = time.monotonic()
        with connected(command, env=env) as (program, sock):
            assert get_features(sock)
            for _ in range(4):
                manager.until("WATCHDOG=1")
            assert time.monotonic() - start > 0.3  # not more often than it has to
            program.stop()


def test_another_process_s_watchdog_is_left_to_it(rng: Command) -> None:
    with notified() as manager:
        env = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}
        with connected(rng, env=env) as (program, sock):
            assert get_features(sock)
            program.send()
            ended_well(program)
        said = [line for _ in range(4) for line in manager.next()]
    assert said == ["STATUS=starting", "READY=1", "STATUS=serving a front-end", "STOPPING=1"]


def test_a_service_manager_that_does_not_listen(rng: Command, path: Path) -> None:
    """Its socket is full after some datagrams, and whoever sends one more waits for it."""
    with notified() as manager:
        manager.next_is_last()
        with listening(rng, path, env={"NOTIFY_SOCKET": manager.name}) as program:
            for _ in range(2):
                with connect(path) as sock:
                    assert get_features(sock)
            program.stop()
            ended_well(program)


@pytest.mark.parametrize("address", ["/nowhere/notify", "nonsense", ""])
def test_a_service_manager_that_is_not_there(rng: Command, address: str) -> None:
    with connected(rng, env={"NOTIFY_SOCKET": address}) as (program, sock):
        assert get_features(sock)
        sock.close()
        ended_well(program)


# --- The end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(command: Command, path: Path, number: int) -> None:
    took = []
    for _ in range(5):
        with listening(command, path) as program, connect(path) as sock:
            assert get_features(sock)
            took.append(program.stop(number))
            ended_well(program)
        assert list(path.parent.iterdir()) == []
    assert min(took) < on_this_machine(EXIT_LIMIT)  # of several, because this machine may be busy


async def _hammer(queue: Queue, served: asyncio.Event) -> None:
    """Keeps the ring full."""
    for _ in range(queue.size):
        queue.add(room=4096)
    queue.kick()
    for count in range(1 << 60):
        await queue.used()
        queue.add(room=4096)
        queue.kick()
        if count == 1000:
            served.set()


async def _stop_under_load(program: Program, path: Path) -> float:
    """The seconds from SIGTERM until the program has ended, while its ring never runs empty."""
    memory = SharedMemory(1 << 20)
    frontend = await Frontend.connect(str(path))
    await frontend.negotiate()
    await frontend.share(memory)
    queue = await frontend.start(memory, size=128)
    served = asyncio.Event()
    load = asyncio.create_task(_hammer(queue, served))
    await served.wait()
    took = await asyncio.to_thread(program.stop)
    load.cancel()
    with suppress(asyncio.CancelledError, ConnectionResetError):  # the program has ended
        await load
    frontend.close()
    queue.close()
    memory.close()
    return took


def test_sigterm_ends_it_at_once_under_load(rng: Command, path: Path, run_async: Run) -> None:
    took = []

    async def main() -> None:
        for _ in range(5):
            with listening(rng, path) as program:
                took.append(await _stop_under_load(program, path))
                ended_well(program)
            assert not path.exists()

    run_async(main)
    assert min(took) < on_this_machine(EXIT_LIMIT)


def test_sigterm_while_a_request_waits_for_the_limit(rng: Command, path: Path, run_async: Run) -> None:
    async def main() -> None:
        with listening([*rng, "--max-bytes=16", "--period=3600000"], path) as program:
            frontend = await Frontend.connect(str(path))
            with closing(SharedMemory(1 << 16)) as memory:
                await frontend.negotiate()
                await frontend.share(memory)
                queue = await frontend.start(memory)
                assert len(await queue.request(room=16)) == 16
                queue.add(room=16)
                queue.kick()
                program.stop()
                queue.close()
            frontend.close()

    run_async(main)


def test_signals_again_and_again(rng: Command, path: Path) -> None:
    with listening(rng, path) as program, connect(path) as sock:
        assert get_features(sock)
        while program.process.poll() is None:
            program.send(signal.SIGTERM)
            program.send(signal.SIGINT)
        ended_well(program)
    assert not path.exists()


def test_sigterm_together_with_the_front_end_s_end(command: Command) -> None:
    """As libvirt does it: QEMU ends first, then the back-end gets its signal, at whatever moment that is."""
    for delay in range(30):
        with connected(command) as (program, sock):
            assert get_features(sock)
            sock.close()
            for _ in range(delay * 20):
                os.sched_yield()
            program.send()
            ended_well(program)


def holds_signals(program: Program) -> bool:
    """Whether main() has begun, and the event loop does not run yet."""
    return bool(int(program.status("SigBlk"), 16) >> (signal.SIGTERM - 1) & 1)


def load(program: Program, mappings: int, path: Path) -> None:
    """Lets a program that starts load modules until it has so many mappings, at most until it listens."""
    program.until(lambda program: holds_signals(program) or listens_at(path))
    program.until(lambda program: len(program.mappings()) >= mappings or listens_at(path))


def test_sigterm_at_any_moment_of_the_start(command: Command, path: Path) -> None:
    """A signal that comes before the program can act on it waits; before main() it cannot be helped."""
    with listening(command, path) as program:
        most = len(program.mappings())
        program.stop()
    moments = random.Random(0)
    for _ in range(40):
        with Program([*command, f"--socket-path={path}"]) as program:
            load(program, moments.randrange(most // 2, most), path)
            program.send(moments.choice([signal.SIGTERM, signal.SIGINT]))
            assert [line for line in ended_well(program) if ": INFO: port 0 is " not in line] == []
        assert list(path.parent.iterdir()) == []


def test_signals_that_the_launcher_ignores_still_end_it(rng: Command, path: Path) -> None:
    shell = ["sh", "-c", 'trap "" TERM INT; exec "$@"', "sh", *rng]
    for number in (signal.SIGTERM, signal.SIGINT):
        with listening(shell, path) as program:
            program.stop(number)


def test_a_device_that_cannot_go_on_ends_with_1(tmp_path: Path, path: Path, run_async: Run) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"16 bytes and out")

    async def main() -> None:
        frontend = await Frontend.connect(str(path))
        with closing(SharedMemory(1 << 16)) as memory, closing(frontend):
            await frontend.negotiate()
            await frontend.share(memory)
            with closing(await frontend.start(memory)) as queue:
                assert await queue.request(room=16) == source.read_bytes()
                queue.add(room=16)
                queue.kick()
                assert await frontend.channel.receive() is None

    with listening([RNG, f"--rng-source={source}"], path) as program:
        run_async(main)
        status, lines = program.ends()
    assert status == 1
    assert lines[-1] == f"vhost-user-rng: error: --rng-source={source} has run out"
    assert not path.exists()


# --- Limits of the host ---------------------------------------------------------------------------------


def test_too_few_fds_are_said_in_one_line(command: Command, path: Path) -> None:
    for most in (5, 8, 31):
        limited = ["prlimit", f"--nofile={most}", *command, f"--socket-path={path}"]
        with Program(limited) as program:
            status, lines = program.ends()
        assert (status, len(lines)) == (1, 1)
        assert f"RLIMIT_NOFILE is {most}: a program needs 32 fds at least" in lines[0]
        assert not path.exists()
    with listening(["prlimit", "--nofile=32", *command], path) as program:
        with connect(path) as sock:
            get_features(sock)
        program.stop()


# --- Signals that ask for something ---------------------------------------------------------------------


def test_a_report_without_a_front_end(command: Command, path: Path) -> None:
    with listening([*command, "--log-level=error"], path) as program:
        program.send(signal.SIGUSR2)
        assert program.hear("INFO").endswith("no front-end is connected; 0 were before")
        with connect(path) as sock:
            get_features(sock)
            program.send(signal.SIGUSR2)
            program.hear("a front-end is connected")
        program.stop()


def test_a_report_of_every_ring(command: Command, path: Path, run_async: Run) -> None:
    async def main(program: Program) -> None:
        frontend = await Frontend.connect(str(path))
        with closing(SharedMemory(1 << 20)) as memory, closing(frontend):
            await frontend.negotiate()
            await frontend.share(memory)
            count = (await frontend.call(GET_QUEUE_NUM, Empty())).value
            with closing(await frontend.start(memory, index=count - 1, size=32)):
                for _ in range(30):  # which is more than a guest could make it say
                    program.send(signal.SIGUSR2)
                    said = program.hear("a front-end is connected")
                    assert f"features={frontend.features:#x} protocol_features=" in said
                    assert said.endswith("regions=1 memory=1048576")
                    said = program.hear("vring ")
                    assert f"vring {count - 1}: started, enabled, size=32 base=" in said
                    assert "fds=kick+call+err event_idx=1 indirect=1" in said
                    if count > 1:
                        assert program.hear("rings ").endswith(f"rings that were not set up: {count - 1}")

    with listening(command, path) as program:
        run_async(lambda: main(program))
        program.stop()


ASKING = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def test_they_never_end_a_program(command: Command, path: Path) -> None:
    """Also the terminal's end is none of the guest's business."""
    with listening(command, path) as program, connect(path) as sock:
        for number in ASKING * 3:
            program.send(number)
            assert get_features(sock)
        program.stop()


def test_they_may_come_before_the_program_is_ready(path: Path) -> None:
    code = (
        "import os, sys; from vhost_user_rng.device import Rng; from vhostd import run\n"
        "class Early(Rng):\n"
        "    @classmethod\n"
        "    def from_options(cls, options):\n"
        f"        for number in {[int(number) for number in ASKING]}: os.kill(os.getpid(), number)\n"
        "        return super().from_options(options)\n"
        "sys.exit(run(Early))"
    )
    with listening([sys.executable, "-c", code], path) as program, connect(path) as sock:
        assert get_features(sock)
        program.stop()


def test_they_may_come_while_the_program_ends(path: Path) -> None:
    code = (
        "import os, sys; from vhost_user_blk.device import Blk; from vhostd import run\n"
        "class Late(Blk):\n"
        "    def close(self):\n"
        f"        for number in {[int(number) for number in ASKING]}: os.kill(os.getpid(), number)\n"
        "        super().close()\n"
        "sys.exit(run(Late))"
    )
    with listening([sys.executable, "-c", code, "--ram=1M", "--sandbox=none"], path) as program:
        program.stop()
    assert not path.exists()


# --- Its surroundings -----------------------------------------------------------------------------------


def test_stays_in_the_foreground(rng: Command, tmp_path: Path) -> None:
    with connected(rng, cwd=str(tmp_path)) as (program, sock):
        assert get_features(sock)
        assert program.process.poll() is None
        assert program.status("PPid") == str(os.getpid())
        assert os.getsid(program.pid) == os.getsid(0)
        assert os.readlink(program.proc / "cwd") == str(tmp_path)


def test_foreign_fds_and_the_lock_of_a_pid_file_survive(rng: Command, tmp_path: Path) -> None:
    """libvirt takes the lock for the program's life: if it is lost, the program is never signalled."""
    lock = tmp_path / "pid"
    code = (
        "import fcntl, os, sys; fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX); "
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    with lock.open("w") as file:
        launcher = [sys.executable, "-c", code, str(file.fileno()), *rng]
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fds = [file.fileno(), theirs.fileno()]
            with Program([*launcher, f"--fd={theirs.fileno()}"], fds=fds) as program:
                theirs.close()
                assert get_features(ours)
                assert program.fds()[file.fileno()] == str(lock)
                assert lock_holder(file.fileno()) == program.pid
                ours.close()
                ended_well(program)
        assert lock_holder(file.fileno()) is None


def lock_holder(fd: int) -> int | None:
    """The process that holds a POSIX lock on the file."""
    layout = "hhqqi4x"  # struct flock: l_type, l_whence, l_start, l_len, l_pid
    asked = struct.pack(layout, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(layout, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


def test_its_own_fds_are_closed_on_exec(rng: Command, path: Path) -> None:
    with listening(rng, path) as program, connect(path) as sock:
        assert get_features(sock)
        for number in program.fds():
            info = (program.proc / "fdinfo" / str(number)).read_text()
            flags = next(int(line.split()[1], 8) for line in info.splitlines() if line.startswith("flags"))
            assert number <= 2 or flags & CLOSE_ON_EXEC, (number, program.fds()[number])


def test_standard_fds_on_dev_null(command: Command) -> None:
    with connected(command, stderr=subprocess.DEVNULL) as (program, sock):
        assert get_features(sock)
        sock.close()
        assert program.wait() == 0


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_fds(command: Command, closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
    with connected(shell) as (program, sock):
        assert get_features(sock)
        fds = program.fds()
        assert all("/dev/null" in fds[number] or "pipe" in fds[number] for number in range(3))
        sock.close()
        ended_well(program)


def test_failures_with_nobody_to_hear_of_them(rng: Command) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with ExitStack() as stack:
        stack.callback(os.close, writer)
        for options, expected in (["--fd=19999"], 1), (["--fd=x"], 2):
            with Program([*rng, *options], stderr=writer) as program:
                assert program.wait() == expected
        with connected(rng, stderr=writer) as (program, sock):
            assert get_features(sock)
            sock.close()
            assert program.wait() == 0


# --- Memory that is not shared --------------------------------------------------------------------------


def test_memory_without_fds_is_explained(rng: Command, path: Path, run_async: Run) -> None:
    async def main(program: Program) -> None:
        frontend = await Frontend.connect(str(path))
        with closing(SharedMemory(1 << 16)) as memory, closing(frontend):
            await frontend.negotiate()
            with pytest.raises(RefusedRequest):
                await frontend.call(SET_MEM_TABLE, MemoryTable((memory.region,)))
            assert "share=on" in program.hear("missing")

    with listening(rng, path) as program:
        run_async(lambda: main(program))


def test_no_memory_at_all_is_explained(rng: Command, path: Path, run_async: Run) -> None:
    """What QEMU does whose memory is not shared: it has no region to offer, and starts the ring."""

    async def main(program: Program) -> None:
        frontend = await Frontend.connect(str(path))
        with closing(SharedMemory(1 << 16)) as memory, closing(frontend):
            await frontend.negotiate()
            queue = Queue(memory, 0, 16, frontend.features)
            await frontend.set_up(queue)
            with pytest.raises(RefusedRequest):
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert "share=on" in program.hear("missing")
            queue.close()

    with listening(rng, path) as program:
        run_async(lambda: main(program))


def test_unknown_requests_cost_nothing(rng: Command, path: Path) -> None:
    with listening(rng, path), connect(path) as sock:
        sock.sendall(HEADER.pack(99, VERSION, 0))
        assert get_features(sock)
