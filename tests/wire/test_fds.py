import os
from collections.abc import Iterator

import pytest

from vhostd.wire.fds import Fd, close_all


@pytest.fixture
def number() -> Iterator[int]:
    """An open descriptor, which the test closes."""
    number = os.open("/", os.O_RDONLY)
    yield number
    assert not is_open(number)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_close_closes_once(number: int) -> None:
    fd = Fd(number)
    assert fd.fileno() == number
    fd.close()
    again = os.dup(0)  # takes the lowest number that is free
    assert again == number
    fd.close()
    assert is_open(again)
    os.close(again)


def test_taken_is_the_taker_s(number: int) -> None:
    fd = Fd(number)
    assert fd.take() == number
    fd.close()
    assert is_open(number)
    os.close(number)


def test_true_while_it_owns(number: int) -> None:
    with Fd(number) as fd:
        assert fd
        assert repr(fd) == f"Fd({number})"
    assert not fd
    assert repr(fd) == "Fd(closed)"
    assert Fd(os.dup(0)).take() == number
    os.close(number)


@pytest.mark.parametrize("use", [Fd.fileno, Fd.take])
def test_closed_is_of_no_use(number: int, use: "type[Fd]") -> None:
    fd = Fd(number)
    fd.close()
    with pytest.raises(ValueError, match="closed"):
        use(fd)  # type: ignore[arg-type]  # methods, which mypy joins to a type


def test_a_with_block_closes_whatever_happens(number: int) -> None:
    with pytest.raises(ZeroDivisionError), Fd(number):
        raise ZeroDivisionError


def test_lost_is_closed_with_a_warning(number: int) -> None:
    fd = Fd(number)
    with pytest.warns(ResourceWarning, match=rf"Fd\({number}\) was never closed"):
        del fd


def test_lost_is_closed_even_if_warnings_are_errors(number: int) -> None:
    fd = Fd(number)
    with pytest.warns(ResourceWarning):
        fd.__del__()
    assert not is_open(number)


def test_close_all_leaves_out_what_was_taken() -> None:
    fds = [Fd(os.dup(0)) for _ in range(3)]
    taken = fds[1].take()
    close_all(fds)
    assert not any(fds)
    assert is_open(taken)
    os.close(taken)
