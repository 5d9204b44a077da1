"""A folder of cases that once led to something new. They are where later runs begin.

What is new needs no look inside the back-end: a kind of reply, an end of the connection after another
message, a request of the back-end's own, or a line of its log that it had not written before.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from vhostd.errors import SetupError
from vhostd.fuzz.operation import Case, from_json, to_json
from vhostd.fuzz.verdict import shape
from vhostd.program.document import first_fault

MOST_LINES = 50  # of one case that are looked at


class Corpus:
    """The cases of a folder, and what of theirs is known; without a folder only what is known."""

    def __init__(self, folder: Path | None) -> None:
        """Reads all cases. Raises SetupError for a file that is none."""
        self._folder = folder
        self._known: set[object] = set()
        self.cases: list[Case] = []
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.cases = [load(path) for path in sorted(folder.glob("case-*.json"))]
        except OSError as error:
            raise SetupError(f"{folder}: {error.strerror}") from None

    def is_new(self, signals: Iterable[object], lines: Iterable[str]) -> bool:
        """Whether anything of this is seen for the first time."""
        shapes = {shape(line) for line in list(lines)[:MOST_LINES]}
        new = ({*signals, *shapes}) - self._known
        self._known |= new
        return bool(new)

    def add(self, case: Case) -> None:
        """Keeps a case for later runs."""
        if self._folder is not None:
            save(case, self._folder, "case")


def load(path: Path) -> Case:
    """The case in a file. Raises SetupError if it is none."""
    try:
        return from_json(path.read_bytes())
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise SetupError(f"{path} is no case: {first_fault(error)}") from None


def save(case: Case, folder: Path, name: str) -> Path:
    """Writes a case into a folder, under a name that its content gives it."""
    data = to_json(case)
    path = folder / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}.json"
    try:
        path.write_bytes(data)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from None
    return path
