"""What a program's own words tell of its faults."""

import pytest

from vhostd.conformance.reports import report_in


@pytest.mark.parametrize(
    "line",
    [
        "==17==ERROR: AddressSanitizer: heap-use-after-free on address 0x60300",
        "ring.c:12:3: runtime error: signed integer overflow",
        "thread 'main' panicked at src/main.rs:10:5:",
        "Traceback (most recent call last):",
    ],
)
def test_a_report_is_found(line: str) -> None:
    report = report_in(["listening", line, "the rest"])
    assert report is not None
    assert report.string == line


def test_other_words_are_none() -> None:
    assert report_in(["listening", "error: the front-end has gone", "panic button pressed"]) is None
