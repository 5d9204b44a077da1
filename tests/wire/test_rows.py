"""What a row of a message table admits: feature, fds, and a payload that is long enough."""

from collections.abc import Iterable
from typing import Any

import pytest

from vhostd.errors import MalformedMessage, UnknownRequest
from vhostd.vhost_user import messages
from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_REQUESTS,
    FRONT_END,
    REQUESTS,
    CryptoSession,
)
from vhostd.wire.framing import (
    MAX_FDS,
)
from vhostd.wire.rows import Empty, Row, rows_of

ROWS = [*REQUESTS.values(), *BACKEND_REQUESTS.values()]
EVERYTHING = (1 << 64) - 1

# A payload of each that is not a Layout, which knows its size.
SMALLEST = {"MemoryTable": 8, "ConfigSpace": 12, "CryptoSession": 8}


def each_row(rows: Iterable[Row[Any, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", list(rows), ids=lambda row: f"{row.request}-{row}")


def size_of(row: Row[Any, Any]) -> int:
    """The size of a payload of zeros that the row admits."""
    return int(getattr(row.payload, "SIZE", 0)) or SMALLEST.get(row.payload.__name__, 0)


@each_row(ROWS)
def test_a_row_admits_its_own(row: Row[Any, Any]) -> None:
    payload = bytes(size_of(row))
    for count in row.fds:
        assert row.admit(payload, count, EVERYTHING).pack() == payload


@each_row(row for row in ROWS if size_of(row))
def test_a_row_refuses_a_payload_too_short(row: Row[Any, Any]) -> None:
    size = size_of(row) - row.padding - 1
    with pytest.raises(MalformedMessage, match=f"{row} with a payload of {size} bytes"):
        row.admit(bytes(size), row.fds[0], EVERYTHING)


@each_row(row for row in ROWS if row.payload is not CryptoSession)  # which may be as long as it likes
def test_a_row_ignores_what_is_behind_its_payload(row: Row[Any, Any]) -> None:
    payload = bytes(size_of(row))
    assert row.admit(payload + b"room", row.fds[0], EVERYTHING).pack() == payload


@each_row(row for row in ROWS if row.fds[0] > 0)
def test_a_row_refuses_too_few_fds(row: Row[Any, Any]) -> None:
    with pytest.raises(MalformedMessage, match=f"{row} with 0 fds, not 1"):
        row.admit(bytes(size_of(row)), 0, EVERYTHING)


@each_row(ROWS)
def test_a_row_refuses_too_many_fds(row: Row[Any, Any]) -> None:
    for count in range(row.fds[-1] + 1, MAX_FDS + 2):
        with pytest.raises(MalformedMessage, match=f"{row} with {count} fds, not"):
            row.admit(bytes(size_of(row)), count, EVERYTHING)


@each_row(row for row in ROWS if row.needs is not None)
def test_a_row_is_unknown_without_its_feature(row: Row[Any, Any]) -> None:
    assert row.needs is not None
    with pytest.raises(UnknownRequest, match=f"{row} without {row.needs.name} negotiated"):
        row.admit(bytes(size_of(row)), row.fds[0], EVERYTHING & ~(1 << row.needs))
    assert row.admit(bytes(size_of(row)), row.fds[0], 1 << row.needs)


@each_row(row for row in ROWS if row.needs is None)
def test_a_row_that_needs_no_feature_is_always_known(row: Row[Any, Any]) -> None:
    assert row.admit(bytes(size_of(row)), row.fds[0], 0)


# --- Replies --------------------------------------------------------------------------------------------


@each_row(row for row in ROWS if getattr(row.reply, "SIZE", 0) > 0)
def test_a_reply_is_long_enough_and_what_is_behind_it_is_ignored(row: Row[Any, Any]) -> None:
    assert row.reply is not None
    payload = bytes(row.reply.SIZE)
    count = row.reply_fds[0]
    for data in (payload, payload + b"room"):
        assert row.admit_reply(data, count).pack() == payload
    with pytest.raises(MalformedMessage, match=f"the reply to {row} has {count} fds|has .* bytes"):
        row.admit_reply(payload[: -row.padding - 1], count)


@each_row(row for row in ROWS if row.reply is not None)
def test_a_reply_has_as_many_fds_as_the_row_says(row: Row[Any, Any]) -> None:
    with pytest.raises(MalformedMessage, match=f"the reply to {row} has 3 fds"):
        row.admit_reply(bytes(64), 3)


def test_the_rows_of_a_module_get_its_names() -> None:
    first, second = Row(1, Empty), Row(2, Empty)
    assert str(first) == "request 1"
    table = rows_of({"a": 5, "FIRST": first, "SECOND": second, "GET_FEATURES": messages.GET_FEATURES})
    assert table == {1: first, 2: second}
    assert [str(row) for row in table.values()] == ["FIRST", "SECOND"]


def test_a_row_belongs_to_one_table() -> None:
    assert rows_of(vars(messages)) == {}
    assert BACK_END.name(2) == "CONFIG_CHANGE_MSG"
    assert FRONT_END.name(2) == "SET_FEATURES"
