"""Shows the running programs of ours: who is connected, and how much they do.

Programs with --metrics are asked twice, a second apart, for their rates. What another user's processes have
open only root may see.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module

from pydantic import BaseModel

from vhostd.ctl.installation.programs import CTL, entries
from vhostd.ctl.output import add_json, printable, show, show_json
from vhostd.ctl.processes.found import Process, running
from vhostd.ctl.processes.front_end import Place, name_of, place
from vhostd.ctl.processes.rates import Counts, Rates, counts, rates
from vhostd.ctl.processes.sockets import UnixSocket, fds, owners, unix_sockets
from vhostd.program.metrics.address import parse_address

INTERVAL = 1.0  # seconds between two counts
UNSEEN = "not visible to you"
HEAD = ("PROGRAM", "PID", "USER", "UP", "SOCKET", "FRONT-END", "RATES")
UNITS = (("d", 86400), ("h", 3600), ("min", 60))


class FrontEnd(BaseModel):
    """A process that is connected. Both are null if it may not be seen."""

    pid: int | None
    program: str | None


class Row(BaseModel):
    """A program. `socket`, `listening` and `front_ends` are null if they may not be seen.

    `rates` are null without --metrics, or with a `fault`.
    """

    program: str
    type: str
    pid: int
    user: str
    seconds: float
    socket: str | None
    listening: bool | None
    front_ends: tuple[FrontEnd, ...] | None
    rates: Rates | None
    fault: str


class Report(BaseModel):
    """All programs that run."""

    programs: tuple[Row, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    add_json(parser, Report)


def run(options: argparse.Namespace) -> int:
    """Prints a line for each program."""
    packages = {entry.name: entry.module for entry in entries() if entry.name != CTL}
    report = Report(programs=tuple(_rows(running(packages), packages)))
    if options.json:
        show_json(report)
    elif report.programs:
        show(_table([HEAD, *map(_cells, report.programs)]))
    else:
        show([f"none of these runs here: {', '.join(packages)}"])
    return 0


def _rows(processes: Sequence[Process], packages: dict[str, str]) -> Iterator[Row]:
    places = _places(processes)
    seen = owners({peer for each in places for peer in each.peers or () if peer})
    for process, where, (rate, fault) in zip(processes, places, _rates(processes), strict=True):
        peers = None if where.peers is None else tuple(_front_end(seen.get(peer)) for peer in where.peers)
        yield Row(
            program=process.program,
            type=import_module(packages[process.program]).MANIFEST.type,
            pid=process.pid,
            user=process.user,
            seconds=round(process.age, 1),
            socket=None if where.path is None else printable(where.path),
            listening=where.listening,
            front_ends=peers,
            rates=rate,
            fault=printable(fault),
        )


def _places(processes: Sequence[Process]) -> list[Place]:
    sockets: dict[int, UnixSocket] = {}
    with suppress(OSError):  # of a kernel without unix_diag, where no connection can be seen
        sockets = unix_sockets()
    return [place(process, _fds(process.pid), sockets) for process in processes]


def _fds(pid: int) -> dict[int, int] | None:
    try:
        return fds(pid)
    except OSError:
        return None


def _front_end(pid: int | None) -> FrontEnd:
    return FrontEnd(pid=pid, program=None if pid is None else printable(name_of(pid)))


def _rates(processes: Sequence[Process]) -> list[tuple[Rates | None, str]]:
    """The rates of those that have metrics, and why they are missing."""
    first = [_count(process) for process in processes]
    if any(isinstance(each, Counts) for each in first):
        time.sleep(INTERVAL)
    found: list[tuple[Rates | None, str]] = []
    for process, before in zip(processes, first, strict=True):
        after = _count(process) if isinstance(before, Counts) else before
        if isinstance(before, Counts) and isinstance(after, Counts):
            found.append((rates(before, after), ""))
        else:
            found.append((None, str(after)))
    return found


def _count(process: Process) -> Counts | str:
    """The counts of a program, or why there are none; empty without --metrics."""
    text = process.option("--metrics")
    if text is None:
        return ""
    try:
        address = parse_address(text)
        if address.path:
            address = address._replace(path=process.path(address.path))
        return counts(address)
    except (OSError, ValueError) as error:
        return f"--metrics={text}: {getattr(error, 'strerror', None) or error}"


def _cells(row: Row) -> tuple[str, ...]:
    socket = row.socket or (UNSEEN if row.listening is None else "of its launcher")
    named = None if row.front_ends is None else ", ".join(map(_named, row.front_ends))
    front_ends = UNSEEN if named is None else named or "nobody"
    rate = row.fault
    if row.rates is not None:
        read, written = _bytes(row.rates.read), _bytes(row.rates.written)
        rate = f"{row.rates.requests:.0f} requests/s, {read}/s read, {written}/s written"
    return (row.program, str(row.pid), row.user, _age(row.seconds), socket, front_ends, rate)


def _named(front_end: FrontEnd) -> str:
    return f"{front_end.program} ({front_end.pid})" if front_end.pid else f"a process {UNSEEN}"


def _age(seconds: float) -> str:
    for unit, size in UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
