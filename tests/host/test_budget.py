"""A budget with a clock of its own."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.conftest import Run
from vhostd.host import budget
from vhostd.host.budget import Budget


class Clock:
    """Time that passes only in `sleep`, which wakes up a little early once."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds if len(self.slept) > 1 else seconds - 0.001


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(budget, "time", made)
        patch.setattr(asyncio, "sleep", made.sleep)
        yield made


def test_a_spent_budget_waits_for_the_end_of_its_period(clock: Clock, run_async: Run) -> None:
    async def main() -> None:
        spent = Budget(10, 2.0)
        await spent.refill()
        spent.left -= 10
        clock.now += 0.5
        await spent.refill()
        assert spent.left == 10
        assert clock.now >= 1002
        assert sum(clock.slept) == pytest.approx(1.501)

    run_async(main)


def test_what_is_left_lasts_until_the_period_ends(clock: Clock, run_async: Run) -> None:
    async def main() -> None:
        spent = Budget(10, 2.0)
        await spent.refill()
        spent.left -= 9
        await spent.refill()
        assert spent.left == 1
        clock.now += 2
        await spent.refill()
        assert spent.left == 10

    run_async(main)
    assert not sum(clock.slept)
