"""What the system tells of the back-end's process: its fds and its memory."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from vhostd.conformance.verdict import skip
from vhostd.wire.fds import Fd

T = TypeVar("T")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Process:
    """A process of this user. Skips the check if the system tells nothing of it, since it is another's."""

    def __init__(self, pid: int) -> None:
        self._path = Path(f"/proc/{pid}")

    def fds(self) -> int:
        """How many fds it has open."""
        return len(self._look(lambda: os.listdir(self._path / "fd")))

    def holds(self, file: Fd) -> bool:
        """Whether it has an fd of this file, which has no name."""
        wanted = _identity(os.fstat(file.fileno()))
        return wanted in self._look(self._files)

    def maps(self, file: Fd) -> bool:
        """Whether it has mapped this file."""
        device, inode = _identity(os.fstat(file.fileno()))
        wanted = [f"{os.major(device):02x}:{os.minor(device):02x}", str(inode)]
        lines = self._look((self._path / "maps").read_text).splitlines()
        return any(line.split()[3:5] == wanted for line in lines)

    def resident(self) -> int:
        """The bytes of memory that are its own: no file has them, and nobody else."""
        pages = self._look((self._path / "statm").read_text).split()
        return (int(pages[1]) - int(pages[2])) * PAGE

    def _files(self) -> set[tuple[int, int]]:
        found = set()
        for entry in (self._path / "fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                found.add(_identity(entry.stat()))
        return found

    def _look(self, what: Callable[[], T]) -> T:
        try:
            return what()
        except PermissionError:
            skip("its process is another user's")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
