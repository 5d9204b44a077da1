"""What a check is, and how checks are chosen; and that ours have what their page needs."""

from collections import Counter

import pytest

from vhostd.conformance.check import Check, Group, Needs, matching
from vhostd.conformance.groups import GROUPS
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, Level, Skipped, expect, skip

RED, BLUE = Group("RED", "Red"), Group("BLUE", "Blue", "virtio 1.3")
CHECKS = matching(GROUPS, ())


@RED.must(1, "Colours", "It is red.")
async def red(trial: Trial) -> None:
    """Looks at it,
    twice.
    """


@RED.should(2, "Colours", "It is bright.", Needs(program=True))
@BLUE.advice(1, "Colours", "It is dark.")
async def bright(trial: Trial) -> None:
    pass


def test_a_function_is_the_check_of_a_clause() -> None:
    first, second = RED
    assert first == Check("RED-1", Level.MUST, "Colours", "It is red.", Needs(), red)
    assert first.how == "Looks at it, twice."
    assert (second.id, second.level, second.needs.program, second.how) == ("RED-2", Level.SHOULD, True, "")
    assert [(check.id, check.level) for check in BLUE] == [("BLUE-1", Level.ADVICE)]
    assert BLUE.specification == "virtio 1.3"


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ([], ["RED-1", "RED-2", "BLUE-1"]),
        (["red"], ["RED-1", "RED-2"]),
        (["BLUE-1", "red-2"], ["RED-2", "BLUE-1"]),
        (["RED", "RED-1"], ["RED-1", "RED-2"]),
        (["GREEN"], []),
    ],
)
def test_checks_are_chosen_by_id_and_by_group(wanted: list[str], ids: list[str]) -> None:
    assert [check.id for check in matching([RED, BLUE], wanted)] == ids


def test_a_check_fails_or_ends_for_a_reason() -> None:
    expect([0], "it holds")
    with pytest.raises(Failed, match="it is green"):
        expect([], "it is green")
    with pytest.raises(Skipped, match="there is none"):
        skip("there is none")


def test_no_two_checks_have_the_same_id() -> None:
    assert not [id for id, count in Counter(check.id for check in CHECKS).items() if count > 1]
    assert max(Counter(group.prefix for group in GROUPS).values()) == 1


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_check_says_what_it_is_about(check: Check) -> None:
    assert check.gist.endswith(".")
    assert check.how.endswith(".")
    assert check.section
