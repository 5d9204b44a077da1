"""Turns bytes and fds into messages and back. Nothing here uses a socket or a session.

    12 bytes: request u32, flags u32, size of the payload u32; then the payload

The reader says how many bytes to read next. A larger recvmsg would be wrong: it may return a message without
fds together with the next one, and then nobody can tell which of the two has the fds.
"""

import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vhostd.errors import MalformedMessage
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.rows import Payload, Row

HEADER = struct.Struct("=III")
MAX_PAYLOAD = 4096  # the largest payload of the table, with room for a crypto session's keys
MAX_FDS = 32  # the most of any row: SET_MEM_TABLE

VERSION = 0x1  # of vhost-user
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8


class Dialect(NamedTuple):
    """The messages of one side of a connection: their rows by number, and their version."""

    requests: Mapping[int, Row[Any, Any]]
    version: int = VERSION

    def name(self, request: int) -> str:
        """A request's name for log lines and errors, or its number."""
        return str(self.requests.get(request) or f"request {request}")

    def encode(
        self,
        request: int,
        payload: Payload,
        *,
        reply: bool = False,
        need_reply: bool = False,
        most: int | None = None,
        following: int = 0,
    ) -> bytes:
        """A message's bytes, with at most `most` bytes of payload. The caller sends `following` more."""
        data = payload.pack()[:most]
        flags = self.version | (REPLY if reply else 0) | (NEED_REPLY if need_reply else 0)
        return HEADER.pack(request, flags, len(data) + following) + data


class Message:
    """One message as received: its numbers and bytes, not checked yet, and its fds."""

    __slots__ = ("fds", "flags", "payload", "request")

    def __init__(self, request: int, flags: int, payload: bytes, fds: list[Fd]) -> None:
        self.request = request
        self.flags = flags
        self.payload = payload
        self.fds = fds

    @property
    def needs_reply(self) -> bool:
        """Whether the sender asked for an ack. The flag counts only once REPLY_ACK is negotiated."""
        return bool(self.flags & NEED_REPLY)

    def close(self) -> None:
        """Closes the fds that nobody took."""
        close_all(self.fds)


class MessageReader:
    """Assembles messages of a dialect. With `replies` they must be replies."""

    def __init__(self, dialect: Dialect, *, replies: bool = False) -> None:
        self._dialect = dialect
        self._reply_flag = REPLY if replies else 0
        self._data = b""
        self._fds: list[Fd] = []
        self.wants = HEADER.size

    @property
    def between_messages(self) -> bool:
        """Whether no message is incomplete, so that the peer may end the connection."""
        return not self._data

    def feed(self, data: bytes, fds: Iterable[Fd]) -> Message | None:
        """Takes at most `wants` bytes and the fds that came with them; returns a message when one is whole.

        Raises MalformedMessage for a wrong header, and for more fds than any message has; the reader is of no
        use after that. The fds belong to the reader, then to the message.
        """
        self._fds += fds
        if len(self._fds) > MAX_FDS:
            raise MalformedMessage(f"more than {MAX_FDS} fds with one message")
        self._data += data
        self.wants -= len(data)
        if self.wants:
            return None
        if len(self._data) == HEADER.size:
            self.wants = self._check_header()
            if self.wants:
                return None
        return self._take()

    def close(self) -> None:
        """Closes the fds of a message that never became whole."""
        close_all(self._fds)

    def _check_header(self) -> int:
        request, flags, size = HEADER.unpack(self._data)
        name = self._dialect.name(request)
        version = self._dialect.version
        if flags & VERSION_MASK != version:
            raise MalformedMessage(f"{name} of protocol version {flags & VERSION_MASK}, not {version}")
        if flags & REPLY != self._reply_flag:
            raise MalformedMessage(f"{name} {'without' if self._reply_flag else 'with'} the reply flag")
        if flags & ~(VERSION_MASK | REPLY | NEED_REPLY):
            raise MalformedMessage(f"{name} with reserved flags set: {flags:#x}")
        if size > MAX_PAYLOAD:
            raise MalformedMessage(f"{name} with a payload of {size} bytes, more than {MAX_PAYLOAD}")
        return int(size)

    def _take(self) -> Message:
        request, flags, _size = HEADER.unpack_from(self._data)
        message = Message(request, flags, self._data[HEADER.size :], self._fds)
        self._data, self._fds, self.wants = b"", [], HEADER.size
        return message
