"""What was found, for people and for other programs: text, JSON, TAP and JUnit's XML."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from xml.etree import ElementTree

from vhostd import __version__
from vhostd.conformance.document import Report, Verdict
from vhostd.conformance.runner import Result
from vhostd.conformance.verdict import Level, Outcome

MARKS = {Outcome.PASSED: "ok", Outcome.FAILED: "FAILED", Outcome.SKIPPED: "skipped"}


def report(backend: str, kind: str, results: Sequence[Result]) -> Report:
    """The document of these results."""
    return Report(
        backend=backend,
        type=kind,
        version=__version__,
        conforming=not broken(results, Level.MUST),
        checks=tuple(
            Verdict(
                id=check.id,
                group=check.id.partition("-")[0],
                level=check.level,
                section=check.section,
                clause=check.gist,
                outcome=outcome,
                reason=reason,
                seconds=round(seconds, 3),
            )
            for check, outcome, reason, seconds in results
        ),
    )


def broken(results: Iterable[Result], level: Level) -> list[Result]:
    """Those of a level that failed."""
    return [each for each in results if each.outcome is Outcome.FAILED and each.check.level is level]


def row(result: Result) -> Iterator[str]:
    """The lines of the table for one check."""
    check = result.check
    yield f"{check.id:<9}{check.level:<8}{MARKS[result.outcome]:<9}{check.gist}"
    if result.reason:
        yield f"{'':26}{result.reason}"


def summary(results: Sequence[Result]) -> str:
    """One line that counts."""
    counts = Counter(each.outcome for each in results)
    levels = ", ".join(f"{count} {level}" for level in Level if (count := len(broken(results, level))))
    failed = f"{counts[Outcome.FAILED]} failed" + (f" ({levels})" if levels else "")
    seconds = sum(each.seconds for each in results)
    return f"{counts[Outcome.PASSED]} passed, {failed}, {counts[Outcome.SKIPPED]} skipped, in {seconds:.1f} s"


def tap_plan(count: int) -> list[str]:
    """The head of a TAP stream (version 13) of so many checks."""
    return ["TAP version 13", f"1..{count}"]


def tap(number: int, result: Result) -> Iterator[str]:
    """The lines of one check. Only a broken must is `not ok` for good: the others are marked TODO."""
    check, outcome, reason, _ = result
    line = f"{'not ok' if outcome is Outcome.FAILED else 'ok'} {number} - {check.id} {check.gist}"
    if outcome is Outcome.SKIPPED:
        yield f"{line} # SKIP {reason}"
    elif outcome is Outcome.FAILED:
        yield line if check.level is Level.MUST else f"{line} # TODO {check.level}"
        yield f"# {reason}"
    else:
        yield line


def junit(backend: str, results: Sequence[Result]) -> str:
    """JUnit's XML, as continuous integration reads it. A should that failed is a skipped case there."""
    suite = ElementTree.Element(
        "testsuite",
        name=backend,
        tests=str(len(results)),
        failures=str(len(broken(results, Level.MUST))),
        skipped=str(
            sum(each.outcome is not Outcome.PASSED for each in results) - len(broken(results, Level.MUST))
        ),
        time=f"{sum(each.seconds for each in results):.3f}",
    )
    for check, outcome, reason, seconds in results:
        name = f"{check.id} {check.gist}"
        case = ElementTree.SubElement(
            suite, "testcase", classname=check.id.partition("-")[0], name=name, time=f"{seconds:.3f}"
        )
        if outcome is Outcome.FAILED and check.level is Level.MUST:
            ElementTree.SubElement(case, "failure", message=reason)
        elif outcome is not Outcome.PASSED:
            ElementTree.SubElement(case, "skipped", message=reason)
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)
