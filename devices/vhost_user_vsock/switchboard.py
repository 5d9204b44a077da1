"""Switchboard: sets connections up, and tears them down.

What a connection tells its guest, and when its socket is closed:

    the host's end    the guest is told    the guest says               the host's end is
    sends no more     SHUTDOWN SEND        SHUTDOWN SEND                shut down for writing
    takes no more     SHUTDOWN RECEIVE     SHUTDOWN RECEIVE             shut down for reading
    is closed         SHUTDOWN of both     SHUTDOWN of both, or RST     closed, once it has all bytes

The guest's answer to SHUTDOWN of both is RST. If it gives none for a while, it is told RST (5.10.6.5).

No place is taken for ever. There is a limit for a guest that is to answer, for a server, and for a host's end
that takes nothing. A client of the host that waits itself may wait as long as it likes.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from socket import SocketType

from vhost_user_vsock.connection import Connection
from vhost_user_vsock.inbound import Inbound
from vhost_user_vsock.outbound import Outbound
from vhost_user_vsock.protocol import HOST_CID, Kind, Op, Shutdown
from vhost_user_vsock.routes import Route
from vhost_user_vsock.traffic import Traffic
from vhostd import Virtqueue

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 8.0  # seconds that the guest has to answer SHUTDOWN; Linux waits as long
LINK_TIMEOUT = 10.0  # that a server has which does not answer at once; a guest's program waits for 2
ABANDON_TIMEOUT = 60.0  # that the guest has to take what a client has left; it may boot meanwhile
LINGER_TIMEOUT = 60.0  # that the host's end may take nothing of what a guest's socket has left
FIRST_PORT = 1 << 30  # of the host, for connections that it begins
LAST_PORT = (1 << 31) - 1
KINDS = {Kind.STREAM: socket.SOCK_STREAM, Kind.SEQPACKET: socket.SOCK_SEQPACKET}


class Switchboard:
    """All connections of one guest, of which there are `most` at once.

    As many more may be closed already on the host's side. `routes` say where the guest's requests lead, by
    the CID that it asks for. `buf_alloc` is how many bytes of each connection are kept for a slow end on the
    host.
    """

    def __init__(self, guest_cid: int, routes: Mapping[int, Route], *, most: int, buf_alloc: int) -> None:
        self.traffic = Traffic(guest_cid, self)
        self.inbound, self.outbound = Inbound(self.traffic), Outbound(self.traffic)
        self.routes = routes
        self._guest_cid = guest_cid
        self._most = most
        self._buf_alloc = buf_alloc
        self._open: set[Connection] = set()  # those that have a socket
        self._closing: set[Connection] = set()  # those that have none, until the guest has answered
        self._limits: dict[Connection, asyncio.TimerHandle] = {}
        self._next_port = FIRST_PORT
        self._ease = asyncio.Event()
        self.rx: Virtqueue | None = None  # while it runs

    @property
    def room(self) -> int:
        """How many connections there may be more."""
        return self._most - len(self._open) - max(0, len(self._closing) - self._most)

    async def wait(self) -> None:
        """Waits until few resets wait for the guest."""
        self._ease.clear()
        await self._ease.wait()

    # --- From the host ----------------------------------------------------------------------------------

    def call(self, sock: SocketType, kind: int, port: int, source: tuple[int, int] | None = None) -> None:
        """Asks the guest for a connection to its port, and takes over the socket, which is the host's end.

        `source` is the CID and the port that the connection comes from, if that is not the host. Raises
        ConnectionRefusedError if there is no room for it, or there is one already.
        """
        host_cid, host_port = source or (HOST_CID, self._free_port(port))
        if not self.room or self.traffic.find(host_cid, host_port, port) is not None:
            raise ConnectionRefusedError
        connection = self._add(sock, kind, host_cid, host_port, port, is_call=True)
        self.traffic.watch(connection, 0)
        self.traffic.tell(connection, Op.REQUEST)

    def linked(self, connection: Connection) -> None:
        """The host's end, which the guest has asked for, is connected, or that has failed."""
        route = self.routes[connection.host_cid]
        self._lift_limit(connection)
        try:
            assert connection.sock is not None
            route.check(connection.sock)
        except OSError as error:
            self.broke(connection, error.strerror or "it was refused")
        else:
            self._establish(connection)

    def abandoned(self, connection: Connection) -> None:
        """The host's end was closed before the guest has answered. What it has sent is the guest's still."""
        if connection.sock is not None and not _has_bytes(connection.sock):
            self.broke(connection, "the client has gone")
        else:
            self._limit(connection, ABANDON_TIMEOUT, self.broke, "no answer, and the client has gone")

    def ended(self, connection: Connection, flags: int) -> None:
        """The host's end sends no more, takes no more, or was closed: flags of SHUTDOWN."""
        if connection.detached:
            self._close(connection)
            return
        if not flags & ~connection.told:
            return
        connection.told |= flags
        if connection.told == Shutdown.BOTH:
            self._close(connection)
            self._closing.add(connection)
            self._limit(connection, CLOSE_TIMEOUT, self._expire)
        self.traffic.tell(connection, Op.SHUTDOWN)

    def drained(self, connection: Connection) -> None:
        """The host's end has all bytes that waited for it."""
        if connection.detached:
            self._close(connection)
        elif connection.heard & Shutdown.SEND:
            _shut(connection.sock, socket.SHUT_WR)

    # --- From the guest ---------------------------------------------------------------------------------

    def requested(
        self, host_cid: int, host_port: int, guest_port: int, kind: int, credit: tuple[int, int]
    ) -> None:
        """The guest asks for a connection."""
        route = self.routes.get(host_cid)
        try:
            if route is None or not self.room:
                raise ConnectionRefusedError
            sock = route.open(KINDS[kind], host_port, (self._guest_cid, guest_port))
        except OSError as error:
            log.debug("%d:%d is not reached: %s", host_cid, host_port, error.strerror or error)
            self.traffic.refuse(host_cid, host_port, guest_port, kind)
            return
        connection = self._add(sock, kind, host_cid, host_port, guest_port)
        connection.grant(*credit)
        if route.awaits:
            self.traffic.watch(connection, route.awaits)
            self._limit(connection, LINK_TIMEOUT, self.broke, "no answer")
        else:
            self._establish(connection)

    def answered(self, connection: Connection) -> None:
        """The guest takes the host's call."""
        self._lift_limit(connection)
        sock = connection.sock
        if sock is not None and sock.family == socket.AF_UNIX:
            with suppress(OSError):  # the client may read nothing, and send all the same
                sock.send(b"OK %d\n" % connection.host_port, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self.traffic.establish(connection)

    def shut(self, connection: Connection, flags: int) -> None:
        """The guest sends no more, takes no more, or has closed its end."""
        connection.heard |= flags
        if connection.heard == Shutdown.BOTH:
            self._refuse(connection)
            self._leave(connection)
        elif flags & Shutdown.RECEIVE:
            self.traffic.stop_reading(connection)
            _shut(connection.sock, socket.SHUT_RD)
        elif flags & Shutdown.SEND and not connection.backlog:
            _shut(connection.sock, socket.SHUT_WR)

    def reset(self, connection: Connection) -> None:
        """The guest knows the connection no more."""
        self._leave(connection)

    def broke(self, connection: Connection, why: str) -> None:
        """Ends a connection with which something is wrong."""
        log.info("%r is reset: %s", connection, why)
        self._refuse(connection)
        self._part(connection)
        self._close(connection)

    def pump(self) -> None:
        """There is something to tell the guest at once."""
        if self.rx is not None:
            self.rx.pump_now()

    def eased(self) -> None:
        """Few resets wait for the guest."""
        self._ease.set()

    # --- The guest as a whole ---------------------------------------------------------------------------

    def start_over(self) -> None:
        """Another driver has come, which knows no connection. The calls that wait are told it."""
        self.traffic.clear_resets()
        self.eased()
        for connection in self.traffic:
            if connection.is_call and not connection.established:
                self.traffic.tell(connection, Op.REQUEST)
            else:
                self._leave(connection)

    def close(self) -> None:
        """Closes all connections."""
        for connection in [*self._open, *self._closing]:
            self._part(connection)
            self._close(connection)

    def _add(
        self,
        sock: SocketType,
        kind: int,
        host_cid: int,
        host_port: int,
        guest_port: int,
        *,
        is_call: bool = False,
    ) -> Connection:
        connection = Connection(
            sock,
            kind,
            guest_cid=self._guest_cid,
            guest_port=guest_port,
            host_cid=host_cid,
            host_port=host_port,
            buf_alloc=self._buf_alloc,
            is_call=is_call,
        )
        self._open.add(connection)
        self.traffic.add(connection)
        return connection

    def _establish(self, connection: Connection) -> None:
        self.traffic.tell(connection, Op.RESPONSE)
        self.traffic.establish(connection)

    def _refuse(self, connection: Connection) -> None:
        """Has the guest told RST, if it knows the connection."""
        if not connection.detached:
            self.traffic.refuse(
                connection.host_cid, connection.host_port, connection.guest_port, connection.kind
            )

    def _leave(self, connection: Connection) -> None:
        """Ends the connection for the guest, and for the host when it has all bytes."""
        if not connection.backlog:
            self._close(connection)
        self._part(connection)
        if connection.backlog:
            self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        """Waits for the host's end to take the rest, as long as it takes some of it within each limit."""
        self._limit(connection, LINGER_TIMEOUT, self._look_again, connection.backlog)

    def _look_again(self, connection: Connection, backlog: int) -> None:
        if connection.backlog < backlog:
            self._linger(connection)
        else:
            log.info("%r: %d bytes are lost, which nobody takes", connection, backlog)
            self._close(connection)

    def _expire(self, connection: Connection) -> None:
        """The guest has not answered SHUTDOWN."""
        self._refuse(connection)
        self._part(connection)

    def _part(self, connection: Connection) -> None:
        """Ends the connection for the guest."""
        self._lift_limit(connection)
        self._closing.discard(connection)
        self.traffic.detach(connection)

    def _limit(
        self, connection: Connection, seconds: float, late: Callable[..., None], *args: object
    ) -> None:
        """Has this called with the connection in so many seconds, unless the limit is lifted before."""
        self._lift_limit(connection)
        self._limits[connection] = asyncio.get_running_loop().call_later(seconds, late, connection, *args)

    def _lift_limit(self, connection: Connection) -> None:
        if (timer := self._limits.pop(connection, None)) is not None:
            timer.cancel()

    def _close(self, connection: Connection) -> None:
        self._lift_limit(connection)
        self.traffic.release(connection)
        self._open.discard(connection)
        if connection.sock is not None:
            connection.sock.close()
            connection.sock = None

    def _free_port(self, guest_port: int) -> int:
        """A port of the host from which there is no connection to this port of the guest."""
        while self.traffic.find(HOST_CID, self._next_port, guest_port) is not None:
            self._pass_port()
        port = self._next_port
        self._pass_port()
        return port

    def _pass_port(self) -> None:
        self._next_port = self._next_port + 1 if self._next_port < LAST_PORT else FIRST_PORT


def _shut(sock: SocketType | None, how: int) -> None:
    if sock is not None:
        with suppress(OSError):  # its other end has gone
            sock.shutdown(how)


def _has_bytes(sock: SocketType) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except OSError:
        return False
