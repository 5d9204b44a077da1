"""What is asked of a program is printed whole, or one line says why it is not."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.programs import PATIENCE, environment, executable
from vhostd.program.stdout import say

PROGRAMS = ("vhost-user-rng", "vhost-user-blk", "vhost-user-gpu", "vhost-user-input", "vhost-user-console")
ASKED = ("--print-capabilities", "--version", "--help")
# Runs a command where an empty folder hides /dev.
BARE = 'mount --bind "$0" /dev; exec "$@"'

ALL = [(program, asked) for program in PROGRAMS for asked in ASKED]
ALL += [("vhostctl", asked) for asked in ASKED[1:]]

everything = pytest.mark.parametrize(("program", "asked"), ALL)


def run(shell: str, *words: str) -> tuple[int, str, str]:
    """The status, stdout and stderr of a program that a shell runs."""
    done = subprocess.run(
        ["sh", "-c", shell, *words], capture_output=True, text=True, env=environment(), timeout=60
    )
    return done.returncode, done.stdout, done.stderr


@everything
def test_a_full_stdout(program: str, asked: str) -> None:
    expected = f"{program}: error: stdout: No space left on device\n"
    assert run('"$0" "$@" >/dev/full', executable(program), asked) == (1, "", expected)


@everything
def test_a_closed_stdout(program: str, asked: str) -> None:
    expected = f"{program}: error: stdout is closed\n"
    assert run('"$0" "$@" >&-', executable(program), asked) == (1, "", expected)


@pytest.mark.parametrize("asked", ASKED)
def test_with_stderr_closed_as_well(asked: str) -> None:
    assert run('"$0" "$@" >&- 2>&-', executable("vhost-user-rng"), asked) == (1, "", "")


@everything
def test_nobody_needs_to_read_on(program: str, asked: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as unread:
        done = subprocess.run(
            [executable(program), asked], stdout=unread, stderr=subprocess.PIPE, env=environment()
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_non_blocking_stdout_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "more than a pipe holds\n" * 100_000
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def write() -> None:
        with open(writer, "w") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            say(text)

    with open(reader) as pipe, ThreadPoolExecutor() as executor:
        writing = executor.submit(write)
        assert pipe.read() == text
        writing.result(PATIENCE)


@everything
def test_without_dev_null(program: str, asked: str, tmp_path: Path) -> None:
    command = ["unshare", "--mount", "sh", "-euc", BARE, str(tmp_path), executable(program), asked]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_closed_stdin_without_dev_null(tmp_path: Path) -> None:
    command = ["unshare", "--mount", "sh", "-euc", f"exec <&-; {BARE}", str(tmp_path)]
    command += [executable("vhost-user-rng"), "--fd=9"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    expected = "vhost-user-rng: error: /dev/null: No such file or directory, and fd 0 is closed\n"
    assert (done.returncode, done.stderr) == (1, expected)
