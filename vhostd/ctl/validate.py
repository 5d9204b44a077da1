"""Checks descriptions, and programs' output for --print-capabilities; prints a line for each fault.

By default it is as strict as this project is with its own files. A document that the installed libvirt does
not read is a fault in any case.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vhostd.conformance.schema import Fault, Kind, faults, kind_of
from vhostd.ctl.libvirt.host import json_dialect
from vhostd.ctl.libvirt.json_text import LIMIT, NotJson, read, read_as_libvirt
from vhostd.ctl.output import add_json, printable, show, show_json
from vhostd.errors import SetupError

STDIN = "-"


class Finding(BaseModel):
    """One fault. `place` is a JSONPath, null without a document. `tolerable` if libvirt ignores the fault."""

    place: str | None
    message: str
    tolerable: bool


class Checked(BaseModel):
    """One file. `kind` is null if it is unknown."""

    file: str
    kind: Kind | None
    valid: bool
    faults: tuple[Finding, ...]


class Report(BaseModel):
    """All files that were checked."""

    files: tuple[Checked, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help="a file, or - for what comes from stdin")
    parser.add_argument("--kind", choices=list(map(str, Kind)), help="what the files are; most tell it")
    strictness = parser.add_mutually_exclusive_group()
    strictness.add_argument("--strict", action="store_true", help="every deviation is a fault (the default)")
    strictness.add_argument("--lenient", action="store_true", help="let pass what libvirt does not mind")
    add_json(parser, Report)


def run(options: argparse.Namespace) -> int:
    """Prints the faults; raises SetupError if there are any."""
    kind = Kind(options.kind) if options.kind else None
    report = Report(files=tuple(check_file(file, kind, lenient=options.lenient) for file in options.files))
    if options.json:
        show_json(report)
    else:
        show(line for file in report.files for line in lines(file))
    if bad := [file for file in report.files if not file.valid]:
        harmless = all(fault.tolerable for file in bad for fault in file.faults)
        hint = " (libvirt does not mind: --lenient)" if harmless else ""
        raise SetupError(f"not valid: {', '.join(file.file for file in bad)}{hint}")
    return 0


def lines(checked: Checked) -> list[str]:
    """The faults for a person, a line each."""
    return [
        f"{checked.file}: {f'{checked.kind}, {fault.place}: ' if fault.place else ''}{fault.message}"
        for fault in checked.faults
    ]


def check_file(file: str, kind: Kind | None, *, lenient: bool) -> Checked:
    """Checks a file, or stdin for "-"."""
    try:
        data = _read(file)
    except (OSError, ValueError) as error:
        fault = Fault("", f"it cannot be read: {getattr(error, 'strerror', error)}")
        return _checked(file, kind, [fault])
    return check(file, data, kind, lenient=lenient)


def _read(file: str) -> bytes:
    if file != STDIN:
        with Path(file).open("rb") as opened:
            return opened.read(LIMIT + 1)
    if sys.stdin is None:  # if it was closed
        raise ValueError("stdin is closed")
    return sys.stdin.buffer.read(LIMIT + 1)


def check(file: str, data: bytes, kind: Kind | None, *, lenient: bool) -> Checked:
    """Checks a file of this content. With `lenient`, faults that libvirt ignores are left out."""
    if len(data) > LIMIT:
        return _checked(file, kind, [Fault("", "it is larger than 1 MiB, more than libvirt reads")])
    try:
        document: Any = read_as_libvirt(data, json_dialect())
        if not lenient:
            document = read(data)
    except NotJson as error:
        return _checked(file, kind, [Fault("", f"it is not JSON: {error}")])
    kind = kind or kind_of(document)
    found = faults(document, kind)
    return _checked(file, kind, [fault for fault in found if not (lenient and fault.tolerable)])


def _checked(file: str, kind: Kind | None, found: list[Fault]) -> Checked:
    findings = tuple(
        Finding(
            place=printable(fault.place) or None,
            message=printable(fault.message),
            tolerable=fault.tolerable,
        )
        for fault in found
    )
    return Checked(file=printable(file), kind=kind, valid=not findings, faults=findings)
