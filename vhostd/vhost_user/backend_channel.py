"""Requests from the back-end to the front-end, over the socket of SET_BACKEND_REQ_FD."""

import asyncio
import logging

from vhostd.vhost_user.messages import BACK_END, SET_BACKEND_REQ_FD
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import encode
from vhostd.wire.rows import P, Row
from vhostd.wire.sockets import connected_stream

log = logging.getLogger(__name__)


class BackendChannel:
    """Sends requests, one at a time.

    It asks for no acks: nothing depends on them so far, and to a front-end that sends none, as older Cloud
    Hypervisors, the first request would be the last.
    """

    def __init__(self, fd: Fd) -> None:
        """Raises RefusedRequest, leaving `fd` to the caller, if it is no connected stream socket."""
        sock = connected_stream(fd, SET_BACKEND_REQ_FD)
        self._channel = Channel(sock, BACK_END, replies=True)
        self._turn = asyncio.Lock()

    async def request(self, row: Row[P, None], payload: P) -> None:
        """Sends a request; raises ConnectionError once the front-end has gone."""
        async with self._turn:
            log.debug("> backend %s %s", row, payload)
            await self._channel.send(encode(row.request, payload))

    def close(self) -> None:
        """Closes the socket; idempotent."""
        self._channel.close()
