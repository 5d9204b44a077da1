"""What was found, in every form."""

from xml.etree import ElementTree

from vhostd import __version__
from vhostd.conformance.check import Check, Needs
from vhostd.conformance.report import broken, junit, report, row, summary, tap, tap_plan
from vhostd.conformance.runner import Result
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Level, Outcome


async def observe(trial: Trial) -> None:
    pass


def result(number: int, level: Level, outcome: Outcome, reason: str = "") -> Result:
    check = Check(f"RED-{number}", level, "Colours", "It is <red>.", Needs(), observe)
    return Result(check, outcome, reason, 0.25)


WELL = result(1, Level.MUST, Outcome.PASSED)
SKIPPED = result(2, Level.MUST, Outcome.SKIPPED, "there is none")
LESS = result(3, Level.SHOULD, Outcome.FAILED, "it is green")
BAD = result(4, Level.MUST, Outcome.FAILED, 'it is "blue"')


def test_only_a_broken_must_makes_it_fail() -> None:
    assert report("rng", "rng", [WELL, SKIPPED, LESS]).conforming
    assert not report("rng", "rng", [WELL, BAD]).conforming
    assert broken([WELL, SKIPPED, LESS, BAD], Level.MUST) == [BAD]
    assert broken([WELL, SKIPPED, LESS, BAD], Level.SHOULD) == [LESS]


def test_the_document() -> None:
    document = report("/bin/rng", "rng", [LESS]).model_dump(mode="json")
    assert document == {
        "backend": "/bin/rng",
        "type": "rng",
        "version": __version__,
        "conforming": True,
        "checks": [
            {
                "id": "RED-3",
                "group": "RED",
                "level": "should",
                "section": "Colours",
                "clause": "It is <red>.",
                "outcome": "failed",
                "reason": "it is green",
                "seconds": 0.25,
            }
        ],
    }


def test_the_table_for_a_person() -> None:
    assert list(row(WELL)) == ["RED-1    must    ok       It is <red>."]
    assert list(row(LESS)) == [
        "RED-3    should  FAILED   It is <red>.",
        "                          it is green",
    ]
    assert summary([WELL, SKIPPED, LESS, BAD]) == (
        "1 passed, 2 failed (1 must, 1 should), 1 skipped, in 1.0 s"
    )
    assert summary([WELL]) == "1 passed, 0 failed, 0 skipped, in 0.2 s"


def test_a_tap_stream() -> None:
    lines = [*tap_plan(4)]
    for number, each in enumerate([WELL, SKIPPED, LESS, BAD], 1):
        lines += tap(number, each)
    assert lines == [
        "TAP version 13",
        "1..4",
        "ok 1 - RED-1 It is <red>.",
        "ok 2 - RED-2 It is <red>. # SKIP there is none",
        "not ok 3 - RED-3 It is <red>. # TODO should",
        "# it is green",
        "not ok 4 - RED-4 It is <red>.",
        '# it is "blue"',
    ]


def test_junits_xml() -> None:
    suite = ElementTree.fromstring(junit("rng", [WELL, SKIPPED, LESS, BAD]).encode())
    assert suite.attrib == {"name": "rng", "tests": "4", "failures": "1", "skipped": "2", "time": "1.000"}
    assert [(case.get("classname"), case.get("name")) for case in suite] == [
        ("RED", f"RED-{number} It is <red>.") for number in range(1, 5)
    ]
    assert [[(child.tag, child.get("message")) for child in case] for case in suite] == [
        [],
        [("skipped", "there is none")],
        [("skipped", "it is green")],
        [("failure", 'it is "blue"')],
    ]
