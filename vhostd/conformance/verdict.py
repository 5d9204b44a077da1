"""How much a clause weighs, and how its check ends."""

from enum import StrEnum
from typing import NoReturn


class Level(StrEnum):
    """How much a clause weighs. Only a broken MUST makes a back-end fail."""

    MUST = "must"
    SHOULD = "should"
    ADVICE = "advice"


class Outcome(StrEnum):
    """How a check ended. A check that was skipped says nothing of the back-end."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Failed(Exception):
    """The back-end breaks the clause. The text is the reason, one line."""


class Skipped(Exception):
    """The clause cannot be observed on this back-end. The text says why."""


def expect(holds: object, otherwise: str) -> None:
    """Lets the check fail for this reason, unless it `holds`."""
    if not holds:
        raise Failed(otherwise)


def skip(reason: str) -> NoReturn:
    """Ends the check without a verdict."""
    raise Skipped(reason)
