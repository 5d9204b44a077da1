"""Requests from the back-end to the front-end, over the socket of SET_BACKEND_REQ_FD."""

import asyncio
import logging

from vhostd.channel import Channel
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.fds import Fd
from vhostd.framing import encode
from vhostd.messages import SET_BACKEND_REQ_FD, U64, BackendRequest, P, Row
from vhostd.sockets import connected_stream

log = logging.getLogger(__name__)


class BackendChannel:
    """Sends requests, one at a time; `acked` says whether REPLY_ACK was negotiated."""

    def __init__(self, fd: Fd, *, acked: bool) -> None:
        """Raises RefusedRequest, leaving `fd` to the caller, if it is no connected stream socket."""
        sock = connected_stream(fd, SET_BACKEND_REQ_FD)
        self._channel = Channel(sock, BackendRequest, replies=True)
        self._acked = acked
        self._turn = asyncio.Lock()

    async def request(self, row: Row[P, None], payload: P) -> None:
        """Sends a request and waits for its ack, if acks were negotiated.

        Raises RefusedRequest if the front-end says no, ConnectionError once it has gone.
        """
        async with self._turn:
            log.debug("> backend %s %s", row, payload)
            await self._channel.send(encode(row.request, payload, need_reply=self._acked))
            if self._acked:
                await self._await_ack(row)

    def close(self) -> None:
        """Closes the socket; idempotent."""
        self._channel.close()

    async def _await_ack(self, row: Row[P, None]) -> None:
        message = await self._channel.receive()
        if message is None:
            raise ConnectionResetError("the front-end closed the back-end's request socket")
        message.close()
        if message.request != row.request or len(message.payload) != U64.SIZE:
            raise MalformedMessage(f"request {message.request} where the ack of {row} was due")
        if value := U64.unpack(message.payload).value:
            raise RefusedRequest(f"the front-end refused {row} with {value}")
