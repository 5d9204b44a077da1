"""What `vhostctl fuzz` does with its options: a plan, its jobs, and a line for each thing to know."""

import argparse
import random
import re
import tempfile
import time
from pathlib import Path

from vhostd.ctl.fuzz import Finding, Report
from vhostd.ctl.output import printable
from vhostd.ctl.target_options import words_with_socket
from vhostd.errors import UsageError
from vhostd.fuzz.campaign import Campaign, Plan, Progress
from vhostd.fuzz.corpus import load
from vhostd.fuzz.findings import Findings, Found
from vhostd.fuzz.grammar import Scope
from vhostd.fuzz.jobs import run_jobs
from vhostd.fuzz.operation import leavable
from vhostd.fuzz.requests import TYPES
from vhostd.program.log import write_line

TOLD = 10.0  # seconds between two lines of progress
SEEDS = 1 << 32
_NUMBERED = re.compile(r"request \d+")  # the name of a message that has none


class Fuzzing:
    """One run, and what it has come to."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises UsageError for what is no type, operation or command; SetupError without a folder."""
        words_with_socket(options.exec)
        self._seed = random.randrange(SEEDS) if options.seed is None else options.seed
        self._plan = Plan(
            command=options.exec,
            seed=self._seed,
            scope=_scope(options),
            cases=options.cases,
            seconds=None if options.cases else options.time,
            corpus=options.corpus,
            jobs=options.jobs,
        )
        self._progress = Progress()
        self._findings = Findings(options.findings, options.exec)
        self._begin = self._told = time.monotonic()

    def run(self) -> Report:
        """Runs all cases."""
        _tell(f"seed {self._seed}, {self._plan.jobs} at a time")
        run_jobs(self._plan, self._hear)
        _tell(self._line())
        return self._report()

    def _hear(self, said: Progress | Found) -> None:
        if isinstance(said, Found):
            if written := self._findings.add(said):
                _tell(f"FOUND in case {said.number}: {said.finding.text}")
                _tell(f"  {' '.join(said.operations[:20])}: {written.script or written.case}")
            return
        self._progress = said
        if time.monotonic() - self._told >= TOLD:
            self._told = time.monotonic()
            _tell(self._line())

    def _line(self) -> str:
        done, seconds = self._progress, time.monotonic() - self._begin
        counts = {
            "cases": done.cases,
            f"messages ({done.messages / seconds:.0f}/s)": done.messages,
            f"ring operations ({done.ring_operations / seconds:.0f}/s)": done.ring_operations,
            "starts": done.starts,
            "connections without an answer": done.stuck,
            "findings": len(self._findings.written),
        }
        return f"{seconds:.0f} s: {', '.join(f'{count} {name}' for name, count in counts.items())}"

    def _report(self) -> Report:
        return Report(
            seed=self._seed,
            seconds=round(time.monotonic() - self._begin, 1),
            **self._progress._asdict(),
            findings=tuple(
                Finding(
                    kind=each.found.finding.kind,
                    text=printable(each.found.finding.text),
                    number=each.found.number,
                    operations=each.found.operations,
                    script=str(each.script) if each.script else None,
                    case=str(each.case),
                )
                for each in self._findings.written
            ),
        )


def run_case(options: argparse.Namespace) -> Report:
    """Runs one case that was kept. Raises as Fuzzing does."""
    words_with_socket(options.exec)
    case = load(options.case)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        found = Campaign.alone(options.exec, case, Path(folder))
    findings = []
    if found:
        _tell(f"FOUND: {found.text}")
        names = tuple(each.name for each in case)
        findings = [
            Finding(
                kind=found.kind,
                text=found.text,
                number=0,
                operations=names,
                script=None,
                case=str(options.case),
            )
        ]
    return Report(
        seed=0, seconds=0, cases=1, messages=0, ring_operations=0, starts=1, stuck=0, findings=tuple(findings)
    )


def _scope(options: argparse.Namespace) -> Scope:
    if unknown := set(options.type or ()) - set(TYPES):
        raise UsageError(f"no requests are known of type {', '.join(sorted(unknown))}: {', '.join(TYPES)}")
    names = leavable()
    if unknown := {each for each in options.without if not (each in names or _NUMBERED.fullmatch(each))}:
        known = f"{', '.join(names)}, or 'request N'"
        raise UsageError(f"--without: no operation is called {', '.join(sorted(unknown))}: {known}")
    return Scope(
        messages=not options.rings,
        rings=not options.messages,
        types=tuple(options.type or TYPES),
        without=frozenset(options.without),
    )


def _tell(line: str) -> None:
    write_line(f"vhostctl: {printable(line)}")
