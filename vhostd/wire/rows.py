"""A row of a message table: checks a message's payload, fds and feature.

A payload must be long enough. Bytes after its end are ignored in every row, because real peers send their
whole buffer, not only the part that they use.
"""

import struct
from collections.abc import Mapping
from typing import Any, Generic, Protocol, Self, TypeVar, overload

from vhostd.errors import MalformedMessage, UnknownRequest
from vhostd.wire.layout import Layout, u64


class Payload(Protocol):
    """The methods of a payload class. `Layout` has them."""

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Reads the payload; raises struct.error if `data` has another size than it must."""

    def pack(self) -> bytes:
        """The payload's bytes."""


class Empty(Layout, byteorder="="):
    """No payload at all."""


class U64(Layout, byteorder="="):
    """A single 64-bit integer."""

    value: u64


P = TypeVar("P", bound=Payload)
R = TypeVar("R", bound=Payload | None)
NO_FDS = range(1)
ONE_FD = range(1, 2)


class Bit(int):
    """The number of a feature's bit, which knows the name that it has in its class."""

    name: str

    def __set_name__(self, owner: type[object], name: str) -> None:
        self.name = name


class Row(Generic[P, R]):
    """One message of a protocol, with its number.

    `name` is the name of the row in its module (`rows_of`). `fds` and `reply_fds` are the numbers of fds
    allowed with the request and its reply. `needs` is the bit of the feature that the request needs.
    `refusal` is the payload of a reply that refuses the request, if the message has such a reply. The last
    `padding` bytes of the payload may be missing.
    """

    @overload
    def __init__(
        self: "Row[P, None]",
        request: int,
        payload: type[P],
        *,
        fds: range = NO_FDS,
        needs: Bit | None = None,
        padding: int = 0,
    ) -> None: ...

    @overload
    def __init__(
        self,
        request: int,
        payload: type[P],
        *,
        reply: type[R],
        fds: range = NO_FDS,
        needs: Bit | None = None,
        reply_fds: range = NO_FDS,
        refusal: Payload | None = None,
        padding: int = 0,
    ) -> None: ...

    def __init__(
        self,
        request: int,
        payload: type[P],
        *,
        reply: type[R] | None = None,
        fds: range = NO_FDS,
        needs: Bit | None = None,
        reply_fds: range = NO_FDS,
        refusal: Payload | None = None,
        padding: int = 0,
    ) -> None:
        self.request = request
        self.name = ""  # until it is in a table
        self.payload = payload
        self.reply = reply
        self.fds = fds
        self.needs = needs
        self.reply_fds = reply_fds
        self.refusal = refusal
        self.padding = padding

    def exists(self, features: int) -> bool:
        """Whether the message may be used with these features (a mask) negotiated."""
        return self.needs is None or bool(features >> self.needs & 1)

    def admit(self, payload: bytes, fd_count: int, negotiated: int) -> P:
        """The decoded payload of a message that is allowed.

        Raises UnknownRequest if `negotiated` (a feature mask) lacks the feature that the row needs, and
        MalformedMessage for a payload that is too short, or a wrong number of fds.
        """
        if self.needs is not None and not self.exists(negotiated):
            raise UnknownRequest(f"{self} without {self.needs.name} negotiated")
        if fd_count not in self.fds:
            raise MalformedMessage(f"{self} with {fd_count} fds, not {_span(self.fds)}")
        try:
            return self.payload.unpack(_fit(payload, self.payload, self.padding))
        except struct.error as error:
            raise MalformedMessage(f"{self} with a payload of {len(payload)} bytes: {error}") from None

    def admit_reply(self, payload: bytes, fd_count: int) -> R:
        """The decoded reply; the row must have one. Raises MalformedMessage as `admit` does."""
        if fd_count not in self.reply_fds:
            raise MalformedMessage(f"the reply to {self} has {fd_count} fds")
        layout: Any = self.reply
        try:
            reply: R = layout.unpack(_fit(payload, layout, self.padding))
        except struct.error as error:
            raise MalformedMessage(f"the reply to {self} has {len(payload)} bytes: {error}") from None
        return reply

    def __str__(self) -> str:
        return self.name or f"request {self.request}"


def rows_of(module: Mapping[str, object]) -> dict[int, Row[Any, Any]]:
    """A table, by number, of the rows in a module (its `vars()`) that are in no table yet. It names them."""
    rows = {name: row for name, row in module.items() if isinstance(row, Row) and not row.name}
    for name, row in rows.items():
        row.name = name
    return {row.request: row for row in rows.values()}


def _fit(payload: bytes, layout: object, padding: int) -> bytes:
    """A payload of fixed size, with its padding, without the bytes after it."""
    size: int = getattr(layout, "SIZE", len(payload))
    if len(payload) < size - padding:
        return payload
    return payload[:size].ljust(size, b"\0")


def _span(counts: range) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
