"""`vhostctl run` with the real programs, and a script in place of QEMU."""

import json
import os
import select
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.ctl.programs import python_script
from tests.programs import Program, executable

# It tells what it was started with in one line, and then does as it is told.
FAKE = """
import json, os, signal, sys
if "--version" in sys.argv:
    print("QEMU emulator version 10.0.2")
    raise SystemExit
PREPARE
print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:]}), flush=True)
BODY
"""
WAIT = "signal.pause()"
END_WITH_5 = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))"  # to prepare for


class Run:
    """A running `vhostctl run` whose QEMU has started."""

    def __init__(self, program: Program) -> None:
        self.program = program
        assert program.process.stdout is not None
        told = json.loads(program.process.stdout.readline())
        self.qemu: int = told["pid"]
        self.arguments: list[str] = told["arguments"]

    def socket(self, name: str) -> Path:
        """Where QEMU connects to a device."""
        path = next(each for each in self.arguments if f"/{name}.sock" in each)
        return Path(path.partition("path=")[2].partition(",")[0])

    def pid_of(self, program: str) -> int:
        """A program that was started; the newest of this name."""
        return max(pid for pid in children(self.program.pid) if f"/{program} --fd=" in command_line(pid))


@contextmanager
def launched(
    folder: Path, *asked: str, body: str = WAIT, prepare: str = "", env: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Runs these devices with a script of Python as QEMU."""
    with Program(
        command(folder, *asked, body=body, prepare=prepare),
        stdout=subprocess.PIPE,
        cwd=str(folder),
        env=environment(folder, env),
    ) as program:
        yield Run(program)


def command(folder: Path, *asked: str, body: str = WAIT, prepare: str = "") -> list[str]:
    """The command line of `vhostctl run` with these devices."""
    qemu = python_script(
        folder / "qemu-system-x86_64", FAKE.replace("BODY", body).replace("PREPARE", prepare)
    )
    return [executable("vhostctl"), "run", *asked, "--", str(qemu)]


def environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables with which nothing is made outside of the folder."""
    return {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": "", **(more or {})}


def children(parent: int) -> list[int]:
    """The running children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> str:
    """A process's command line."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class Watched:
    """Processes whose end can be waited for, though they are not ours."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._fds = [os.pidfd_open(pid) for pid in pids]

    def wait(self, patience: float) -> bool:
        """Whether all have ended in time."""
        try:
            return all(_ended(fd, patience) for fd in self._fds)
        finally:
            for fd in self._fds:
                os.close(fd)


def _ended(fd: int, patience: float) -> bool:
    return bool(select.select([fd], [], [], patience)[0])
