"""Asks programs for their capabilities as libvirt does, and says what libvirt makes of the answers.

The answers are also checked against QEMU's conventions for back-end programs.

libvirt waits for a program without a limit; this command gives up after 10 seconds.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from vhostd.ctl.conventions import deviations
from vhostd.ctl.libvirt.answer import Answer, ask
from vhostd.ctl.libvirt.discovery import LAUNCHED, TYPES, State
from vhostd.ctl.libvirt.host import has_render_node, json_dialect
from vhostd.ctl.libvirt.json_text import NotJson, read_as_libvirt, word
from vhostd.ctl.libvirt.judgement import Judgement, judge
from vhostd.ctl.output import add_json, printable, show, show_json
from vhostd.errors import SetupError

ERRORS_SHOWN = 10  # lines of a program's stderr, at most


class Probe(BaseModel):
    """One program. `state` is libvirt's decision on it, or null if libvirt starts no programs of its type.

    `faults` are its deviations from the conventions, `errors` its lines on stderr.
    """

    binary: str
    type: str | None
    features: tuple[str, ...]
    seconds: float
    state: State | None
    reason: str
    faults: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def is_well(self) -> bool:
        """Whether the program has no fault."""
        return not self.faults and self.state in (None, State.USED)


class Report(BaseModel):
    """All programs that were asked."""

    programs: tuple[Probe, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("binaries", metavar="BINARY", nargs="+", help="a program, by its path or its name")
    parser.add_argument("--type", metavar="TYPE", choices=TYPES, help="what its description says that it is")
    add_json(parser, Report)


def run(options: argparse.Namespace) -> int:
    """Prints the programs' answers; raises SetupError if a program has a fault."""
    report = Report(programs=tuple(probe(binary, options.type) for binary in options.binaries))
    if options.json:
        show_json(report)
    else:
        show(line for each in report.programs for line in lines(each))
    if bad := [each.binary for each in report.programs if not each.is_well]:
        raise SetupError(f"not as it should be: {', '.join(bad)}")
    return 0


def probe(binary: str, described: str | None = None) -> Probe:
    """Asks one program. `described` is its type in a description; by default the type that it prints."""
    answer = ask(os.path.abspath(binary) if "/" in binary else binary)
    kind, features = _type_and_features(answer)
    taken = described or kind
    judgement = None
    if taken in LAUNCHED:
        judgement = judge(taken, answer, render_node=has_render_node(), dialect=json_dialect())
    if not taken:
        judgement = Judgement(State.SKIPPED, answer.fault or answer.excess or "it does not tell its type")
    return Probe(
        binary=printable(binary),
        type=printable(taken) if taken else None,
        features=tuple(map(printable, features)),
        seconds=round(answer.seconds, 3),
        state=judgement.state if judgement else None,
        reason=printable(judgement.reason) if judgement else "it starts no programs of this type",
        faults=tuple(map(printable, deviations(answer, described or ""))),
        errors=tuple(map(printable, answer.errors.decode(errors="replace").splitlines()[:ERRORS_SHOWN])),
    )


def lines(probe: Probe) -> Iterator[str]:
    """The findings for a person."""
    features = f"features: {', '.join(probe.features)}" if probe.features else "no features"
    yield f"{probe.binary}: {probe.type or 'of no type'}, {features}, {probe.seconds * 1000:.0f} ms"
    if probe.state is None:
        yield f"  libvirt: {probe.reason}"
    else:
        yield f"  libvirt: {probe.state}{f': {probe.reason}' if probe.reason else ''}"
    for fault in probe.faults:
        yield f"  fault: {fault}"
    for line in probe.errors:
        yield f"  stderr: {line}"


def _type_and_features(answer: Answer) -> tuple[str | None, list[str]]:
    """The type and the features that a program prints, as far as it prints them."""
    try:
        document: Any = read_as_libvirt(answer.output)
    except NotJson:
        return None, []
    members = document if isinstance(document, dict) else {}
    features = members.get("features")
    return word(members.get("type")), [
        each for each in (features if isinstance(features, list) else []) if isinstance(each, str)
    ]
