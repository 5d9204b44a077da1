"""A back-end that knows little: it closes the connection for what it was not made to answer."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from vhostd.frontend import Frontend
from vhostd.vhost_user.messages import (
    FRONT_END,
    GET_FEATURES,
    SET_BACKEND_REQ_FD,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
)
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64

LEAST = (
    *(SET_FEATURES, SET_OWNER, SET_MEM_TABLE, SET_VRING_NUM, SET_VRING_ADDR),
    *(SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR),
    SET_BACKEND_REQ_FD,
)


class Modest:
    """Serves one connection.

    `heard` are the requests that came, in order, with their flags and payloads. It replies while `replies` is
    set.
    """

    def __init__(self, sock: socket.socket, replies: Mapping[int, int]) -> None:
        self.heard: list[tuple[int, int, bytes]] = []
        self.fds: dict[int, Fd] = {}
        self.replies = asyncio.Event()
        self.replies.set()
        self._channel = Channel(sock, FRONT_END)
        self._table = replies

    async def run(self) -> None:
        """Answers until it hears what it does not know."""
        while (message := await self._channel.receive()) is not None:
            self.heard.append((message.request, message.flags, message.payload))
            for fd in message.fds:
                self.fds[message.request] = Fd(fd.take())
            if message.request in self._table:
                await self.replies.wait()
                reply = U64(self._table[message.request])
                await self._channel.send(FRONT_END.encode(message.request, reply, reply=True))
            elif message.request not in {row.request for row in LEAST}:
                break
        self._channel.close()

    def close(self) -> None:
        """Closes all fds."""
        for fd in self.fds.values():
            fd.close()


@asynccontextmanager
async def modest(
    features: int, replies: Mapping[int, int] | None = None
) -> AsyncIterator[tuple[Modest, Frontend]]:
    """One that offers these features, and gives these replies, by the request's number."""
    ours, theirs = socket.socketpair()
    backend = Modest(theirs, {GET_FEATURES.request: features, **(replies or {})})
    serving = asyncio.create_task(backend.run())
    frontend = Frontend(ours, patience=20)
    try:
        yield backend, frontend
    finally:
        frontend.close()
        await serving
        backend.close()
