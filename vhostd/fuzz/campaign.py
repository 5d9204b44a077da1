"""A run of many cases: counts what was done, minimises what is found, and keeps what was new."""

import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

from vhostd.fuzz.corpus import Corpus
from vhostd.fuzz.execution import PATIENCE, Execution
from vhostd.fuzz.findings import Found
from vhostd.fuzz.grammar import Grammar, Scope
from vhostd.fuzz.minimise import Minimiser
from vhostd.fuzz.operation import Case, Connect
from vhostd.fuzz.target import Target
from vhostd.fuzz.verdict import GROWING, SPINS, Finding

IDLE = 64  # so many cases from one look at the idle back-end to the next
REPORTED = 5.0  # seconds between two reports
MINIMISING = 600  # runs for one finding at most
ALIKE = 2  # findings of a kind that are minimised, though each may be in the next case too
RECENT = 16  # cases before a finding that may have prepared it
MOST = 20  # findings of one job, which ends then
GROWTH = 64 << 20  # bytes by which a back-end may grow, beside twice what it had after its first cases


class Plan(NamedTuple):
    """What is to be run: `cases` cases, or as many as `seconds` allow; `job` is which of the `jobs` it is.

    `patience` is how many seconds an answer may take. A job ends with its finding number `most`.
    """

    command: str
    seed: int
    scope: Scope
    cases: int | None
    seconds: float | None
    corpus: Path | None
    job: int = 0
    jobs: int = 1
    patience: float = PATIENCE
    most: int = MOST


class Progress(NamedTuple):
    """What was done so far."""

    cases: int = 0
    messages: int = 0
    ring_operations: int = 0
    starts: int = 0
    stuck: int = 0

    def __add__(self, other: object) -> "Progress":
        assert isinstance(other, Progress)
        return Progress(*map(sum, zip(self, other, strict=True)))


Report = Callable[[Progress | Found], None]


class Campaign:
    """Runs the cases of one job."""

    def __init__(self, plan: Plan, folder: Path, report: Report) -> None:
        """`folder` is for the back-end's socket; `report` hears of progress and findings."""
        self._plan = plan
        self._report = report
        self._corpus = Corpus(plan.corpus)
        self._execution = Execution(Target(plan.command, folder), plan.patience)
        self._recent: list[Case] = []
        self._known: list[tuple[str, set[str]]] = []  # findings: the kind, and its operations
        self._stuck = self._told = 0
        self._first_resident = 0

    def run(self) -> None:
        """Runs them all. Raises SetupError if the back-end cannot be started."""
        try:
            traits = self._execution.learn()
            grammar = Grammar(self._plan.seed, traits, self._plan.scope, self._corpus.cases)
            told = time.monotonic()
            for number in self._numbers():
                self._case(number, grammar.case(number))
                if time.monotonic() - told > REPORTED:
                    told = time.monotonic()
                    self._report(self._progress())
        finally:
            self._execution.stop()
        self._report(self._progress())

    @staticmethod
    def alone(command: str, case: Case, folder: Path) -> Finding | None:
        """Runs one case, in a back-end that has had no other."""
        execution = Execution(Target(command, folder))
        try:
            execution.learn()
            return execution.alone(case)
        finally:
            execution.stop()

    def _numbers(self) -> Iterator[int]:
        end = None if self._plan.seconds is None else time.monotonic() + self._plan.seconds
        for number in count(self._plan.job, self._plan.jobs):
            is_late = end is not None and time.monotonic() >= end
            if is_late or (self._plan.cases and number >= self._plan.cases) or self._told == self._plan.most:
                return
            yield number

    def _case(self, number: int, case: Case) -> None:
        execution = self._execution
        starts = execution.starts
        execution.rig.signals.clear()
        found = execution.run(case)
        self._stuck += execution.rig.is_stuck
        if execution.starts != starts:
            self._recent = []
        if not found and execution.cases % IDLE == 0:
            found = execution.idles() or self._growth()
        if found:
            self._found(number, case, found)
        elif self._corpus.is_new(execution.rig.signals, execution.lines):
            self._corpus.add(case)
        self._recent = [*self._recent, case][-RECENT:]

    def _growth(self) -> Finding | None:
        """Whether it has grown without bound since its first cases."""
        now = self._execution.target.resident()
        if not self._recent or not self._first_resident:
            self._first_resident = now
        if now <= 2 * self._first_resident + GROWTH:
            return None
        before, self._first_resident = self._first_resident, now
        return Finding("growth", f"grown from {before >> 20} to {now >> 20} MiB")

    def _found(self, number: int, case: Case, found: Finding) -> None:
        """Minimises and reports a finding, unless it looks like one that was."""
        names = {each.name for each in case}
        alike = [known for kind, known in self._known if kind == found.kind and known <= names]
        if len(alike) >= (1 if found.kind in GROWING else ALIKE):
            return
        whole = next(
            (each for each in (case, self._with_recent(case)) if self._fails(each, found, alone=True)), None
        )
        if whole is None:
            self._tell(number, found, case, done_again=False)
            return
        least = self._minimised(whole, found, alone=False)
        if not self._fails(least, found, alone=True):  # what earlier cases had left behind played a part
            least = self._minimised(whole, found, alone=True)
        self._tell(number, found, least, done_again=True)

    def _minimised(self, case: Case, found: Finding, *, alone: bool) -> Case:
        execution = self._execution
        end = execution.cases + MINIMISING
        execution.seconds, seconds = min(1.0, execution.seconds), execution.seconds
        minimiser = Minimiser(
            lambda less: self._fails(less, found, alone=alone), lambda: execution.cases < end
        )
        least = minimiser.minimise(case)
        execution.seconds = seconds
        return least

    def _with_recent(self, case: Case) -> Case:
        return tuple(operation for each in (*self._recent, case) for operation in each)

    def _fails(self, case: Case, found: Finding, *, alone: bool = False) -> bool:
        if not isinstance(case[0], Connect):  # all before the first connection would do nothing
            return False
        run = self._execution.alone if alone else self._execution.run
        again = run(case)
        if again is None and found.kind == SPINS and self._execution.target.status is None:
            again = self._execution.idles()
        return again is not None and again.kind == found.kind

    def _tell(self, number: int, found: Finding, case: Case, *, done_again: bool) -> None:
        self._told += 1
        self._known.append((found.kind, {each.name for each in case}))
        self._report(Found(number, found, case, done_again, self._execution.usual_end))

    def _progress(self) -> Progress:
        rig = self._execution.rig
        return Progress(
            self._execution.cases, rig.messages, rig.ring_operations, self._execution.starts, self._stuck
        )
