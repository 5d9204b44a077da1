"""The back-end's requests to the front-end, over the socket of SET_BACKEND_REQ_FD."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from vhostd.errors import MalformedMessage, UnknownRequest
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.messages import BACK_END, CONFIG_CHANGE_MSG, SET_BACKEND_REQ_FD, ProtocolFeature
from vhostd.virtio.link import Link
from vhostd.wire.calls import Call, Caller, Fds, Reply, answer_with_fds
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty, P, R, Row
from vhostd.wire.sockets import connected_stream

log = logging.getLogger(__name__)


class FrontendLink(Link):
    """Tells the front-end of config changes, and sends it the device's requests.

    `running` is set while any ring runs. While no ring runs the device is suspended, and a config change
    waits.
    """

    def __init__(self, agreed: Agreed, running: asyncio.Event) -> None:
        self._agreed = agreed
        self._running = running
        self._config_is_new = asyncio.Event()
        self._channel: Channel | None = None
        self._caller: Caller | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.calls: tuple[Call, ...] = (answer_with_fds(SET_BACKEND_REQ_FD, self.set_backend_req_fd),)

    async def set_backend_req_fd(self, _: Empty, fds: Fds) -> None:
        sock = connected_stream(fds[0], SET_BACKEND_REQ_FD)
        await self.close()
        self._channel = Channel(sock, BACK_END, replies=True)
        self._caller = caller = Caller(self._channel)
        self._tasks = [
            asyncio.create_task(self._tell_config_changes(caller), name="config changes"),
            asyncio.create_task(_take_replies(caller), name="replies of the front-end"),
        ]

    async def close(self) -> None:
        """Closes the socket, if there is one. Calls that wait for a reply get ConnectionError."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        if self._channel is not None:
            self._channel.close()
        self._channel = self._caller = None

    def config_changed(self) -> None:
        """As in `Link`. The driver is told once there is a socket and a ring runs."""
        self._config_is_new.set()

    def carries(self, row: Row[Any, Any]) -> bool:
        """Whether the front-end has agreed to such a request, and passed a socket for it."""
        return self._caller is not None and row.exists(self._agreed.protocol_features)

    async def ask(self, row: Row[P, R], payload: P, fds: Sequence[Fd] = ()) -> Reply[R]:
        """As in `Link`: sends a back-end request, such as SHARED_OBJECT_LOOKUP."""
        if self._caller is None:
            raise UnknownRequest(f"{row}: the front-end has passed no socket for requests")
        if not row.exists(self._agreed.protocol_features):
            raise UnknownRequest(f"{row}: the front-end did not agree to it")
        acked = row.reply is None
        if acked and not self._agreed.has(ProtocolFeature.REPLY_ACK):
            await self._caller.tell(row, payload, fds)
            return Reply(None, [])  # type: ignore[arg-type]  # R is None here, which mypy cannot see
        log.debug("> back-end %s %s", row, payload)
        reply: Reply[R] = await (await self._caller.ask(row, payload, fds, acked=acked))
        return reply

    async def _tell_config_changes(self, caller: Caller) -> None:
        """Sends CONFIG_CHANGE_MSG at each change. Asks for no ack: older Cloud Hypervisors send none."""
        try:
            while await self._config_is_new.wait():
                await self._running.wait()
                self._config_is_new.clear()
                if self._agreed.has(ProtocolFeature.CONFIG):
                    log.debug("> back-end %s", CONFIG_CHANGE_MSG)
                    await caller.tell(CONFIG_CHANGE_MSG, Empty())
        except ConnectionError as error:
            log.info("no requests to the front-end any more: %s", error)


async def _take_replies(caller: Caller) -> None:
    """Receives the replies. A malformed one ends only the requests to the front-end, not the session."""
    try:
        await caller.listen()
    except (ConnectionError, MalformedMessage) as error:
        log.info("no replies of the front-end any more: %s", error)
