"""Shares: first come, first served."""

import sys

from vhost_user_blk.shares import Shares


def test_very_many_that_end_at_once() -> None:
    """Each gives its share back before it returns, as with an engine that does everything at once."""
    shares, begun = Shares(2), []
    shares.take(2, lambda: None)

    def begin(number: int) -> None:
        begun.append(number)
        shares.give(1)

    count = 2 * sys.getrecursionlimit()
    for number in range(count):
        shares.take(1, lambda number=number: begin(number))  # type: ignore[misc]  # of the default
    assert not begun
    shares.give(2)
    assert begun == list(range(count))


def test_who_takes_all_is_alone_and_in_turn() -> None:
    shares, begun = Shares(2), []
    for name, count in (("a", 1), ("b", 2), ("c", 1)):
        shares.take(count, lambda name=name: begun.append(name))  # type: ignore[misc]
    assert begun == ["a"]
    shares.give(1)
    assert begun == ["a", "b"]
    shares.give(2)
    assert begun == ["a", "b", "c"]
