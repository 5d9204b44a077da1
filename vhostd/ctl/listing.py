"""Shows the descriptions that libvirt reads, in its order, and what it makes of each.

It asks the programs that libvirt would ask for their capabilities, and says why libvirt would not use others.

For each type libvirt uses one program, the `used` one. A `spare` program comes after it. If a program is
`skipped`, libvirt tries the next one; if a program `fails`, the domain does not start. libvirt starts no
programs of an `unused` type. An empty file is a `mask`: it hides the files of its name in earlier folders,
which are `masked`. A file may also be `replaced` by a file of its name in a later folder, or `ignored`. One
file that `breaks` libvirt's discovery keeps libvirt from using any program: correct it, move it away, or, if
it belongs to a package, hide it by a mask in /etc. With --root no program is asked, and those that libvirt
would ask are `candidate`.
"""

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from vhostd.ctl.conventions import deviations
from vhostd.ctl.libvirt.answer import Answer, ask
from vhostd.ctl.libvirt.discovery import LAUNCHED, TYPES, Entry, State, discover, is_broken
from vhostd.ctl.libvirt.folders import libvirt_folders, read_folder
from vhostd.ctl.libvirt.hazards import hazards
from vhostd.ctl.libvirt.host import has_render_node, json_dialect
from vhostd.ctl.libvirt.image import TOP, real
from vhostd.ctl.libvirt.judgement import Judgement, choose, judge
from vhostd.ctl.output import add_json, printable, show, show_json
from vhostd.errors import SetupError, UsageError


class Row(BaseModel):
    """A file, or a folder that cannot be read. `seconds` is the time that the program took to answer."""

    path: str
    state: State
    reason: str = ""
    type: str | None = None
    binary: str | None = None
    features: tuple[str, ...] | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


class Report(BaseModel):
    """All rows. `works` unless a file breaks the discovery of the libvirt of this connection."""

    works: bool
    connection: str
    folders: tuple[str, ...]
    entries: tuple[Row, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", metavar="TYPE", choices=TYPES, help="show descriptions of this type alone")
    parser.add_argument("--probe", action="store_true", help="also ask programs that libvirt does not ask")
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="look below DIR, and run none of its programs"
    )
    add_json(parser, Report)


def run(options: argparse.Namespace) -> int:
    """Prints the descriptions; raises SetupError if libvirt's discovery is broken."""
    if options.probe and options.root is not None:
        raise UsageError("--probe and --root do not go together: nothing is run below another root")
    privileged = options.root is not None or os.geteuid() == 0
    root = TOP if options.root is None else options.root.absolute()
    if not root.is_dir():
        raise SetupError(f"{root} is no folder")
    folders = libvirt_folders(privileged=privileged)
    entries = discover([read_folder(folder, root) for folder in folders], json_dialect(root))
    if options.root is None:
        rows = live_rows(entries, everything=options.probe, privileged=privileged)
    else:
        rows = [still_row(entry, root) for entry in entries]
    shown = [row for row in rows if not options.type or row.type == options.type or row.state == State.BREAKS]
    report = Report(
        works=not is_broken(entries),
        connection="qemu:///system" if privileged else "qemu:///session",
        folders=tuple(map(printable, folders)),
        entries=tuple(shown),
    )
    if options.json:
        show_json(report)
    else:
        show(lines(report))
    if not report.works:
        raise SetupError(breakage(entries))
    return 0


def live_rows(entries: list[Entry], *, everything: bool, privileged: bool) -> list[Row]:
    """The rows, with the programs' answers. Asks the programs that libvirt asks, or with `everything` all."""
    asked = [entry for entry in entries if entry.state == State.CANDIDATE]
    if everything:
        asked += [entry for entry in entries if entry.state == State.UNUSED and entry.binary]
    answers = {entry: ask(entry.binary) for entry in asked}
    verdicts = judgements(answers, render_node=has_render_node())
    return [
        _row(
            entry,
            verdicts.get(entry),
            seconds=answers[entry].seconds if entry in answers else None,
            warnings=_warnings(entry, answers.get(entry), verdicts.get(entry), privileged=privileged),
        )
        for entry in entries
    ]


def judgements(answers: dict[Entry, Answer], *, render_node: bool) -> dict[Entry, Judgement]:
    """libvirt's decisions on the programs that it asks."""
    candidates = [entry for entry in answers if entry.state == State.CANDIDATE]
    dialect = json_dialect()
    return choose(
        {
            entry: judge(entry.type, answers[entry], render_node=render_node, dialect=dialect)
            for entry in candidates
        }
    )


def still_row(entry: Entry, root: Path) -> Row:
    """A row for a description in another root: all that is known without running the program."""
    if entry.state != State.CANDIDATE:
        return _row(entry, None, warnings=entry.notes)
    if fault := _program_fault(root, entry.binary):
        judgement = Judgement(State.FAILS if entry.type == "fs" else State.SKIPPED, fault)
    else:
        judgement = Judgement(State.CANDIDATE, "what libvirt makes of it depends on what it answers there")
    return _row(entry, judgement, warnings=entry.notes)


def _program_fault(root: Path, name: str | None) -> str:
    if name is None:
        return "it names no program"
    if not name.startswith("/"):
        return ""
    binary = Path(name)
    try:
        place = real(root, binary)
        place.stat()
    except OSError as error:
        return f"{binary}: {error.strerror}"
    return "" if place.is_file() and os.access(place, os.X_OK) else f"{binary} is no program"


def breakage(entries: list[Entry]) -> str:
    """The file that breaks the discovery, and the consequence."""
    first, *others = [entry for entry in entries if entry.state == State.BREAKS]
    more = f" (and {len(others)} more)" if others else ""
    cost = " or ".join(LAUNCHED.values())
    return f"{printable(first.path)}: {printable(first.reason)}{more}: libvirt starts no domain with {cost}"


def lines(report: Report) -> Iterator[str]:
    """The report for a person."""
    yield f"libvirt ({report.connection}) reads {', '.join(report.folders)}"
    if not report.works:
        yield "It stops at the files marked `breaks`, and uses none at all. Without those it would be:"
    if not report.entries:
        yield "no descriptions"
    for row in report.entries:
        yield f"{row.state:<9} {row.type or '-':<7} {row.path}{f' -> {row.binary}' if row.binary else ''}"
        if row.reason:
            yield f"{'':18}{row.reason}"
        if row.features:
            yield f"{'':18}features: {', '.join(row.features)}"
        for warning in row.warnings:
            yield f"{'':18}warning: {warning}"


def _warnings(
    entry: Entry, answer: Answer | None, judgement: Judgement | None, *, privileged: bool
) -> Iterator[str]:
    yield from entry.notes
    if answer and not answer.fault:
        yield from deviations(answer, entry.type)
    if privileged and judgement and judgement.state in (State.USED, State.SPARE):
        yield from hazards(entry)


def _row(
    entry: Entry,
    judgement: Judgement | None,
    *,
    seconds: float | None = None,
    warnings: Iterable[str] = (),
) -> Row:
    state, reason = (judgement.state, judgement.reason) if judgement else (entry.state, entry.reason)
    return Row(
        path=printable(entry.path),
        state=state,
        reason=printable(reason),
        type=entry.type or None,
        binary=None if entry.binary is None else printable(entry.binary),
        features=tuple(map(printable, judgement.features)) if judgement else None,
        seconds=None if seconds is None else round(seconds, 3),
        warnings=tuple(map(printable, warnings)),
    )
