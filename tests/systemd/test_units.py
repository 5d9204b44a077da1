"""What systemd's own tools say of the units."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.systemd.units import PROGRAMS, UNITS, install

# Exposure times ten that systemd-analyze may find at most, of 100: where devices are needed, a little more.
LIMITS = {
    "vhost-user-rng": 4,
    "vhost-user-blk": 4,
    "vhost-user-gpu": 4,
    "vhost-user-input": 6,
    "vhost-user-console": 4,
}
TARGETS = ("sysinit", "basic", "sockets", "shutdown")

PROGRAM = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units, and nothing else of this machine's but targets that they refer to."""
    install(tmp_path)
    (tmp_path / "others").mkdir()
    for target in TARGETS:
        (tmp_path / "others" / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    return tmp_path


def analyze(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        env=os.environ | {"SYSTEMD_UNIT_PATH": str(folder / "others")},
        capture_output=True,
        text=True,
    )


def test_each_program_has_a_socket_and_a_service() -> None:
    expected = {f"{program}@.{kind}" for program in PROGRAMS for kind in ("socket", "service")}
    assert {unit.name for unit in UNITS.iterdir()} == expected


@PROGRAM
def test_systemd_finds_nothing_to_complain_of(folder: Path, program: str) -> None:
    done = analyze(folder, "verify", "--man=no", f"./{program}@.service", f"./{program}@.socket")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_would_complain(folder: Path) -> None:
    """It does so on stderr only, with status 0."""
    unit = folder / "vhost-user-rng@.service"
    unit.write_text(unit.read_text().replace("PrivateIPC=", "PrivateICP="))
    assert "PrivateICP" in analyze(folder, "verify", "--man=no", f"./{unit.name}").stderr


@PROGRAM
def test_the_sandbox_is_tight(folder: Path, program: str) -> None:
    limit = f"--threshold={LIMITS[program]}"
    done = analyze(folder, "security", "--offline=true", "--no-pager", limit, f"./{program}@.service")
    assert done.returncode == 0, done.stdout


@PROGRAM
def test_the_watchdog_and_the_group_are_said(program: str) -> None:
    service = (UNITS / f"{program}@.service").read_text()
    assert re.search(r"^WatchdogSec=\d", service, re.MULTILINE)
    assert f"ExecStart=/usr/bin/{program} $OPTIONS\n" in service
    assert "SocketMode=0660\nSocketGroup=kvm\n" in (UNITS / f"{program}@.socket").read_text()
