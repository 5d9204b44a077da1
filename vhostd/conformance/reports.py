"""Faults that a program reports itself, in what it says: a sanitizer's, a panic, a traceback."""

import re
from collections.abc import Iterable

REPORT = re.compile(
    r"ERROR: \w+Sanitizer|runtime error:|WARNING: \w+Sanitizer|panicked at|^panic: |^Traceback \(most"
)


def report_in(lines: Iterable[str]) -> re.Match[str] | None:
    """The first report in lines of a log. Its `string` is the line."""
    return next(filter(None, map(REPORT.search, lines)), None)
