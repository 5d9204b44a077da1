"""The bytes that wait, which compiled code keeps: as a model of them in Python says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user_console.transfers import Backlog

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.binary(max_size=40)),
        st.tuples(st.just("remove"), st.integers(0, 60)),
        st.tuples(st.just("most"), st.integers(0, 50)),
    )
)


@given(STEPS)
def test_the_last_bytes_are_kept(steps: list[tuple[str, bytes | int]]) -> None:
    backlog, model, most, dropped = Backlog(30), b"", 30, 0
    for step in steps:
        match step:
            case ("add", bytes(data)):
                backlog.add(data)
                model += data
            case ("remove", int(count)):
                backlog.remove(count)
                model = model[count:]
            case ("most", int(count)):
                backlog.most = most = count
        dropped += max(len(model) - most, 0)
        model = model[-most:] if most else b""
        assert (len(backlog), backlog.head(100), backlog.dropped) == (len(model), model, dropped)
        assert backlog.head(7) == model[:7]
        assert backlog.most == most


def test_memory_is_bounded_by_what_is_kept() -> None:
    """However much goes through it."""
    backlog = Backlog(1000)
    for _ in range(100_000):
        backlog.add(b"sixteen bytes at")
    assert backlog.head(2000) == (b"sixteen bytes at" * 63)[-1000:]
    assert backlog.dropped == 1_599_000


def test_nothing_is_kept() -> None:
    backlog = Backlog(0)
    backlog.add(b"dropped")
    assert (len(backlog), backlog.head(10), backlog.dropped) == (0, b"", 7)


@pytest.mark.parametrize("data", [None, "text"])
def test_only_bytes(data: object) -> None:
    with pytest.raises(TypeError):
        Backlog(8).add(data)  # type: ignore[arg-type]
