"""What a start loads, and what that leaves in memory: counted, since a test cannot tell how long it takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PROGRAMS, Program, connected, environment, executable, get_features, needed_options
from vhostd.program import process
from vhostd.program.command_line import CommandLine
from vhostd.program.start import start

PROFILED = {"PYTHONPROFILEIMPORTTIME": "1"}
# What costs much and what nobody needs for serving, or only those who ask for it by an option.
ABSENT = {
    *("inspect", "ast", "subprocess", "gettext", "locale", "glob", "textwrap", "tokenize"),
    *("_ssl", "_hashlib", "hashlib", "uuid", "shutil", "lzma", "bz2", "json", "pathlib", "dataclasses"),
    *("systemd", "evdev", "prometheus_client", "pydantic", "jsonschema", "vhostd.frontend", "vhostd.ctl"),
}
PROBED = {"vhostd", "vhostd.errors", "select", "gc"}  # and of vhostd.program what MANIFEST needs
MOST_MODULES = 120  # beside what Python itself and asyncio load
MOST_RESIDENT = 26 << 10  # KiB
MOST_ANONYMOUS = 14 << 10  # KiB, which is each program's own


@pytest.fixture(params=PROGRAMS)
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    return [executable(request.param), *needed_options(request.param, tmp_path)]


def imported(lines: list[str]) -> list[str]:
    """The modules in the lines of -X importtime."""
    return [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]


def imported_by(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment(PROFILED)
    )
    return set(imported(done.stderr.splitlines()))


def test_a_start_loads_what_serving_takes(command: list[str]) -> None:
    with connected(command, env=PROFILED) as (program, sock):
        assert get_features(sock)
        sock.close()
        status, lines = program.ends()
    loaded = set(imported(lines)) - imported_by("-c", "pass")
    assert status == 0
    assert loaded & ABSENT == set()
    assert ("vhostd.ring.uring" in loaded) == ("blk" in command[0])
    assert len(loaded - imported_by("-c", "import asyncio, uvloop")) <= MOST_MODULES


def test_capabilities_load_the_manifest_alone(command: list[str]) -> None:
    package = Path(command[0]).name.replace("-", "_")
    loaded = imported_by(command[0], "--print-capabilities") - imported_by("-c", "pass")
    assert {name for name in loaded if not name.startswith("vhostd.program")} == {*PROBED, package}
    assert not loaded & {"vhostd.program.main", "vhostd.program.options", "vhostd.program.process"}


def test_little_memory_is_used(command: list[str]) -> None:
    with connected(command) as (program, sock):
        assert get_features(sock)
        assert memory(program, "Rss") < MOST_RESIDENT
        assert memory(program, "Anonymous") < MOST_ANONYMOUS


def memory(program: Program, field: str) -> int:
    """KiB, as /proc/PID/smaps_rollup has them."""
    lines = (program.proc / "smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def test_vhostctl_loads_no_event_loop() -> None:
    loaded = imported_by(executable("vhostctl"), "--version")
    assert loaded & {"asyncio", "uvloop", "vhostd.ring"} == set()
    virtio = {name for name in loaded if name.startswith("vhostd.virtio.")}
    assert virtio <= {"vhostd.virtio.vocabulary"}  # the names of devices and of their features


def test_an_interrupt_before_signals_are_held_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "prepare", interrupt)
    assert start(object, CommandLine(["vhost-user-lamp", "--fd=3"]), capabilities="") == 0
