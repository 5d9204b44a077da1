"""Cuts a stream into messages, as far as it is one of messages."""

from collections.abc import Mapping
from typing import Any

from vhostd.wire.framing import HEADER, MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION_MASK, Dialect
from vhostd.wire.rows import Row

ANY = 1 << 16  # bytes to read at once of what is not messages


class Cut:
    """One message, as far as it came. `payload` is the beginning of a long one, whose size is `size`."""

    def __init__(self, request: int, flags: int, size: int) -> None:
        self.request = request
        self.flags = flags
        self.size = size
        self.payload = b""
        self.left = size

    @property
    def header(self) -> bytes:
        """Its first bytes."""
        return HEADER.pack(self.request, self.flags, self.size)


class Cutter:
    """Takes the bytes of one direction. `wants` is how many to read at most, so that no message is passed.

    Reading more would glue one message to the fds of the next. `message` is the one that comes at present,
    once its header is whole. `is_lost` from the first header on that cannot be one: nobody knows where the
    next message begins then.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._header = b""
        self.message: Cut | None = None
        self.is_lost = False

    @property
    def wants(self) -> int:
        """How many bytes to read at most."""
        if self.is_lost:
            return ANY
        return self.message.left if self.message else HEADER.size - len(self._header)

    @property
    def is_between(self) -> bool:
        """Whether no message has begun that is not whole."""
        return self.is_lost or not (self._header or self.message)

    def feed(self, data: bytes) -> Cut | None:
        """Takes at most `wants` bytes; returns the message that is whole with them."""
        if self.is_lost:
            return None
        if self.message is None:
            self._header += data
            if len(self._header) < HEADER.size:
                return None
            request, flags, size = HEADER.unpack(self._header)
            self._header = b""
            self.is_lost = not self._makes_sense(flags)
            if self.is_lost:
                return None
            self.message, data = Cut(request, flags, size), b""
        message = self.message
        message.left -= len(data)
        message.payload += data[: max(0, kept(self._dialect.requests, message) - len(message.payload))]
        if message.left:
            return None
        self.message = None
        return message

    def _makes_sense(self, flags: int) -> bool:
        return flags & VERSION_MASK == self._dialect.version and not flags & ~(
            VERSION_MASK | REPLY | NEED_REPLY
        )


def kept(rows: Mapping[int, Row[Any, Any]], message: Cut) -> int:
    """How many bytes of a payload are of interest: not the pixels behind a display's struct."""
    row = rows.get(message.request)
    if row is None or message.size <= MAX_PAYLOAD:
        return MAX_PAYLOAD
    return max(getattr(layout, "SIZE", 0) for layout in (row.payload, row.reply))
