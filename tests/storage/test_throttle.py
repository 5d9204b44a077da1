"""The limit on requests and bytes per second, by a clock that the tests move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.storage.throttle import BURST, Bucket, Throttle


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_no_limit_at_all(clock: Clock) -> None:
    throttle = Throttle(0, 0, clock)
    assert {throttle.spend(1 << 40) for _ in range(100)} == {0.0}


def test_a_second_s_worth_at_once(clock: Clock) -> None:
    throttle = Throttle(100, 0, clock)
    assert [throttle.spend(0) for _ in range(100)] == [0.0] * 100
    assert [throttle.spend(0) for _ in range(3)] == pytest.approx([0.01, 0.02, 0.03])


def test_what_is_owed_is_paid_with_time(clock: Clock) -> None:
    throttle = Throttle(0, 1000, clock)
    assert throttle.spend(4000) == pytest.approx(3.0)
    clock.now += 3.0
    assert throttle.spend(0) == 0.0
    assert throttle.spend(500) == pytest.approx(0.5)


def test_rest_is_not_saved_beyond_the_burst(clock: Clock) -> None:
    throttle = Throttle(10, 0, clock)
    clock.now += 3600.0
    assert [throttle.spend(0) for _ in range(11)] == pytest.approx([0.0] * 10 + [0.1])


@pytest.mark.parametrize(("size", "pause"), [(10, 0.1), (1000, 1.0)], ids=["requests", "bytes"])
def test_the_stricter_limit_counts(clock: Clock, size: int, pause: float) -> None:
    throttle = Throttle(10, 1000, clock)
    assert throttle.spend(1000) == 0.0
    assert [throttle.spend(0) for _ in range(9)] == [0.0] * 9
    assert throttle.spend(size) == pytest.approx(pause)


@given(
    st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 5), st.integers(0, 5000)), min_size=1, max_size=50)
)
def test_who_rests_as_told_keeps_to_the_rate(rate: int, steps: list[tuple[float, int]]) -> None:
    """Invariant: before each request at most the burst and the rate's worth of the time were spent."""
    clock = Clock()
    bucket, begin, spent = Bucket(rate, clock), clock.now, 0
    for idle, tokens in steps:
        clock.now += idle
        assert spent <= (clock.now - begin + BURST) * rate + 1e-3
        spent += tokens
        clock.now += bucket.spend(tokens)
