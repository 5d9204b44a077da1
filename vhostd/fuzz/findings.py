"""What was found, each fault once, and the files of it."""

from pathlib import Path
from typing import NamedTuple

from vhostd.errors import SetupError
from vhostd.fuzz.corpus import save
from vhostd.fuzz.operation import Case
from vhostd.fuzz.script import script
from vhostd.fuzz.verdict import Finding


class Found(NamedTuple):
    """A finding of a job. `usual_end` is the status with which the back-end ends when its front-end goes."""

    number: int
    finding: Finding
    case: Case
    done_again: bool
    usual_end: int | None

    @property
    def operations(self) -> tuple[str, ...]:
        """What it takes, by name."""
        return tuple(each.name for each in self.case)

    @property
    def key(self) -> tuple[str, ...]:
        """What two findings that are the same have in common."""
        return (self.finding.kind, *(sorted(set(self.operations)) if self.done_again else ()))


class Written(NamedTuple):
    """A finding and its files. One that could not be done again has no `script`."""

    found: Found
    script: Path | None
    case: Path


class Findings:
    """The findings of all jobs. Only here are any written, so that each one has its files once."""

    def __init__(self, folder: Path, command: str) -> None:
        """Makes the folder. Raises SetupError if that cannot be."""
        self._folder = folder
        self._command = command
        self._known: set[tuple[str, ...]] = set()
        self.written: list[Written] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SetupError(f"{folder}: {error.strerror}") from None

    def add(self, found: Found) -> Written | None:
        """Writes a finding; None for one that looks like one that was. Raises SetupError."""
        if found.key in self._known:
            return None
        self._known.add(found.key)
        case = save(found.case, self._folder, "finding")
        written = Written(found, self._script(found, case) if found.done_again else None, case)
        self.written.append(written)
        return written

    def _script(self, found: Found, case: Path) -> Path:
        path = case.with_suffix(".py")
        try:
            path.write_text(script(found.case, found.finding, self._command, path.name, found.usual_end))
        except OSError as error:
            raise SetupError(f"{path}: {error.strerror}") from None
        return path
