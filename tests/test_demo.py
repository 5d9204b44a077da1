"""The demo, and what it installs: as a person at a terminal meets them."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import environment

CHECKOUT = Path(__file__).parents[1]
DEMO = CHECKOUT / "contrib/demo.sh"
SETUP = CHECKOUT / "contrib/setup.sh"
PATIENCE = 120.0


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, with nobody at a terminal."""
    return subprocess.run(
        command,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def without_home() -> list[str]:
    return ["env", "--unset=HOME", "--unset=XDG_CACHE_HOME"]


def test_help() -> None:
    done = run(*without_home(), DEMO, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--yes" in done.stdout


@pytest.mark.parametrize(("script", "known"), [(DEMO, "--yes, --help"), (SETUP, "--ask, demo")])
def test_an_argument_that_it_does_not_know(script: Path, known: str) -> None:
    done = run(*without_home(), script, "--frobnicate")
    assert done.returncode in (1, 2)
    assert "'--frobnicate'" in done.stderr
    assert known in done.stderr


def test_nothing_is_installed_where_nobody_can_be_asked(tmp_path: Path) -> None:
    """A cache with no kernel is what is missing here."""
    done = run(DEMO, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "fetch a kernel" in done.stdout
    assert "--yes" in done.stderr
    assert not [*tmp_path.glob("vhostd/*")]


@pytest.mark.parametrize("answer", [b"n\n", b"\n", b"\x04"])
def test_nothing_is_installed_unless_the_answer_is_yes(tmp_path: Path, answer: bytes) -> None:
    ours, theirs = pty.openpty()
    os.write(ours, answer)
    done = subprocess.run(
        [DEMO],
        env=environment({"XDG_CACHE_HOME": str(tmp_path)}),
        stdin=theirs,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 1
    assert "Nothing is installed." in done.stderr
    assert not [*tmp_path.glob("vhostd/*")]


@pytest.mark.guest
def test_it_shows_a_file_that_the_guest_has_made() -> None:
    done = run(sys.executable, "-m", "contrib.demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "read on the host from disk.img: 'Written by Linux" in done.stdout
    assert "together they read 'Hello from vhostd\\n'" in done.stdout
    assert "demo: done:" in done.stdout


@pytest.mark.guest
def test_ctrl_c_ends_it_and_what_it_has_started(tmp_path: Path) -> None:
    """A terminal sends SIGINT to all of them."""
    with subprocess.Popen(
        [sys.executable, "-m", "contrib.demo"],
        env=environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        while "booting" not in demo.stdout.readline():
            pass
        os.killpg(demo.pid, signal.SIGINT)
        _, errors = demo.communicate(timeout=PATIENCE)
    assert (demo.returncode, errors) == (128 + signal.SIGINT, "\ndemo: interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(demo.pid, 0)
    assert not [*tmp_path.iterdir()]
