"""What a back-end says on a socket, message by message; most of it is passed over."""

import array
import os
import socket
from collections.abc import Callable

from vhostd.wire.framing import HEADER

PIECE = 1 << 16  # bytes read at a time
_HOW = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT  # the back-end may have an fd of the same socket
KEPT = 64  # bytes of a payload that are looked at
_ROOM = socket.CMSG_SPACE(32 * array.array("i").itemsize)

Heard = Callable[[int, int, int, bytes], None]  # request, flags, size, and the first bytes of the payload


class Listener:
    """Reads whole messages off a socket, which it owns, and has each `heard`. Their fds are closed."""

    def __init__(self, sock: socket.socket, heard: Heard) -> None:
        self.socket = sock
        self.is_open = True
        self._heard = heard
        self._data = b""
        self._skipped = 0  # bytes that belong to a message that has been heard

    def read(self) -> None:
        """Takes all that is there now."""
        while self.is_open:
            try:
                data, ancillary, _, _ = self.socket.recvmsg(PIECE, _ROOM, _HOW)
            except BlockingIOError:
                return
            except OSError:
                data, ancillary = b"", []
            for _, kind, content in ancillary:
                if kind == socket.SCM_RIGHTS:
                    for fd in array.array("i", content[: len(content) // 4 * 4]):
                        os.close(fd)
            self.is_open = bool(data)
            self._feed(data)

    def close(self) -> None:
        """Closes the socket; idempotent."""
        self.is_open = False
        self.socket.close()

    def _feed(self, data: bytes) -> None:
        skipped = min(self._skipped, len(data))
        self._skipped -= skipped
        self._data += data[skipped:]
        while len(self._data) >= HEADER.size:
            request, flags, size = HEADER.unpack_from(self._data)
            end = HEADER.size + size
            if len(self._data) < HEADER.size + min(size, KEPT):
                return
            self._skipped = max(0, end - len(self._data))
            payload, self._data = self._data[HEADER.size : end][:KEPT], self._data[end:]
            self._heard(request, flags, size, payload)
