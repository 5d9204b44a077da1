"""Finds the running programs of ours by their command lines, which everybody may read."""

import os
import pwd
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

PROC = Path("/proc")
STARTED = 19  # the field of /proc/PID/stat after the name, in ticks since the boot
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """A running program. `arguments` are those after its name, `age` is in seconds."""

    pid: int
    program: str
    arguments: tuple[str, ...]
    user: str
    age: float

    def option(self, *flags: str) -> str | None:
        """The last value of an option, `--name=value`, `-nvalue` or two words; None without one."""
        value = None
        for word, following in pairwise((*self.arguments, "")):
            for flag in flags:
                head = f"{flag}=" if flag.startswith("--") else flag
                if word == flag:
                    value = following
                elif word.startswith(head):
                    value = word.removeprefix(head)
        return value

    def path(self, value: str) -> str:
        """A path of the command line as seen from elsewhere, if the program's folder may be seen."""
        with suppress(OSError):
            return os.path.join(os.readlink(PROC / str(self.pid) / "cwd"), value)
        return value


def running(programs: Mapping[str, str]) -> list[Process]:
    """All running programs. `programs` has their names, each with the package that is the same program."""
    found = []
    for pid in pids():
        with suppress(OSError):  # it has ended meanwhile
            words = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")[:-1]
            if named := program_of([os.fsdecode(word) for word in words], programs):
                found.append(Process(pid, named[0], tuple(named[1]), _user(pid), _age(pid)))
    return found


def pids() -> Iterator[int]:
    """All processes, in order."""
    return iter(sorted(int(entry) for entry in os.listdir(PROC) if entry.isdecimal()))


def program_of(words: Sequence[str], programs: Mapping[str, str]) -> tuple[str, Sequence[str]] | None:
    """The program of a command line of Python, and its arguments; None if it is none of these programs.

    QEMU has programs of the same names, which are not started by Python.
    """
    if not words or not os.path.basename(words[0]).startswith("python"):
        return None
    for index, word in enumerate(words[1:], 1):
        if word == "-m":
            packages = {package: name for name, package in programs.items()}
            name = packages.get(words[index + 1], "") if index + 1 < len(words) else ""
            return (name, words[index + 2 :]) if name else None
        if not word.startswith("-"):
            name = os.path.basename(word)
            return (name, words[index + 1 :]) if name in programs else None
    return None


def _user(pid: int) -> str:
    uid = (PROC / str(pid)).stat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # such as a systemd service's dynamic user, in a container
        return str(uid)


def _age(pid: int) -> float:
    fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[STARTED]) / TICKS)
