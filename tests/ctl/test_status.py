"""vhostctl status: the programs that run, and for whom."""

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.machine.launched import launched
from tests.programs import PROGRAMS, connect, connected, executable, get_features, is_refused, listening
from vhostd import ctl
from vhostd.ctl import status
from vhostd.ctl.processes.found import Process
from vhostd.ctl.status import FrontEnd, Row


def report(capfd: pytest.CaptureFixture[str], pid: int) -> dict[str, Any]:
    """What it says, as JSON, of one program."""
    assert ctl.main(["status", "--json"]) == 0
    programs: list[dict[str, Any]] = json.loads(capfd.readouterr().out)["programs"]
    return next(each for each in programs if each["pid"] == pid)


def test_a_program_that_nobody_uses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rng.sock"
    with listening([executable("vhost-user-rng")], path) as program:
        row = report(capfd, program.pid)
        assert (row["program"], row["type"], row["socket"]) == ("vhost-user-rng", "rng", str(path))
        assert (row["listening"], row["front_ends"], row["rates"], row["fault"]) == (True, [], None, "")


def test_a_program_that_somebody_uses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rng.sock"
    with listening([executable("vhost-user-rng")], path) as program, closing(connect(path)) as sock:
        get_features(sock)
        (front_end,) = report(capfd, program.pid)["front_ends"]
        assert front_end["pid"] == os.getpid()
        ctl.main(["status"])
        line = next(line for line in capfd.readouterr().out.splitlines() if f" {program.pid} " in line)
        assert line.split()[-2:] == [front_end["program"], f"({os.getpid()})"]


def test_a_program_of_a_launcher(capfd: pytest.CaptureFixture[str]) -> None:
    with connected([executable("vhost-user-rng")]) as (program, sock):
        get_features(sock)
        row = report(capfd, program.pid)
        assert (row["socket"], row["listening"]) == (None, False)
        assert [each["pid"] for each in row["front_ends"]] == [os.getpid()]


def test_a_program_of_vhostctl_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with launched(tmp_path, "--rng") as run, closing(connect(run.socket("rng0"))) as sock:
        get_features(sock)
        row = report(capfd, run.pid_of("vhost-user-rng"))
        assert (row["socket"], row["listening"]) == (str(run.socket("rng0")), True)
        assert [each["pid"] for each in row["front_ends"]] == [os.getpid()]


@pytest.mark.parametrize("address", ["unix:metrics.sock", "127.0.0.1:0"])
def test_rates(tmp_path: Path, capfd: pytest.CaptureFixture[str], address: str) -> None:
    command = [executable("vhost-user-rng"), f"--metrics={address}"]
    with listening(command, tmp_path / "rng.sock", cwd=str(tmp_path)) as program:
        row = report(capfd, program.pid)
        if address.startswith("unix:"):
            assert (row["rates"], row["fault"]) == ({"requests": 0, "read": 0, "written": 0}, "")
        else:  # whose port nobody knows
            assert (row["rates"], row["fault"]) == (None, f"--metrics={address}: Connection refused")


def test_nothing_runs(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "running", lambda _: [])
    assert ctl.main(["status"]) == 0
    assert capfd.readouterr().out == f"none of these runs here: {', '.join(PROGRAMS)}\n"
    assert ctl.main(["status", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"programs": []}


def test_what_may_not_be_seen_is_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Process(1, "vhost-user-blk", ("--fd=3",), "libvirt-qemu", 7200.0)
    monkeypatch.setattr(status, "running", lambda _: [other])
    monkeypatch.setattr(status, "fds", _denied)
    assert ctl.main(["status"]) == 0
    line = capfd.readouterr().out.splitlines()[1]
    assert [cell.strip() for cell in line.split("  ") if cell.strip()] == [
        *("vhost-user-blk", "1", "libvirt-qemu", "2 h"),
        *("not visible to you", "not visible to you"),
    ]


def _denied(_: int) -> dict[int, int]:
    raise PermissionError


@pytest.mark.parametrize(
    ("front_ends", "shown"),
    [
        (None, "not visible to you"),
        ((), "nobody"),
        ((FrontEnd(pid=7, program="qemu"),), "qemu (7)"),
        ((FrontEnd(pid=None, program=None),), "a process not visible to you"),
    ],
)
def test_front_ends_for_a_person(front_ends: tuple[FrontEnd, ...] | None, shown: str) -> None:
    row = Row(
        program="vhost-user-rng",
        type="rng",
        pid=1,
        user="root",
        seconds=90000.0,
        socket=None,
        listening=False,
        front_ends=front_ends,
        rates=None,
        fault="",
    )
    cells = status._cells(row)
    assert (cells[3], cells[4], cells[5]) == ("1 d", "of its launcher", shown)


def test_a_reader_that_goes() -> None:
    done = subprocess.run(
        f"{executable('vhostctl')} status | true", shell=True, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_disturbs_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It connects to no program's socket, which would be noticed."""
    path = tmp_path / "rng.sock"
    with listening([executable("vhost-user-rng")], path) as program:
        report(capfd, program.pid)
        with closing(connect(path)) as sock:
            assert not is_refused(sock)
        assert "front-end" in program.hear("a front-end has connected")
