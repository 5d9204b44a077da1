"""A relay between two socket pairs, and what it hears."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vhostd.trace.end import End
from vhostd.trace.entries import AnyEntry, Message, Note
from vhostd.trace.session import Session
from vhostd.wire.fds import Fd


class Traced:
    """A front-end's and a back-end's end, with the tracer between them."""

    def __init__(self, front: socket.socket, back: socket.socket) -> None:
        self.front = front
        self.back = back
        self.told: list[AnyEntry] = []

    @property
    def messages(self) -> list[Message]:
        return [each for each in self.told if isinstance(each, Message)]

    @property
    def notes(self) -> list[str]:
        return [each.note for each in self.told if isinstance(each, Note)]


@asynccontextmanager
async def traced(*, memory: bool = False) -> AsyncIterator[Traced]:
    """Both ends are closed at the end, and the session has ended then."""
    front, ours = socket.socketpair()
    theirs, back = socket.socketpair()
    made = Traced(front, back)
    session = Session(1, lambda: 0.0, made.told.append, memory=memory)
    running = asyncio.create_task(session.run(ours, theirs))
    try:
        yield made
    finally:
        front.close()
        back.close()
        await running


async def take(sock: socket.socket, size: int) -> tuple[bytes, list[Fd]]:
    """So many bytes, or what comes before the end; and all fds with them."""
    end, data, fds = End(sock), b"", list[Fd]()
    while len(data) < size:
        try:
            more, came, complete = end.read(size - len(data))
        except BlockingIOError:
            await end.readable()
            continue
        assert complete
        fds += came
        if not more:
            break
        data += more
    return data, fds


async def put(sock: socket.socket, data: bytes, *fds: int) -> None:
    """Sends all bytes, and copies of the fds with the first."""
    await End(sock).write(data, [Fd(socket.dup(fd)) for fd in fds])
