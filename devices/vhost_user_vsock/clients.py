"""Clients of the host, which ask for ports of the guest."""

import asyncio
import logging
import socket
from collections.abc import Collection, Sequence

from vhost_user_vsock.lines import parse_request, read_line
from vhost_user_vsock.protocol import Kind
from vhost_user_vsock.routes import widen
from vhost_user_vsock.switchboard import Switchboard

log = logging.getLogger(__name__)

ACCEPT_PAUSE = 1.0  # seconds until the next try when the program is out of fds
BURST = 16  # clients that are accepted at once
MOST_LINES = 128  # clients that have not said all, beside the connections
LINE_TIMEOUT = 30.0  # seconds that a client has to say it; a person may type


class Clients:
    """Takes clients at sockets that listen, and calls the guest for them.

    A client of a unix socket says which port it wants. `siblings` are the CIDs in the name of which it may
    ask. A client of an AF_VSOCK socket wants the port that it has connected to.
    """

    def __init__(
        self, board: Switchboard, listeners: Sequence[socket.socket], siblings: Collection[int]
    ) -> None:
        self._board = board
        self._listeners = listeners
        self._siblings = siblings
        self._lines: dict[socket.socket, bytes] = {}  # what those have said so far that have not said all
        self._limits: dict[socket.socket, asyncio.TimerHandle] = {}  # of the same
        self._pause: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serves clients until it is cancelled."""
        self._listen(on=True)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._pause is not None:
                self._pause.cancel()
            self._listen(on=False)
            for client in list(self._lines):
                self._forget(client).close()

    def _listen(self, *, on: bool) -> None:
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            if on:
                loop.add_reader(listener, self._accept, listener)
            else:
                loop.remove_reader(listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(BURST):
            try:
                client, _address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("no client is accepted for a while: %s", error.strerror)
                self._listen(on=False)
                self._pause = asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._resume)
                return
            client.setblocking(False)
            self._take(client)

    def _resume(self) -> None:
        self._listen(on=True)

    def _take(self, client: socket.socket) -> None:
        if self._board.room <= len(self._lines):
            log.warning("a client is turned away: there are as many connections as there may be")
            client.close()
        elif client.family != socket.AF_UNIX:
            self._call(client, client.getsockname()[1], None)
        elif len(self._lines) >= MOST_LINES:
            log.warning("a client is turned away: %d others have not said what they want", len(self._lines))
            client.close()
        else:
            if client.type == socket.SOCK_SEQPACKET:
                widen(client)
            self._listen_to(client)

    def _listen_to(self, client: socket.socket) -> None:
        """Reads what the client wants, if it says that in time."""
        loop = asyncio.get_running_loop()
        self._lines[client] = b""
        self._limits[client] = loop.call_later(LINE_TIMEOUT, self._give_up, client)
        loop.add_reader(client, self._read, client)

    def _give_up(self, client: socket.socket) -> None:
        log.warning("a client is turned away, which has not said what it wants in %.0f s", LINE_TIMEOUT)
        self._forget(client).close()

    def _read(self, client: socket.socket) -> None:
        """Reads what the client wants, and calls when that is said."""
        try:
            line = read_line(client, self._lines[client])
        except BlockingIOError:
            return
        except OSError:
            self._forget(client).close()
            return
        self._lines[client] = line
        if not line.endswith(b"\n"):
            return
        self._forget(client)
        request = parse_request(line)
        if request is None:
            log.warning("a client is turned away, which said %r: no CONNECT and a port", line)
            client.close()
        elif request.source is not None and request.source[0] not in self._siblings:
            log.warning("a client is turned away, which said %r: no --sibling has this CID", line)
            client.close()
        else:
            self._call(client, request.port, request.source)

    def _call(self, client: socket.socket, port: int, source: tuple[int, int] | None) -> None:
        kind = Kind.SEQPACKET if client.type == socket.SOCK_SEQPACKET else Kind.STREAM
        try:
            self._board.call(client, kind, port, source)
        except ConnectionRefusedError:
            client.close()

    def _forget(self, client: socket.socket) -> socket.socket:
        asyncio.get_running_loop().remove_reader(client)
        self._limits.pop(client).cancel()
        del self._lines[client]
        return client
