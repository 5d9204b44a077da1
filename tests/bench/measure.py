"""What the benchmarks share: alternating rounds, and results as a table and as JSON."""

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """A measured value, with what it is compared to in the same run, and the most that it should be."""

    subject: str
    what: str
    unit: str
    value: float
    baseline: float | None = None
    limit: float | None = None  # of the ratio if there is a baseline, else of the value

    @property
    def ratio(self) -> float | None:
        return None if self.baseline is None else self.value / self.baseline

    @property
    def compared(self) -> float:
        return self.value if self.ratio is None else self.ratio


def alternate(subjects: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each subject, measured in turn, so that what slows the machine slows all of them."""
    samples: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, measure in subjects.items():
            samples[name].append(measure())
    return {name: statistics.median(values) for name, values in samples.items()}


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
            "" if figure.limit is None else f"{figure.limit:g}{'' if figure.baseline else ' ' + unit}",
            "" if figure.limit is None else "ok" if figure.compared <= figure.limit else "**too much**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def save(path: Path, figures: Sequence[Figure], **about: object) -> None:
    """Writes the figures, and what they were measured on, as JSON."""
    machine = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    rows = [{**asdict(figure), "ratio": figure.ratio} for figure in figures]
    path.write_text(json.dumps({**about, "machine": machine, "figures": rows}, indent=2) + "\n")
