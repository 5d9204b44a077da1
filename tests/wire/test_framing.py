"""Bytes and fds to messages.

Invariant: any bytes in any pieces give messages or MalformedMessage, the same ones however they are cut; no
fd is lost or closed twice.
"""

import os
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.errors import MalformedMessage
from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_REQUESTS,
    FRONT_END,
    REQUESTS,
    SET_VRING_KICK,
    SET_VRING_NUM,
    VringState,
)
from vhostd.wire.fds import Fd
from vhostd.wire.framing import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD,
    NEED_REPLY,
    REPLY,
    VERSION,
    Message,
    MessageReader,
)
from vhostd.wire.rows import U64, Row

ROWS = [*REQUESTS.values(), *BACKEND_REQUESTS.values()]
EVERYTHING = (1 << 64) - 1

# A payload of each that is not a Layout, which knows its size.
SMALLEST = {"MemoryTable": 8, "ConfigSpace": 12, "CryptoSession": 8}


def each_row(rows: Iterable[Row[Any, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", list(rows), ids=lambda row: f"{type(row.request).__name__}.{row}")


def header(request: int = 1, flags: int = VERSION, size: int = 0) -> bytes:
    return HEADER.pack(request, flags, size)


def size_of(row: Row[Any, Any]) -> int:
    """The size of a payload of zeros that the row admits."""
    return int(getattr(row.payload, "SIZE", 0)) or SMALLEST.get(row.payload.__name__, 0)


def some_fds(count: int) -> list[Fd]:
    return [Fd(os.dup(0)) for _ in range(count)]


def outcome(data: bytes, cuts: list[int]) -> tuple[list[tuple[int, int, bytes]], str, int]:
    """What a reader makes of `data`: its messages, its complaint, and how many bytes it would like to have.

    It gets no more at a time than it wants, nor than to the next of the cuts.
    """
    reader = MessageReader(FRONT_END)
    messages: list[tuple[int, int, bytes]] = []
    at = 0
    while at < len(data):
        cut = min((cut for cut in cuts if cut > at), default=len(data))
        piece = data[at : min(at + reader.wants, cut)]
        try:
            message = reader.feed(piece, [])
        except MalformedMessage as error:
            return messages, str(error), 0
        at += len(piece)
        if message is not None:
            messages.append((message.request, message.flags, message.payload))
    return messages, "", reader.wants


# --- Headers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (header(flags=0), "GET_FEATURES of protocol version 0, not 1"),
        (header(flags=2), "GET_FEATURES of protocol version 2, not 1"),
        (header(flags=3), "GET_FEATURES of protocol version 3, not 1"),
        (header(flags=VERSION | REPLY), "GET_FEATURES with the reply flag"),
        (header(flags=VERSION | 0x10), "GET_FEATURES with reserved flags set: 0x11"),
        (header(flags=VERSION | 1 << 31), "GET_FEATURES with reserved flags set"),
        (header(size=MAX_PAYLOAD + 1), "GET_FEATURES with a payload of 4097 bytes, more than 4096"),
        (header(size=0xFFFF_FFFF), "GET_FEATURES with a payload of 4294967295 bytes"),
        (bytes(HEADER.size), "request 0 of protocol version 0"),
    ],
)
def test_a_header_that_cannot_be_one_is_malformed(data: bytes, complaint: str) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        MessageReader(FRONT_END).feed(data, [])


def test_where_replies_are_due_a_request_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="GET_FEATURES without the reply flag"):
        MessageReader(FRONT_END, replies=True).feed(header(), [])
    assert MessageReader(FRONT_END, replies=True).feed(header(flags=VERSION | REPLY), [])


def test_a_header_is_judged_before_its_payload_is_awaited() -> None:
    reader = MessageReader(FRONT_END)
    assert reader.feed(header(size=MAX_PAYLOAD), []) is None
    assert reader.wants == MAX_PAYLOAD


def test_unknown_requests_are_messages_all_the_same() -> None:
    message = MessageReader(FRONT_END).feed(header(request=4711, flags=VERSION | NEED_REPLY), [])
    assert message is not None
    assert (message.request, message.payload, message.needs_reply) == (4711, b"", True)


def test_requests_are_named_by_whose_they_are() -> None:
    assert FRONT_END.name(12) == "SET_VRING_KICK"
    assert BACK_END.name(2) == "CONFIG_CHANGE_MSG"
    assert BACK_END.name(12) == "request 12"


def test_the_largest_payload_of_the_table_fits() -> None:
    sizes = [getattr(layout, "SIZE", 0) for row in ROWS for layout in (row.payload, row.reply)]
    assert max(sizes) <= MAX_PAYLOAD
    assert max(row.fds[-1] for row in ROWS) == MAX_FDS


@pytest.mark.parametrize(
    ("reply", "need_reply", "flags"), [(False, False, 1), (True, False, 5), (False, True, 9)]
)
def test_encoding_sets_the_flags(*, reply: bool, need_reply: bool, flags: int) -> None:
    data = FRONT_END.encode(SET_VRING_NUM.request, VringState(1, 2), reply=reply, need_reply=need_reply)
    assert data == HEADER.pack(8, flags, 8) + VringState(1, 2).pack()


# --- Any bytes ------------------------------------------------------------------------------------------

VALID = st.builds(
    lambda request, flags, payload: HEADER.pack(request, flags, len(payload)) + payload,
    st.integers(0, 50),
    st.sampled_from([VERSION, VERSION | NEED_REPLY]),
    st.binary(max_size=50),
)
STREAMS = st.lists(st.one_of(VALID, VALID, VALID, st.binary(max_size=20)), max_size=6).map(b"".join)


@given(data=st.one_of(STREAMS, st.binary(max_size=100)), cuts=st.lists(st.integers(0, 200), max_size=20))
def test_how_a_stream_is_cut_does_not_matter(data: bytes, cuts: list[int]) -> None:
    assert outcome(data, cuts) == outcome(data, []) == outcome(data, list(range(len(data))))


@given(messages=st.lists(VALID, max_size=5), rest=st.integers(0, 11))
def test_every_message_comes_whole_and_in_order(messages: list[bytes], rest: int) -> None:
    found, complaint, wants = outcome(b"".join(messages) + header()[:rest], [])
    assert [HEADER.pack(request, flags, len(data)) + data for request, flags, data in found] == messages
    assert (complaint, wants) == ("", HEADER.size - rest)


@given(messages=st.lists(VALID, min_size=2, max_size=2), cut=st.integers(0, 70))
def test_never_wants_more_than_the_message(messages: list[bytes], cut: int) -> None:
    """Else bytes of the next message, and its fds, would come along."""
    reader = MessageReader(FRONT_END)
    left = first = messages[0]
    while left:
        assert 0 < reader.wants <= len(left)
        piece = left[: min(reader.wants, max(cut, 1))]
        left = left[len(piece) :]
        assert (reader.feed(piece, []) is None) == bool(left)
    assert reader.between_messages
    assert len(first) >= HEADER.size


# --- Fds ------------------------------------------------------------------------------------------------


def kick(fds: list[Fd]) -> Message:
    data = FRONT_END.encode(SET_VRING_KICK.request, U64(0))
    reader = MessageReader(FRONT_END)
    assert reader.feed(data[: HEADER.size], fds) is None
    message = reader.feed(data[HEADER.size :], [])
    assert message is not None
    reader.close()
    return message


def test_fds_belong_to_the_message_that_they_came_with() -> None:
    fds = some_fds(2)
    message = kick(fds)
    assert message.fds == fds
    assert all(fds)
    message.close()
    assert not any(fds)


def test_closing_a_message_leaves_what_was_taken() -> None:
    message = kick(some_fds(2))
    taken = Fd(message.fds[0].take())
    message.close()
    assert taken
    taken.close()


def test_the_next_message_has_none_of_them() -> None:
    reader = MessageReader(FRONT_END)
    first = reader.feed(header(), some_fds(1))
    second = reader.feed(header(), [])
    assert first is not None
    assert second is not None
    assert (len(first.fds), len(second.fds)) == (1, 0)
    first.close()


@pytest.mark.parametrize("data", [b"", header()[:5], header(size=8), header(flags=0)])
def test_closing_the_reader_closes_the_fds_of_a_cut_message(data: bytes) -> None:
    reader = MessageReader(FRONT_END)
    fds = some_fds(2)
    try:
        reader.feed(data, fds)
    except MalformedMessage:
        assert data == header(flags=0)
    reader.close()
    assert not any(fds)
    reader.close()


def test_more_fds_than_any_message_has_are_malformed_also_piece_by_piece() -> None:
    reader = MessageReader(FRONT_END)
    fds = some_fds(MAX_FDS + 1)
    reader.feed(header(size=8), fds[:MAX_FDS])
    with pytest.raises(MalformedMessage, match=f"more than {MAX_FDS} fds"):
        reader.feed(b"\0", fds[MAX_FDS:])
    reader.close()
    assert not any(fds)
