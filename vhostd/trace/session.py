"""A front-end's connection through the tracer: its socket, the back-end's channel, and the GPU's display."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

from vhostd.errors import RefusedRequest
from vhostd.trace.cutting import Cut
from vhostd.trace.decoding import DIALECTS
from vhostd.trace.end import End
from vhostd.trace.entries import AnyEntry, Line, Message, Note, Side
from vhostd.trace.memory import MemoryWatch
from vhostd.trace.passed import PassedFd, describe
from vhostd.trace.relay import Direction, Ear, relay
from vhostd.vhost_user.messages import GPU_SET_SOCKET, SET_BACKEND_REQ_FD
from vhostd.wire.fds import Fd
from vhostd.wire.framing import MAX_FDS
from vhostd.wire.sockets import connected_stream

LINES = {SET_BACKEND_REQ_FD.request: Line.BACKEND, GPU_SET_SOCKET.request: Line.DISPLAY}


class Session:
    """One connection of a front-end, and the one to the back-end behind it."""

    def __init__(
        self, number: int, clock: Callable[[], float], tell: Callable[[AnyEntry], None], *, memory: bool
    ) -> None:
        """`clock` has the seconds since the trace began. With `memory`, what the rings hold is told too."""
        self.number = number
        self.clock = clock
        self.tell = tell
        self.watch = MemoryWatch(self) if memory else None
        self._channels: set[asyncio.Task[None]] = set()

    async def run(self, front: socket.socket, back: socket.socket) -> None:
        """Relays until both have ended. Owns the sockets."""
        try:
            await self._relay(front, back, Line.MAIN)
            for channel in self._channels:
                channel.cancel()
            await asyncio.gather(*self._channels, return_exceptions=True)
        finally:
            for channel in self._channels:
                channel.cancel()
            if self.watch:
                self.watch.close()

    def note(self, text: str) -> None:
        """Tells that something happened."""
        self.tell(Note(time=self.clock(), connection=self.number, note=text))

    def put_between(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        """Relays the socket that the front-end passes; returns what the back-end gets in its place."""
        if len(fds) != 1:
            return fds
        try:
            front = connected_stream(fds[0], message.request)
        except RefusedRequest:  # the back-end will say so
            return fds
        back, theirs = socket.socketpair()
        channel = asyncio.create_task(self._relay(front, back, LINES[message.request]))
        self._channels.add(channel)
        channel.add_done_callback(self._channels.discard)
        return [Fd(theirs.detach())]

    async def _relay(self, front: socket.socket, back: socket.socket, line: Line) -> None:
        with front, back:
            ends, dialect = (End(front), End(back)), DIALECTS[line]
            ears = _FrontEndEar(self, line, Side.FRONT_END), _Ear(self, line, Side.BACK_END)
            await relay(
                Direction(ends[0], ends[1], dialect, ears[0]), Direction(ends[1], ends[0], dialect, ears[1])
            )
        if line is not Line.MAIN:
            self.note(f"the {line} socket has ended")


class _Ear(Ear):
    """Tells what one side sends on one line."""

    def __init__(self, session: Session, line: Line, sender: Side) -> None:
        self._session = session
        self._line = line
        self._sender = sender
        self._passed: list[PassedFd] = []

    def came(self, fds: list[Fd]) -> None:
        self._passed += map(_described, fds[: MAX_FDS - len(self._passed)])

    def must_hold(self, request: int) -> bool:
        return False

    def heard(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        passed, self._passed = tuple(self._passed), []
        self._session.tell(
            Message(
                time=self._session.clock(),
                connection=self._session.number,
                line=self._line,
                sender=self._sender,
                request=message.request,
                flags=message.flags,
                size=message.size,
                payload=message.payload,
                fds=passed,
            )
        )
        return fds

    def noted(self, text: str) -> None:
        where = "" if self._line is Line.MAIN else f" on the {self._line} socket"
        self._session.note(f"what the {self._sender} sends{where}: {text}")


class _FrontEndEar(_Ear):
    """Beside that, puts us in the middle of what the front-end passes."""

    def must_hold(self, request: int) -> bool:
        watch = self._session.watch
        return self._line is Line.MAIN and (request in LINES or bool(watch and watch.must_hold(request)))

    def heard(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        if self._line is Line.MAIN:
            if message.request in LINES:
                fds = self._session.put_between(message, fds)
            elif self._session.watch:
                fds = self._session.watch.heard(message, fds)
        return super().heard(message, fds)


def _described(fd: Fd) -> PassedFd:
    with suppress(OSError):
        return describe(fd)
    return PassedFd(kind="unknown")
