"""Under any flood a program answers messages, and ends when it is told to."""

import asyncio
from pathlib import Path

import pytest

from tests.floods import CASES, Flood, Victim, measure
from tests.programs import is_quick

LIMIT = 1.0  # seconds, on an idle machine; tests.bench.floods says what it takes


@pytest.mark.parametrize(("victim", "flood"), CASES, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_flood(victim: Victim, flood: Flood, tmp_path: Path) -> None:
    assert is_quick(LIMIT, lambda: max(asyncio.run(measure(victim, flood, tmp_path))))
