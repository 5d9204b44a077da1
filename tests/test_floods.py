"""Under any flood a program answers messages, and ends when it is told to."""

import asyncio
from pathlib import Path

import pytest

from tests.floods import CASES, Flood, Victim, measure

LIMIT = 2.0  # seconds, on a busy machine; tests.bench.floods says how long it takes on an idle one


@pytest.mark.parametrize(("victim", "flood"), CASES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_flood(victim: Victim, flood: Flood, tmp_path: Path) -> None:
    times = asyncio.run(measure(victim, flood, tmp_path))
    assert max(times) < LIMIT
