"""Reads what `trace --write` has written."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from vhostd.errors import SetupError
from vhostd.program.document import first_fault
from vhostd.trace.entries import ENTRIES, AnyEntry, Entry, Head


def entries(path: Path, connection: int) -> Iterator[Entry]:
    """The entries of one connection, in their order; raises SetupError if the file is no recording."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                entry = _entry(path, number, line)
                if isinstance(entry, Head) != (number == 1):
                    raise SetupError(f"{path} is no recording of vhostctl trace: see line {number}")
                if isinstance(entry, Entry) and entry.connection == connection:
                    yield entry
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None


def _entry(path: Path, number: int, line: bytes) -> AnyEntry:
    try:
        return ENTRIES.validate_json(line)
    except ValidationError as error:
        what = first_fault(error)
        raise SetupError(f"{path} is no recording of vhostctl trace: line {number}: {what}") from None
