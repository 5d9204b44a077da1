"""The back-end's own requests: what a front-end answers, and what it only takes notice of."""

import asyncio
import inspect
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from vhostd.errors import FrontendError, RefusedRequest
from vhostd.frontend.frontend import Frontend
from vhostd.vhost_user.messages import BACK_END, BACKEND_REQUESTS, CONFIG_CHANGE_MSG
from vhostd.wire.calls import Call, Reply, answer, by_number
from vhostd.wire.channel import Channel
from vhostd.wire.fds import close_all
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64, P, Row

CONFIG_CHANGE = answer(CONFIG_CHANGE_MSG, lambda _: None)


class BackendRequests:
    """Serves the channel of SET_BACKEND_REQ_FD from `connect` to `close`, by a table of calls.

    A call raises RefusedRequest for what it cannot do. What no call answers is refused, but for a
    CONFIG_CHANGE_MSG. `told` waits for a request of a kind, whether it was answered or refused.

    `failure` is what the back-end did wrong, and why it is served no more.
    """

    def __init__(self, frontend: Frontend, calls: Iterable[Call] = ()) -> None:
        self.failure: Exception | None = None
        self._frontend = frontend
        self._calls = by_number((CONFIG_CHANGE, *calls))
        self._told: defaultdict[int, asyncio.Queue[Any]] = defaultdict(asyncio.Queue)
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Takes the back-end's requests from now on. RefusedRequest if it makes none."""
        self._channel = await self._frontend.take_requests()
        self._task = asyncio.create_task(self._serve(self._channel), name="back-end's requests")

    async def told(self, row: Row[P, Any]) -> P:
        """The payload of the next request of this kind; TimeoutError past the front-end's patience."""
        async with asyncio.timeout(self._frontend.patience):
            payload: P = await self._told[row.request].get()
        return payload

    async def close(self) -> None:
        """Closes the channel; idempotent. Raises what a call has raised beside RefusedRequest."""
        if self._task is not None and self._channel is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._channel.close()
            if not self._task.cancelled():
                self._task.result()

    async def _serve(self, channel: Channel) -> None:
        try:
            while (message := await channel.receive()) is not None:
                try:
                    await self._handle(channel, message)
                finally:
                    message.close()
        except (FrontendError, ConnectionError) as error:
            self.failure = error
            channel.close()

    async def _handle(self, channel: Channel, message: Message) -> None:
        row = BACKEND_REQUESTS.get(message.request)
        reply: Reply[Any] = Reply(U64(1), [])
        try:
            if row is None:
                raise RefusedRequest(f"request {message.request}")
            payload = row.admit(message.payload, len(message.fds), self._frontend.protocol_features)
            self._told[row.request].put_nowait(payload)
            reply = await self._answer(row, payload, message)
        except RefusedRequest:
            pass
        try:
            if message.needs_reply or (row is not None and row.reply is not None):
                data = BACK_END.encode(message.request, reply.payload, reply=True)
                await channel.send(data, tuple(fd.fileno() for fd in reply.fds))
        finally:
            close_all(reply.fds)

    async def _answer(self, row: Row[Any, Any], payload: Any, message: Message) -> Reply[Any]:
        if (call := self._calls.get(row.request)) is None:
            raise RefusedRequest(f"{row} is not answered here")
        given = call.answer(payload, message.fds)
        if inspect.isawaitable(given):
            given = await given
        if isinstance(given, Reply):
            return given
        return Reply(U64(0) if given is None else given, [])
