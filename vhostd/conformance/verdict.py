"""How a check ends, unless all is well."""

from typing import NoReturn


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
