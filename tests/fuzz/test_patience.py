"""Patience: turns of waiting, not seconds of the clock."""

import os
import select

import pytest

from vhostd.fuzz import patience
from vhostd.fuzz.patience import TURN, Patience


@pytest.fixture
def poll() -> select.poll:
    """Of an fd that is never ready."""
    return select.poll()


def test_it_is_over_after_so_many_turns(poll: select.poll) -> None:
    some = Patience(3 * TURN, os.getpid())
    turns = 0
    while not some.is_over:
        assert not some.wait(poll)
        turns += 1
    assert turns >= 3


def test_what_is_ready_costs_no_turn() -> None:
    poll = select.poll()
    ours, theirs = os.pipe()
    os.close(theirs)
    poll.register(ours, select.POLLIN)
    some = Patience(TURN, os.getpid())
    for _ in range(100):
        assert some.wait(poll)
    os.close(ours)
    assert not some.is_over


def test_the_time_without_a_processor_does_not_count(
    poll: select.poll, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited = iter([0.0, 5 * TURN, 5 * TURN, 5 * TURN])
    monkeypatch.setattr(patience, "_waited", lambda _: next(waited))
    some = Patience(TURN, 0)
    some.wait(poll)
    assert not some.is_over  # it got five turns more
    for _ in range(6):
        some.wait(poll)
    assert some.is_over


def test_a_process_that_has_gone_has_waited_for_nothing() -> None:
    assert patience._waited(2**22 + 1) == 0
