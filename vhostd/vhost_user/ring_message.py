"""A ring's call or err as a message, for a front-end that wants no fds for them (vhost-user, "In-band
notifications")."""

import asyncio
import logging

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.vhost_user.link import FrontendLink
from vhostd.vhost_user.messages import VringState
from vhostd.wire.rows import Row

log = logging.getLogger(__name__)


class RingMessage:
    """Takes the place of a call or err fd that the front-end has not passed.

    It is signalled by a message, if the front-end has agreed to that. One message is under way until the
    front-end has acked it; all signals that come meanwhile make one more. So a slow front-end gets few, and
    its socket never fills.
    """

    def __init__(self, link: FrontendLink, row: Row[VringState, None], index: int) -> None:
        self._link = link
        self._row = row
        self._index = index
        self._due = False
        self._sending: asyncio.Task[None] | None = None

    def signal(self) -> None:
        """Has the front-end told, in the next turn of the event loop or after the message before."""
        if self._link.carries(self._row):
            self._due = True
            if self._sending is None:
                task = asyncio.get_running_loop().create_task(self._send(), name=f"{self._row}")
                self._sending = task

    def close(self) -> None:
        """Sends no more, until it is signalled again; idempotent."""
        self._due = False
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    async def _send(self) -> None:
        try:
            while self._due:
                self._due = False
                await self._link.ask(self._row, VringState(self._index, 0))
        except (RefusedRequest, MalformedMessage, ConnectionError) as error:
            log.debug("vring %d: %s is lost: %s", self._index, self._row, error)
        self._sending = None
