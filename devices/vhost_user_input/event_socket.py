"""A unix socket as the source: its clients write live events as evemu's E: lines."""

import asyncio
import logging
import socket
import time

from vhost_user_input.description import Description
from vhost_user_input.evemu import format_event
from vhost_user_input.event_lines import EventLines, ParsedLines
from vhost_user_input.events import EVENT
from vhost_user_input.origin import Origin
from vhost_user_input.source import Sink
from vhost_user_input.waiting import Waiting
from vhostd import Grants, listen
from vhostd.host.accept import accept

log = logging.getLogger(__name__)

CHUNK = 16384  # bytes: about a thousand events, well below half of the backlog
MAX_CLIENTS = 64
MAX_ERRORS = 16  # of a chunk are answered one by one: garbage must not delay the other clients


class EventSocket:
    """Listens at `path` for any number of clients, one after another or at once.

    The times of events are ignored. While a guest listens but is slow, clients wait. While no guest listens,
    events wait for one, within bounds, even if their client has gone. When a client goes, the keys that it
    holds are released. The driver's LEDs, sounds and repeat rates are written to all clients as E: lines; a
    client that does not read them misses some.
    """

    def __init__(
        self, path: str, description: Description, *, mode: int | None = None, group: int | None = None
    ) -> None:
        self.description = description
        self.path = path
        self._endpoint = listen(path, mode=mode, group=group, backlog=MAX_CLIENTS)
        self._clients: set[socket.socket] = set()
        self._born = time.monotonic()

    def grants(self) -> Grants:
        """The removal of the socket file."""
        return self._endpoint.grants()

    def greet(self) -> None:
        """Has no effect: the clients' events are for any guest."""

    async def run(self, sink: Sink) -> None:
        """Serves clients until it is cancelled."""
        waiting = Waiting(sink)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waiting.run())
            while True:
                client = await accept(self._endpoint.socket, self.path)
                if len(self._clients) < MAX_CLIENTS:
                    self._clients.add(client)
                    tasks.create_task(self._feed_from(client, sink.origin(), waiting))
                else:
                    self._answer_error(client, f"there are {MAX_CLIENTS} clients already")
                    client.close()

    def write(self, events: bytes) -> None:
        """Writes the events to all clients."""
        now = int((time.monotonic() - self._born) * 1_000_000)
        lines = "".join(f"{format_event((now, *event))}\n" for event in EVENT.iter_unpack(events))
        for client in self._clients:
            self._send(client, lines)

    def close(self) -> None:
        """Stops listening and removes the socket file, unless another program has replaced it; idempotent."""
        self._endpoint.close()

    async def _feed_from(self, client: socket.socket, origin: Origin, waiting: Waiting) -> None:
        """Reads from a client until it goes; never raises."""
        lines = EventLines(self.description)
        try:
            await self._read(client, lines, origin, waiting)
        except OSError as error:
            log.info("%s: a client is gone: %s", self.path, error.strerror)
        finally:
            self._clients.discard(client)
            client.close()
            waiting.add(origin, b"", last=True)
        if lines.incomplete:
            log.warning(
                "%s: a client left %d events without a SYN_REPORT, dropped", self.path, lines.incomplete
            )

    async def _read(self, client: socket.socket, lines: EventLines, origin: Origin, waiting: Waiting) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await waiting.space()  # before the end of the stream too: it takes a place in the queue
            data = await loop.sock_recv(client, CHUNK)
            parsed = lines.feed(data) if data else lines.finish()
            if parsed.reports:
                waiting.add(origin, bytes(parsed.reports))
            self._answer_errors(parsed, client)
            if not data:
                return
            # The awaits above may return without a pause; this one lets other tasks run.
            await asyncio.sleep(0)

    def _answer_errors(self, parsed: ParsedLines, client: socket.socket) -> None:
        for error in parsed.errors[:MAX_ERRORS]:
            self._answer_error(client, error)
        if (more := len(parsed.errors) - MAX_ERRORS) > 0:
            self._answer_error(client, f"and {more} more lines")

    def _answer_error(self, client: socket.socket, error: str) -> None:
        log.warning("%s: a client was told: %s", self.path, error)
        self._send(client, f"# error: {error}\n")

    def _send(self, client: socket.socket, text: str) -> None:
        # The kernel takes a short write to a unix stream socket whole or not at all.
        try:
            client.send(text.encode("utf-8", "replace"), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError as error:
            log.info("%s: a client misses a line: %s", self.path, error.strerror)
