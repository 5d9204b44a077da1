"""A host for libvirt within this machine: processes and mounts of its own, all gone at its end.

It sees the machine's files, but its /run, /dev and /etc, and libvirt's directories, are its own: see the
script `init`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.guest.kernel import cache_directory
from tests.guest.machine import CHECKOUT
from tests.programs import PATIENCE

INIT = Path(__file__).with_name("init")
NAMESPACES = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child")
# What libvirt's programs, which are not root, run or read; all of it may lie in root's home.
PUBLIC = (CHECKOUT, sys.prefix, sys.base_prefix, cache_directory())
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class HostProblem(Exception):
    """A command failed in the host, or there can be no such host here."""


class Process:
    """A process of the host; `proc` is its directory in the host's /proc."""

    def __init__(self, pid: int, proc: Path) -> None:
        self.pid = pid
        self.proc = proc

    @property
    def alive(self) -> bool:
        """Whether it runs, or is not reaped yet."""
        return self.proc.exists()

    def argv(self) -> list[str]:
        """Its command line; empty if it has ended."""
        try:
            return (self.proc / "cmdline").read_text().split("\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            return []

    def environment(self) -> dict[str, str]:
        """The environment that it was started with."""
        entries = (self.proc / "environ").read_text().split("\0")
        return dict(entry.split("=", 1) for entry in entries if entry)

    def fds(self) -> dict[int, str]:
        """Its open fds and what they are."""
        return {int(entry.name): os.readlink(entry) for entry in (self.proc / "fd").iterdir()}

    def status(self, field: str) -> str:
        """A field of its /proc status."""
        lines = (self.proc / "status").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))

    def send(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        directory = os.open(self.proc, os.O_RDONLY | os.O_DIRECTORY)
        try:
            signal.pidfd_send_signal(directory, number)
        finally:
            os.close(directory)

    def wait_gone(self) -> None:
        """Returns when it has ended and is reaped."""
        wait_until(lambda: not self.alive)


class Host:
    """Runs until `close`, or the end of `with`; what runs in it ends then too. Raises HostProblem."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["unshare", *NAMESPACES, str(INIT), *map(str, PUBLIC)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout
        self._first = self._process.stdout.readline().strip()
        if not self._first:
            raise HostProblem(self._process.communicate()[1].strip())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything in it."""
        self._process.communicate()

    def path(self, path: str | Path) -> Path:
        """Where a file of the host is for the tests."""
        return Path(f"/proc/{self._first}/root") / str(path).lstrip("/")

    def run(self, *command: str | Path) -> bytes:
        """Runs a command in the host, as a service manager does; what it prints. Raises HostProblem."""
        namespaces = [f"--target={self._first}", "--mount", "--pid"]
        done = subprocess.run(
            ["nsenter", *namespaces, "env", "-i", f"PATH={PATH}", *map(str, command)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=6 * PATIENCE,
            cwd="/",
        )
        if done.returncode:
            raise HostProblem(f"{' '.join(map(str, command))}: {done.stderr.decode().strip()}")
        return done.stdout

    def start(self, name: str, *command: str | Path) -> Process:
        """Starts a command in the background; what it says goes to /run/NAME.log."""
        pid_file = f"/run/{name}.pid"
        self.path(pid_file).unlink(missing_ok=True)
        script = f'echo $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; exec "$@" >>/run/{name}.log 2>&1'
        self.run("setsid", "--fork", "sh", "-c", script, "sh", *command)
        wait_until(self.path(pid_file).exists, name)
        return self.process(pid_file)

    def process(self, pid_file: str) -> Process:
        """The process that a file of the host names."""
        pid = int(self.path(pid_file).read_text())
        return Process(pid, self.path(f"/proc/{pid}"))

    def processes(self) -> list[Process]:
        """All of them, also such as are about to end."""
        return [Process(int(path.name), path) for path in self.path("/proc").glob("[0-9]*")]


def wait_until(reached: Callable[[], bool], what: str = "it") -> None:
    """Looks again and again until `reached`; for what nobody gives an event for."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, f"{what} never came"
        os.sched_yield()
