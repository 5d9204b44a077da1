"""A unix socket as the source: whoever connects writes live events as evemu's E: lines."""

import asyncio
import logging
import socket
import time

from vhost_user_input.description import Description
from vhost_user_input.evemu import format_event
from vhost_user_input.event_lines import EventLines, Heard
from vhost_user_input.events import EVENT
from vhost_user_input.origin import Origin
from vhost_user_input.source import Sink
from vhost_user_input.waiting import Waiting
from vhostd import Grants, listen

log = logging.getLogger(__name__)

CHUNK = 16384  # bytes: about a thousand events, well below half of the backlog
MAX_CLIENTS = 64
MAX_ERRORS = 16  # of a chunk that are told one by one, so that garbage does not keep others waiting
ACCEPT_PAUSE = 1.0  # seconds until the next try when the program is out of fds


class EventSocket:
    """Listens at `path` for any number of clients, one after another or at once.

    Their events' times are ignored. Clients wait for a guest that cannot keep up; what they send while none
    listens waits for one, within bounds, be they still there or not. What a client still holds when it goes
    is released. The driver's LEDs, sounds and repeat rates are written to all clients as E: lines; a client
    that does not read them misses some.
    """

    def __init__(
        self, path: str, description: Description, *, mode: int | None = None, group: int | None = None
    ) -> None:
        self.description = description
        self._path = path
        self._endpoint = listen(path, mode=mode, group=group, backlog=MAX_CLIENTS)
        self._clients: set[socket.socket] = set()
        self._born = time.monotonic()

    def grants(self) -> Grants:
        """The removal of the socket file."""
        return self._endpoint.grants()

    def greet(self) -> None:
        """Has no effect: what clients send is for whatever guest comes."""

    async def run(self, sink: Sink) -> None:
        """Serves clients until it is cancelled."""
        waiting = Waiting(sink)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waiting.run())
            while True:
                client = await self._accept(self._endpoint.socket)
                if len(self._clients) < MAX_CLIENTS:
                    self._clients.add(client)
                    tasks.create_task(self._serve(client, sink.origin(), waiting))
                else:
                    self._complain(client, f"there are {MAX_CLIENTS} clients already")
                    client.close()

    def write(self, events: bytes) -> None:
        """Writes the events to all clients."""
        now = int((time.monotonic() - self._born) * 1_000_000)
        lines = "".join(f"{format_event((now, *event))}\n" for event in EVENT.iter_unpack(events))
        for client in self._clients:
            self._send(client, lines)

    def close(self) -> None:
        """Stops listening and removes the socket file, unless it has become another's; idempotent."""
        self._endpoint.close()

    async def _accept(self, listener: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("%s: no client can be accepted: %s", self._path, error.strerror)
                await asyncio.sleep(ACCEPT_PAUSE)
            else:
                client.setblocking(False)
                return client

    async def _serve(self, client: socket.socket, origin: Origin, waiting: Waiting) -> None:
        """Lives as long as the client; never raises."""
        lines = EventLines(self.description)
        try:
            await self._read(client, lines, origin, waiting)
        except OSError as error:
            log.info("%s: a client is gone: %s", self._path, error.strerror)
        finally:
            self._clients.discard(client)
            client.close()
            waiting.add(origin, b"", last=True)
        if lines.incomplete:
            log.warning(
                "%s: a client left %d events without a SYN_REPORT, dropped", self._path, lines.incomplete
            )

    async def _read(self, client: socket.socket, lines: EventLines, origin: Origin, waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await waiting.space()  # for the end as well, which takes a place in the queue
            data = await loop.sock_recv(client, CHUNK)
            heard = lines.feed(data) if data else lines.finish()
            if heard.reports:
                waiting.add(origin, bytes(heard.reports))
            self._tell_errors(heard, client)
            if not data:
                return
            # Neither of the waits above lets others run if there is nothing to wait for.
            await asyncio.sleep(0)

    def _tell_errors(self, heard: Heard, client: socket.socket) -> None:
        for error in heard.errors[:MAX_ERRORS]:
            self._complain(client, error)
        if (more := len(heard.errors) - MAX_ERRORS) > 0:
            self._complain(client, f"and {more} more lines")

    def _complain(self, client: socket.socket, error: str) -> None:
        log.warning("%s: a client was told: %s", self._path, error)
        self._send(client, f"# error: {error}\n")

    def _send(self, client: socket.socket, text: str) -> None:
        # Short writes to a unix stream socket are taken whole or not at all.
        try:
            client.send(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            log.info("%s: a client misses a line: %s", self._path, error.strerror)
