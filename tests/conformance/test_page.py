"""The page of all checks."""

from pathlib import Path

from vhostd.conformance.groups import GROUPS
from vhostd.conformance.page import page

PAGE = Path(__file__).parents[2] / "CONFORMANCE.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python -m vhostd.conformance.page > CONFORMANCE.md"


def test_it_has_each_check_once() -> None:
    lines = page().splitlines()
    for group in GROUPS:
        assert f"## {group.title}" in lines
        for check in group:
            rows = [line for line in lines if line.startswith(f"| {check.id} |")]
            assert len(rows) == 1
            assert check.gist in rows[0]
