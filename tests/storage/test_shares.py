"""Shares: who asks first begins first, and all that is taken can be had again."""

import sys
from collections.abc import Callable

import pytest

from vhostd.storage.shares import Shares


@pytest.fixture
def begun() -> list[str]:
    """The names of those that have begun, in their order."""
    return []


def noting(begun: list[str], name: str) -> Callable[[], None]:
    return lambda: begun.append(name)


def test_what_is_there_is_had_at_once(begun: list[str]) -> None:
    shares = Shares(3)
    shares.take(2, noting(begun, "two"))
    shares.take(1, noting(begun, "one"))
    assert begun == ["two", "one"]
    shares.take(1, noting(begun, "late"))
    assert begun == ["two", "one"]
    shares.give(2)
    assert begun == ["two", "one", "late"]


def test_who_asks_first_begins_first(begun: list[str]) -> None:
    """Also where there would be enough for a later one."""
    shares = Shares(3)
    shares.take(1, noting(begun, "first"))
    shares.take(3, noting(begun, "all"))
    shares.take(1, noting(begun, "small"))
    assert begun == ["first"]
    shares.give(1)
    assert begun == ["first", "all"]
    shares.give(2)
    assert begun == ["first", "all", "small"]


def test_who_needs_none_waits_for_those_before(begun: list[str]) -> None:
    shares = Shares(2)
    shares.take(0, noting(begun, "none"))
    shares.take(1, noting(begun, "one"))
    shares.take(2, noting(begun, "all"))
    shares.take(0, noting(begun, "none again"))
    assert begun == ["none", "one"]
    shares.give(1)
    assert begun == ["none", "one", "all", "none again"]


def test_who_is_done_at_once_lets_the_next_begin(begun: list[str]) -> None:
    shares = Shares(1)

    def begin() -> None:
        shares.take(1, noting(begun, "from within"))
        begun.append("outer")
        shares.give(1)

    shares.take(1, begin)
    assert begun == ["outer", "from within"]


def test_any_number_may_be_done_at_once() -> None:
    """Each ends while it is begun, and none of them in the frames of another."""
    shares, many = Shares(1), 2 * sys.getrecursionlimit()
    done: list[int] = []

    def begin() -> None:
        done.append(len(done))
        shares.give(1)

    shares.take(1, lambda: None)
    for _ in range(many):
        shares.take(1, begin)
    assert not done
    shares.give(1)
    assert done == list(range(many))
    shares.take(1, begin)
    assert len(done) == many + 1


def test_one_that_fails_keeps_nobody_from_going_on(begun: list[str]) -> None:
    shares = Shares(1)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        shares.take(1, fail)
    shares.take(1, noting(begun, "next"))
    shares.give(1)
    assert begun == ["next"]
