"""Two connections, one behind the other: what one side sends, the other gets, byte for byte, fd for fd.

What comes in one piece goes on in one piece, as far as that can be told. A header goes on when it is whole.
"""

import asyncio
import socket
from typing import Protocol

from vhostd.trace.cutting import Cut, Cutter
from vhostd.trace.end import End
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.framing import Dialect

PIECE = 1 << 18  # bytes to hold at most


class Ear(Protocol):
    """Hears what one side sends, before the other side gets it."""

    def came(self, fds: list[Fd]) -> None:
        """Fds came with the message that comes at present. They stay the relay's."""

    def must_hold(self, request: int) -> bool:
        """Whether a message of this request is to be heard as a whole, before a byte of it goes on."""

    def heard(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        """A message is whole. Takes those of its fds that have not gone on yet, and returns what goes on."""

    def noted(self, text: str) -> None:
        """Something happened that is no message."""


class Direction:
    """What one side sends to the other."""

    def __init__(self, source: End, sink: End, dialect: Dialect, ear: Ear) -> None:
        self._source = source
        self._sink = sink
        self._cutter = Cutter(dialect)
        self._ear = ear
        self._held = bytearray()
        self._fds: list[Fd] = []

    async def run(self) -> None:
        """Passes all on, until the source has no more or the sink takes no more."""
        try:
            while self._fill():
                if not self._is_held_back():
                    await self._pass_on()
                await self._source.readable()
            await self._end()
        except OSError as error:
            if not isinstance(error, ConnectionError):
                self._ear.noted(f"cannot be passed on: {error.strerror}")
            self._source.shut(socket.SHUT_RD)
        finally:
            close_all(self._fds)

    def _fill(self) -> bool:
        """Reads what is there, up to the end of a message; False if no more will come."""
        while len(self._held) < PIECE:
            try:
                data, fds, complete = self._source.read(min(self._cutter.wants, PIECE))
            except BlockingIOError:
                return True
            if not complete:
                self._ear.noted("the kernel could not give us all fds")
            if not data:
                return False
            if self._take(data, fds):
                return True
        return True

    def _take(self, data: bytes, fds: list[Fd]) -> bool:
        """Whether a message is whole now."""
        self._held += data
        self._fds += fds
        if fds and not self._cutter.is_lost:
            self._ear.came(fds)
        was_lost = self._cutter.is_lost
        message = self._cutter.feed(data)
        if self._cutter.is_lost and not was_lost:
            self._ear.noted(f"no message begins with {self._held[-12:].hex()}: the rest is passed on unread")
        if message is None:
            return False
        fds, self._fds = self._fds, []
        self._fds = self._ear.heard(message, fds)
        return True

    def _is_held_back(self) -> bool:
        """Whether more must come before anything goes on."""
        coming = self._cutter.message
        if coming is None:
            return not self._cutter.is_between
        return len(self._held) < PIECE and self._ear.must_hold(coming.request)

    async def _pass_on(self) -> None:
        data, fds = self._held, self._fds
        self._held, self._fds = bytearray(), []
        await self._sink.write(data, fds)

    async def _end(self) -> None:
        """The source has ended: what is held goes on, and the sink is told."""
        if not self._cutter.is_between:
            self._ear.noted("ends in the middle of a message")
        await self._pass_on()
        self._sink.shut(socket.SHUT_RDWR if self._source.is_gone else socket.SHUT_WR)


async def relay(one: Direction, other: Direction) -> None:
    """Runs both directions to their ends."""
    async with asyncio.TaskGroup() as group:
        group.create_task(one.run())
        group.create_task(other.run())
