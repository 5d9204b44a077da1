"""What the benchmarks share: alternating rounds, and results as a table and as JSON."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

Measure = Callable[[], float]

# It takes a processor as long as nobody else wants it.
IDLER = "import os; os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))\nwhile True: pass"


@dataclass(frozen=True)
class Figure:
    """A measured value, with what it is compared to in the same run, and what it should not exceed."""

    subject: str
    what: str
    unit: str
    value: float
    baseline: float | None = None
    limit: float | None = None  # of the ratio if there is a baseline, else of the value
    least: float | None = None  # likewise, what it should reach

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.value / self.baseline

    @property
    def compared(self) -> float:
        return self.value if self.ratio is None else self.ratio

    @property
    def bounds(self) -> str:
        unit = "" if self.baseline else f" {self.unit}"
        most = "" if self.limit is None else f"{self.limit:g}{unit}"
        return most if self.least is None else f"at least {self.least:g}{unit}"

    @property
    def verdict(self) -> str:
        if self.limit is not None and self.compared > self.limit:
            return "**too much**"
        if self.least is not None and self.compared < self.least:
            return "**too little**"
        return "ok" if self.bounds else ""


def alternate(subjects: Mapping[str, Measure], rounds: int) -> dict[str, float]:
    """The median of each subject, measured in turn, so that what slows the machine slows all of them."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, measure in subjects.items():
            samples[name].append(measure())
    return {name: statistics.median(values) for name, values in samples.items()}


@contextmanager
def awake() -> Iterator[None]:
    """Keeps all processors from sleeping, without taking time from others.

    A virtual machine's processor that sleeps is woken by the machine's host, in tens of microseconds, more or
    less. Where programs wake each other, that is measured instead of the programs.
    """
    with ExitStack() as stack:
        for processor in os.sched_getaffinity(0):
            idler = stack.enter_context(subprocess.Popen([sys.executable, "-c", IDLER]))
            stack.callback(idler.kill)
            os.sched_setaffinity(idler.pid, {processor})
        yield


def cpu_time(pid: int) -> float:
    """Seconds that a process has used, of user and system time."""
    return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) makes of a pid: CPUCLOCK_SCHED


def table(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = ["| program | figure | median | baseline | ratio | limit | |", "|---|---|---|---|---|---|---|"]
    for figure in figures:
        unit = figure.unit
        cells = [
            figure.subject,
            figure.what,
            f"{figure.value:.1f} {unit}",
            "" if figure.baseline is None else f"{figure.baseline:.1f} {unit}",
            "" if figure.ratio is None else f"{figure.ratio:.2f}",
            figure.bounds,
            figure.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save(path: Path, figures: Sequence[Figure], **about: object) -> None:
    """Writes the figures, and what they were measured on, as JSON."""
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps({**about, "machine": machine, "figures": rows}, indent=2) + "\n")
