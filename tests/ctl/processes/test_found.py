"""Programs of ours among all that runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PATIENCE
from vhostd.ctl.processes.found import Process, program_of, running

PROGRAMS = {"vhost-user-rng": "vhost_user_rng", "vhost-user-gpu": "vhost_user_gpu"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["/usr/bin/python3", "/usr/bin/vhost-user-rng", "--fd=3"], ("vhost-user-rng", ["--fd=3"])),
        (["python3.11", "-sP", "/opt/v/bin/vhost-user-gpu"], ("vhost-user-gpu", [])),
        (["python", "-m", "vhost_user_rng", "--fd", "3"], ("vhost-user-rng", ["--fd", "3"])),
        (["/usr/libexec/vhost-user-gpu", "--fd=3"], None),  # QEMU's own
        (["vim", "/usr/bin/vhost-user-rng"], None),
        (["python3", "x.py", "/usr/bin/vhost-user-rng"], None),
        (["python3", "-m"], None),
        (["python3", "-m", "http.server"], None),
        (["python3", "-c", "pass", "vhost-user-rng"], None),
        (["python3"], None),
        ([], None),
    ],
)
def test_by_its_command_line(words: list[str], found: tuple[str, list[str]] | None) -> None:
    assert program_of(words, PROGRAMS) == found


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--fd=3",), "3"),
        (("--fd", "3"), "3"),
        (("--fd=3", "--fd=4"), "4"),
        (("--fdx=3",), None),
        (("-f", "3"), "3"),
        (("-f3",), "3"),
        (("--fd",), ""),
        ((), None),
    ],
)
def test_an_option_s_value(arguments: tuple[str, ...], value: str | None) -> None:
    assert Process(1, "vhost-user-rng", arguments, "root", 0.0).option("--fd", "-f") == value


def test_one_that_runs(tmp_path: Path) -> None:
    program = tmp_path / "vhost-user-rng"
    program.write_text("input('here')")
    pipe = subprocess.PIPE
    command = [sys.executable, "-u", str(program), "--socket-path=a"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"here"
        (found,) = [each for each in running(PROGRAMS) if each.pid == process.pid]
        assert found.arguments == ("--socket-path=a",)
        assert found.path("a") == str(tmp_path / "a")
        assert 0 <= found.age < PATIENCE
        assert found.user == Path(f"/proc/{os.getpid()}").owner()
        process.communicate(b"\n")
    assert found.path("a") == "a"
