"""What `vhostctl fuzz` does with its options: a plan, its jobs, and a line for each thing to know."""

import argparse
import random
import tempfile
import time
from pathlib import Path

from vhostd.ctl.fuzz import Finding, Report
from vhostd.ctl.output import printable
from vhostd.ctl.target_options import words_with_socket
from vhostd.errors import UsageError
from vhostd.fuzz.campaign import Campaign, Found, Plan, Progress
from vhostd.fuzz.corpus import load
from vhostd.fuzz.grammar import Scope
from vhostd.fuzz.jobs import run_jobs
from vhostd.fuzz.requests import TYPES
from vhostd.program.log import write_line

TOLD = 10.0  # seconds between two lines of progress
SEEDS = 1 << 32


class Fuzzing:
    """One run, and what it has come to."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises UsageError for a type that is none, or a command that cannot be."""
        words_with_socket(options.exec)
        self._seed = random.randrange(SEEDS) if options.seed is None else options.seed
        self._plan = Plan(
            command=options.exec,
            seed=self._seed,
            scope=_scope(options),
            cases=options.cases,
            seconds=None if options.cases else options.time,
            corpus=options.corpus,
            findings=options.findings,
            jobs=options.jobs,
        )
        self._progress = Progress()
        self._findings: list[Found] = []
        self._begin = self._told = time.monotonic()

    def run(self) -> Report:
        """Runs all cases."""
        if self._plan.findings != Path():
            self._plan.findings.mkdir(parents=True, exist_ok=True)
        _tell(f"seed {self._seed}, {self._plan.jobs} at a time")
        run_jobs(self._plan, self._hear)
        _tell(self._line())
        return self._report()

    def _hear(self, said: Progress | Found) -> None:
        if isinstance(said, Found):
            known = {each.key for each in self._findings}
            if said.key not in known:
                self._findings.append(said)
                _tell(f"FOUND in case {said.number}: {said.finding.text}")
                _tell(f"  {' '.join(said.operations[:20])}: {said.script or said.case}")
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
            "findings": len(self._findings),
        }
        return f"{seconds:.0f} s: {', '.join(f'{count} {name}' for name, count in counts.items())}"

    def _report(self) -> Report:
        return Report(
            seed=self._seed,
            seconds=round(time.monotonic() - self._begin, 1),
            **self._progress._asdict(),
            findings=tuple(
                Finding(
                    kind=each.finding.kind,
                    text=printable(each.finding.text),
                    number=each.number,
                    operations=each.operations,
                    script=str(each.script) if each.script else None,
                    case=str(each.case),
                )
                for each in self._findings
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
    return Scope(
        messages=not options.rings,
        rings=not options.messages,
        types=tuple(options.type or TYPES),
        without=frozenset(options.without),
    )


def _tell(line: str) -> None:
    write_line(f"vhostctl: {printable(line)}")
