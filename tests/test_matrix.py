"""The matrix of back-ends: the table of how each is started, and the page of their reports."""

import shlex

import pytest

from contrib.matrix import BackEnd, Checked, back_ends, page
from vhostd.conformance.document import Report, Verdict
from vhostd.conformance.exchange import EXCHANGES
from vhostd.conformance.groups import GROUPS
from vhostd.conformance.verdict import Level, Outcome

PAGE_CHECK = next(iter(GROUPS[0]))
ALL = back_ends()


@pytest.mark.parametrize("back_end", ALL, ids=lambda back_end: back_end.name)
def test_a_command_starts_one_that_listens_where_it_is_told(back_end: BackEnd) -> None:
    assert "{socket}" in back_end.command
    assert shlex.split(back_end.command)
    assert back_end.device in {*EXCHANGES, "rtc", "scsi"}
    assert bool(back_end.package) == ("{peers}" in back_end.command)


def test_every_back_end_has_a_name_of_its_own() -> None:
    assert len({back_end.name for back_end in ALL}) == len(ALL)


def checked(name: str, outcome: Outcome, reason: str = "") -> Checked:
    """A back-end on which one check was run."""
    check = PAGE_CHECK
    verdict = Verdict(
        id=check.id,
        group=check.id.partition("-")[0],
        level=Level.MUST,
        section=check.section,
        clause=check.gist,
        outcome=outcome,
        reason=reason,
        seconds=0,
    )
    back_end = BackEnd(name=name, language="C", device="rng", command="")
    report = Report(
        backend="", type="rng", version="1", conforming=outcome is Outcome.PASSED, checks=(verdict,)
    )
    return Checked(back_end=back_end, version="1.0", report=report)


def test_the_page_says_who_breaks_which_clause() -> None:
    failed = [checked(name, Outcome.FAILED, "it said `no|thing`") for name in ("one", "two")]
    text = page([*failed, checked("good", Outcome.PASSED)])
    assert "| good (vhostd) | 1.0 | rng | C | 1/1 |" in text
    assert "| one (vhostd) | 1.0 | rng | C | 0/1 |" in text
    assert "it said \\`no\\|thing\\`: *one, two*" in text
    assert f"| {PAGE_CHECK.id} | {PAGE_CHECK.level} |" in text


def test_what_was_skipped_is_not_counted() -> None:
    text = page([checked("one", Outcome.SKIPPED, "it cannot be seen")])
    assert "| one (vhostd) | 1.0 | rng | C |  |" in text
    assert "it cannot be seen" not in text
