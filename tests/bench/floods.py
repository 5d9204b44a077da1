"""How long a program takes to answer a message, and to end, while it is flooded.

    .venv/bin/python -m tests.bench.floods [--rounds N] [--json FILE]

Of the answers of one flood the slowest counts. The programs are those of this checkout.
"""

import argparse
import asyncio
import statistics
import tempfile
from pathlib import Path

from tests.bench.measure import Figure, save, table
from tests.floods import CASES, Flood, Times, Victim, measure

ROUNDS = 5
DURATION = 1.0  # seconds of each flood
ANSWER_LIMIT, END_LIMIT = 100, 250  # milliseconds


def measured(victim: Victim, flood: Flood) -> Times:
    """One flood of a program that is started for it."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(victim, flood, Path(folder), DURATION))


def figures(victim: Victim, flood: Flood, rounds: int) -> list[Figure]:
    """The medians of some floods."""
    times = [measured(victim, flood) for _ in range(rounds)]
    answer, end = (statistics.median(values) * 1000 for values in zip(*times, strict=True))
    name = flood.__name__.replace("_", " ")
    return [
        Figure(str(victim), f"GET_FEATURES under {name}", "ms", answer, limit=ANSWER_LIMIT),
        Figure(str(victim), f"SIGTERM to exit under {name}", "ms", end, limit=END_LIMIT),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found = [figure for victim, flood in CASES for figure in figures(victim, flood, options.rounds)]
    print(table(found))
    if options.json is not None:
        save(options.json, found, rounds=options.rounds)


if __name__ == "__main__":
    main()
