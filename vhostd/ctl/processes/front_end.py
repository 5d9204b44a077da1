"""Where a program listens, and who is connected to it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vhostd.ctl.processes.found import PROC, Process
from vhostd.ctl.processes.sockets import UnixSocket

FIRST_PASSED = 3  # the fd that systemd passes


@dataclass(frozen=True)
class Place:
    """A program's socket. `listening` and `peers` are None where they may not be seen.

    `peers` are the inodes of the other ends of the program's connections.
    """

    path: str | None
    listening: bool | None
    peers: tuple[int, ...] | None


def place(process: Process, fds: Mapping[int, int] | None, sockets: Mapping[int, UnixSocket]) -> Place:
    """Finds a program's socket among all sockets. `fds` are the program's sockets, None if unseen."""
    path = process.option("--socket-path", "-s")
    if path is not None:
        return Place(process.path(path), True, _peers(path, fds, sockets))
    if fds is None:
        return Place(None, None, None)
    number = process.option("--fd", "-f") or ""
    used = sockets.get(fds.get(int(number) if number.isdecimal() else FIRST_PASSED, 0))
    if used is None:
        return Place(None, None, None)
    if used.listening:
        return Place(used.name or None, True, _peers(used.name, fds, sockets))
    return Place(used.name or None, False, (used.peer,))


def _peers(
    name: str, fds: Mapping[int, int] | None, sockets: Mapping[int, UnixSocket]
) -> tuple[int, ...] | None:
    """The other ends of the connections to a socket of this name."""
    seen = sockets.values() if fds is None else [sockets[each] for each in fds.values() if each in sockets]
    named = [each for each in seen if each.name == name]
    if not any(each.listening for each in named):  # it is of another network namespace
        return None
    return tuple(each.peer for each in named if not each.listening)


def name_of(pid: int) -> str:
    """The name of a process's program, by its command line; empty if it has ended."""
    try:
        first = (PROC / str(pid) / "cmdline").read_bytes().partition(b"\0")[0]
    except OSError:
        return ""
    return os.path.basename(os.fsdecode(first))
