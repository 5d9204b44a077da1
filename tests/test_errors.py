"""What an error holds on to."""

import weakref

import pytest

from vhostd.errors import forget


class Held:
    """Something that a frame refers to."""


def fails(refers: list[weakref.ref[Held]]) -> None:
    held = Held()
    refers.append(weakref.ref(held))
    raise ValueError("one")


def fail_together(refers: list[weakref.ref[Held]]) -> None:
    try:
        try:
            fails(refers)
        except ValueError:
            fails(refers)
    except ValueError as error:
        raise ExceptionGroup("several", [error]) from None


def test_nothing_is_held_by_an_error_nor_by_those_that_led_to_it() -> None:
    refers: list[weakref.ref[Held]] = []
    with pytest.raises(ExceptionGroup) as found:
        fail_together(refers)
    several = found.value
    del found
    assert all(refer() is not None for refer in refers)
    forget(several)
    assert [refer() for refer in refers] == [None, None]


def test_errors_may_refer_to_each_other() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__cause__ = two, one
    forget(one)
    assert one.__traceback__ is two.__traceback__ is None
