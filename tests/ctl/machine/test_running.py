"""A machine from its start to its end: real programs, and a script in place of QEMU."""

import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import termios
from contextlib import closing
from pathlib import Path

import pytest

from tests.ctl.machine.launched import END_WITH_5, Watched, children, command, environment, launched
from tests.programs import PATIENCE, Program, connect, get_features
from vhostd.ctl.machine import running
from vhostd.ctl.machine.running import runtime_folder

DEVICES = ("--disk=disk.img", "--display", "--keyboard", "--rng")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a disk."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 16))
    return tmp_path


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 0),
        ("raise SystemExit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("signal.signal(signal.SIGTERM, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_the_exit_status_is_qemu_s(folder: Path, body: str, status: int) -> None:
    with launched(folder, "--rng", body=body) as run:
        assert run.program.ends() == (status, [])
    assert not list(folder.glob("vhostctl-*"))


def test_all_programs_serve_when_qemu_starts(folder: Path) -> None:
    with launched(folder, *DEVICES) as run:
        for name in ("disk0", "display0", "keyboard0", "rng0"):
            with closing(connect(run.socket(name))) as sock:
                assert get_features(sock)
        with closing(connect(run.socket("keyboard0").with_name("keyboard0.events"))):
            pass
        run.program.send(signal.SIGTERM)
        status, lines = run.program.ends()
    assert status == 143
    assert lines == [
        "vhostctl: no graphical session here: QEMU has no window (-monitor stdio has screendump)",
        f"vhostctl: keyboard0: write events to {run.socket('keyboard0').with_name('keyboard0.events')}",
    ]


def test_programs_have_no_terminal_and_no_others_fds(folder: Path) -> None:
    with launched(folder, "--rng") as run:
        pid = run.pid_of("vhost-user-rng")
        assert os.getsid(pid) == pid
        assert os.getpgid(run.qemu) == os.getpgid(run.program.pid)
        assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def test_qemu_has_the_fds_that_it_was_given(folder: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        body = f"os.write({theirs.fileno()}, b'here')"
        line = command(folder, "--rng", body=body)
        with Program(line, fds=[theirs.fileno()], cwd=str(folder), env=environment(folder)) as program:
            assert program.ends() == (0, [])
        assert ours.recv(10) == b"here"


@pytest.mark.parametrize(
    ("asked", "complaint"),
    [
        ("--disk=missing.img", "vhost-user-blk: error: --blk-file=missing.img: No such file or directory"),
        ("--rng=/missing", "vhost-user-rng: error: --rng-source=/missing: No such file or directory"),
        ("--keyboard=/dev/null", "vhost-user-input: error: "),
    ],
)
def test_a_program_that_cannot_start_keeps_qemu_from_it(folder: Path, asked: str, complaint: str) -> None:
    line = command(folder, "--display=log-level=error", asked)
    with Program(
        line, stdout=subprocess.PIPE, cwd=str(folder), env=environment(folder, {"DISPLAY": ":0"})
    ) as program:
        output, errors = program.process.communicate(timeout=PATIENCE)
        assert program.process.returncode == 1
    assert output == b""
    (said,) = errors.decode().splitlines()
    assert said.startswith(complaint)
    assert not list(folder.glob("vhostctl-*"))


def test_a_qemu_that_is_missing_starts_nothing(folder: Path) -> None:
    line = [*command(folder, "--disk=disk.img")[:-1], "qemu-system-missing"]
    with Program(line, cwd=str(folder), env=environment(folder)) as program:
        assert program.ends() == (
            1,
            ["vhostctl: error: qemu-system-missing is not installed, or is no program"],
        )


def test_a_disk_comes_back(folder: Path) -> None:
    with launched(folder, "--disk=disk.img") as run:
        sock = connect(run.socket("disk0"))
        with closing(sock):
            get_features(sock)
            killed = run.pid_of("vhost-user-blk")
            os.kill(killed, signal.SIGKILL)
            assert sock.recv(1) == b""
        with closing(connect(run.socket("disk0"))) as sock:
            get_features(sock)
        assert run.program.hear("vhost-user-blk") == (
            "vhostctl: vhost-user-blk (disk0) was killed by SIGKILL, and is started again"
        )
        assert run.pid_of("vhost-user-blk") != killed


def test_another_device_does_not(folder: Path) -> None:
    with launched(folder, "--rng") as run:
        os.kill(run.pid_of("vhost-user-rng"), signal.SIGTERM)
        assert run.program.hear("vhost-user-rng") == (
            "vhostctl: vhost-user-rng (rng0) ended with status 0: the guest has lost its rng, "
            "which QEMU cannot take back"
        )
        assert children(run.program.pid) == [run.qemu]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_lets_qemu_end_first(folder: Path, number: signal.Signals) -> None:
    with launched(folder, *DEVICES, prepare=END_WITH_5) as run:
        programs = Watched([pid for pid in children(run.program.pid) if pid != run.qemu])
        run.program.send(number)
        assert run.program.wait() == 5
        assert programs.wait(0)
    assert not list(folder.glob("vhostctl-*"))


def test_a_second_signal_kills_qemu(folder: Path) -> None:
    tell = "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'asked\\n'))"
    with launched(folder, "--rng", prepare=tell, body="while True: signal.pause()") as run:
        assert run.program.process.stdout is not None
        run.program.send(signal.SIGINT)
        assert run.program.process.stdout.readline() == b"asked\n"
        run.program.send(signal.SIGINT)
        assert run.program.wait() == 137


def test_nothing_outlives_a_killed_vhostctl(folder: Path) -> None:
    with launched(folder, *DEVICES) as run:
        started = children(run.program.pid)
        assert len(started) == 5
        watched = Watched(started)
        run.program.send(signal.SIGKILL)
        assert watched.wait(PATIENCE)


def test_a_signal_while_programs_start(folder: Path) -> None:
    """An input device that is waited for."""
    line = command(folder, f"--keyboard={folder}/missing,wait")
    with Program(line, cwd=str(folder), env=environment(folder)) as program:
        program.hear("vhostctl: waiting for vhost-user-input (keyboard0)")
        waiting = Watched(children(program.pid))
        program.send(signal.SIGINT)
        assert program.wait() == 130
        assert waiting.wait(0)


def test_a_signal_that_is_ignored(folder: Path) -> None:
    """As nohup(1) has it."""
    line = ["nohup", *command(folder, "--rng", prepare=END_WITH_5)]
    with Program(line, stdout=subprocess.PIPE, cwd=str(folder), env=environment(folder)) as program:
        assert program.process.stdout is not None
        assert program.process.stdout.readline()
        program.send(signal.SIGHUP)
        program.send(signal.SIGTERM)
        assert program.wait() == 5


def test_the_terminal_is_as_before(folder: Path) -> None:
    """Even when QEMU is killed, which has changed it."""
    body = "import tty; tty.setraw(0); os.set_blocking(0, False); os.kill(os.getpid(), signal.SIGKILL)"
    line = command(folder, "--rng", body=body)
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        # In a session of its own, whose terminal this becomes.
        launcher = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
        script = f"{launcher}; import subprocess; sys.exit(subprocess.call(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", script, *line],
            stdin=slave,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, **environment(folder)},
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stderr) == (137, b"")
        assert termios.tcgetattr(slave) == before
        assert os.get_blocking(slave)
    finally:
        os.close(master)
        os.close(slave)


def test_a_folder_with_room_for_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(running, "LONGEST", 1000)
    assert runtime_folder() == str(tmp_path)
    monkeypatch.setattr(running, "LONGEST", len(str(tmp_path)))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert runtime_folder() == "/tmp"
