"""Golden bytes: each message of the table, written out by hand from the specification.

A vector is a text file: bytes in hexadecimal, then what they are. "name = value" is checked against the
decoded payload; "fds 1" says how many ride along.
"""

import os
import re
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_REQUESTS,
    FRONT_END,
    REQUESTS,
)
from vhostd.wire.fds import Fd
from vhostd.wire.framing import HEADER, NEED_REPLY, Message, MessageReader
from vhostd.wire.rows import U64, Row

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the vectors are little-endian, as all hosts are"
)

LINE = re.compile(r"(?P<bytes>[0-9a-f]{2}(?: [0-9a-f]{2})*)(?: \* (?P<times>\d+))?  +(?P<what>.+)")
FIELD = re.compile(r"([\w.]+) = (\w+)")
EVERYTHING = (1 << 64) - 1


class Vector:
    """One file of the `vectors` folder."""

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.reply = self.name.endswith(".reply")
        request = self.name.removesuffix(".reply")
        self.dialect = BACK_END if request.startswith("BACKEND_") else FRONT_END
        names = {request, request.removeprefix("BACKEND_")}
        self.row: Row[Any, Any] = next(row for row in self.dialect.requests.values() if row.name in names)
        self.fds = 0
        self.data = b""
        self.fields: dict[str, tuple[int, bytes]] = {}
        for line in path.read_text().splitlines():
            self._read(line)

    def _read(self, line: str) -> None:
        if line.startswith("#"):
            return
        if line.startswith("fds "):
            self.fds = int(line.removeprefix("fds "))
            return
        parsed = LINE.fullmatch(line)
        assert parsed, f"{self.name}: {line}"
        data = bytes.fromhex(parsed["bytes"]) * int(parsed["times"] or 1)
        if field := FIELD.match(parsed["what"]):
            self.fields[field[1]] = int(field[2], 0), data
        self.data += data

    @property
    def counts(self) -> range:
        """How many fds the row allows."""
        return self.row.reply_fds if self.reply else self.row.fds

    def decode(self, message: Message) -> Any:
        """The payload; a row without a reply of its own is answered by an ack."""
        if not self.reply:
            return self.row.admit(message.payload, self.fds, EVERYTHING)
        return (self.row.reply or U64).unpack(message.payload)

    def encode(self, message: Message) -> bytes:
        """The message's bytes, made anew."""
        payload, asks = self.decode(message), message.needs_reply
        return self.dialect.encode(message.request, payload, reply=self.reply, need_reply=asks)

    def reader(self) -> MessageReader:
        return MessageReader(self.dialect, replies=self.reply)


VECTORS = [Vector(path) for path in sorted((Path(__file__).parent / "vectors").iterdir())]
EACH = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)


def receive(reader: MessageReader, data: bytes, step: int) -> list[Message]:
    """Feeds `data` as a socket would that has up to `step` bytes at a time."""
    messages = []
    while data:
        size = min(reader.wants, step)
        if message := reader.feed(data[:size], []):
            messages.append(message)
        data = data[size:]
    return messages


def field(payload: Any, path: str) -> Any:
    return reduce(
        lambda value, name: value[int(name)] if name.isdecimal() else getattr(value, name),
        path.split("."),
        payload,
    )


@EACH
@pytest.mark.parametrize("step", [1, 5, 1 << 20], ids=["byte by byte", "by five bytes", "whole"])
def test_decodes_and_encodes_to_the_same_bytes(vector: Vector, step: int) -> None:
    (message,) = receive(vector.reader(), vector.data, step)
    assert message.request == vector.row.request
    payload = vector.decode(message)
    assert (
        FRONT_END.encode(message.request, payload, reply=vector.reply, need_reply=message.needs_reply)
        == vector.data
    )


@EACH
def test_decodes_to_the_fields_that_it_names(vector: Vector) -> None:
    (message,) = receive(vector.reader(), vector.data, 1 << 20)
    payload = vector.decode(message)
    for name, (value, data) in vector.fields.items():
        assert int.from_bytes(data, "little") == value, name
        found = field(payload, name)
        assert found == (value if isinstance(found, int) else data), name


@EACH
def test_ends_where_the_next_message_begins(vector: Vector) -> None:
    reader = vector.reader()
    (message,) = receive(reader, vector.data + vector.data[:7], 1 << 20)
    assert (
        FRONT_END.encode(
            message.request, vector.decode(message), reply=vector.reply, need_reply=message.needs_reply
        )
        == vector.data
    )
    assert not reader.between_messages
    assert reader.wants == HEADER.size - 7


@EACH
def test_brings_its_fds(vector: Vector) -> None:
    assert vector.fds in vector.counts
    reader = vector.reader()
    fds = [Fd(os.dup(0)) for _ in range(vector.fds)]
    message = reader.feed(vector.data[: HEADER.size], fds)
    if message is None:
        message = reader.feed(vector.data[HEADER.size :], [])
    assert message is not None
    assert message.fds == fds
    message.close()


@EACH
def test_is_shown_in_the_log(vector: Vector) -> None:
    (message,) = receive(vector.reader(), vector.data, 1 << 20)
    shown = str(vector.decode(message))
    assert all(name.split(".")[-1] in shown for name in vector.fields if name != "data")


def test_every_message_has_a_vector() -> None:
    have = {vector.row for vector in VECTORS if not vector.reply}
    assert have == {*REQUESTS.values(), *BACKEND_REQUESTS.values()}


def test_every_reply_has_a_vector() -> None:
    rows = [*REQUESTS.values(), *BACKEND_REQUESTS.values()]
    have = {vector.row for vector in VECTORS if vector.reply}
    assert have >= {row for row in rows if row.reply is not None}


def test_acks_answer_only_what_asked_for_them() -> None:
    """Each vector of an ack belongs to a request with need_reply set."""
    requests = {vector.row: vector for vector in VECTORS if not vector.reply}
    acks = [vector for vector in VECTORS if vector.reply and vector.row.reply is None]
    assert acks
    assert all(requests[ack.row].data[4] & NEED_REPLY for ack in acks)
