"""A side of a connection that speaks and hears whole messages, and judges none."""

import socket
from collections.abc import Sequence

from vhostd.trace.cutting import Cut, Cutter
from vhostd.trace.end import End
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.framing import Dialect


class Voice:
    """Owns the socket until `close`."""

    def __init__(self, sock: socket.socket, dialect: Dialect) -> None:
        self._end = End(sock)
        self._cutter = Cutter(dialect)
        self._fds: list[Fd] = []

    async def say(self, message: Cut, fds: Sequence[Fd] = ()) -> None:
        """Sends a message, and closes the fds; raises OSError if the peer has gone."""
        await self._end.write(message.header + message.payload, fds)

    async def hear(self) -> tuple[Cut, list[Fd]] | None:
        """The next message, and its fds, which are the caller's; None if no more come."""
        while not self._cutter.is_lost:
            try:
                data, fds, _ = self._end.read(self._cutter.wants)
            except BlockingIOError:
                await self._end.readable()
                continue
            self._fds += fds
            if not data:
                break
            if message := self._cutter.feed(data):
                fds, self._fds = self._fds, []
                return message, fds
        return None

    def close(self) -> None:
        """Closes the socket, and the fds of a message that never became whole."""
        close_all(self._fds)
        self._end.close()
