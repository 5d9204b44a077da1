"""What counts as a finding, and how it is noticed."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vhostd.conformance.reports import report_in
from vhostd.fuzz.target import Target
from vhostd.host.signals import signal_name

NUMBERS = re.compile(r"0x[0-9a-f]+|\d+|b'.*'")
GROWING = ("fds", "memory")  # kinds that show only when a case is done again and again
LEAK = 16 << 20  # bytes that one case may leave behind
SPINS = "spins"  # the kind of a finding that shows only when nobody is connected
WATCHED = 0.25  # seconds for which a process is watched that should be idle
SPINNING = 0.8  # of these it may use


class Finding(NamedTuple):
    """A fault: its `kind`, by which two of them are the same, and the rest for a person."""

    kind: str
    text: str


def shape(line: str) -> str:
    """What a line of a log has in common with others that were written in the same place."""
    return NUMBERS.sub("#", line)


def reports(lines: Sequence[str]) -> Finding | None:
    """A sanitizer's report, a panic or a traceback among lines of a log."""
    if report := report_in(lines):
        return Finding(f"report {report[0]}", report.string.strip())
    return None


def ended(target: Target, usual: int | None, lines: Sequence[str]) -> Finding | None:
    """That it has ended by itself, with another status than is `usual` when its front-end goes."""
    status = target.status
    if status is None or status == usual:
        return None
    said = f": {lines[-1]}" if lines else ""
    if status < 0:
        return Finding(f"signal {-status}", f"killed by {signal_name(-status)}{said}")
    return Finding(f"status {status} {shape(said)}".strip(), f"ended with status {status}{said}")


def spins(target: Target, seconds: float = WATCHED) -> bool:
    """Whether it keeps a processor busy while nobody wants anything of it."""
    before = target.busy()
    target.ends_within(seconds)
    return target.busy() - before >= SPINNING * seconds
