"""Unix sockets that lead to passt, a switch or another guest, as QEMU's netdevs `stream` and `dgram` do."""

import asyncio
import os
import socket
from contextlib import suppress

from vhost_user_net.features import STREAM
from vhost_user_net.netdev import PAUSE, Netdev
from vhost_user_net.pair import Pair
from vhost_user_net.receive import DatagramReceive, StreamReceive
from vhost_user_net.transmit import DatagramTransmit, StreamTransmit
from vhostd import Fd, Grants, SetupError, receive_at
from vhostd.host.destination import Destination

NO_ACCESS = "the socket is another user's; in its sandbox root's program uses only what is root's"


class Stream(Netdev):
    """A stream socket that somebody listens at. Each frame comes behind its length: 4 bytes, big-endian.

    The stream has no offloads. The queues do that work for the driver, which is much faster than a guest.
    """

    no_access = NO_ACCESS
    features = STREAM

    def __init__(self, path: str) -> None:
        """Connects; if nobody is there yet, `run` does so later. SetupError: no socket can have the path."""
        super().__init__(f"--stream={path}")
        self._destination = _destination(self.name, path)
        self.pairs = [Pair(StreamTransmit(self.lose), StreamReceive(self.lose))]
        self.begin()

    def open(self) -> list[Fd]:
        """Connects."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        with sock:
            self._destination.connect(sock)
            return [Fd(sock.detach())]

    def grants(self) -> Grants:
        """Connecting there."""
        return Grants(connected=(self._destination,))


def _destination(name: str, path: str) -> Destination:
    try:
        return Destination(path)
    except ValueError as error:
        raise SetupError(f"{name}: {error}") from None


class Datagrams(Netdev):
    """A datagram socket, bound to a path of ours, and the path of who gets what is sent."""

    no_access = NO_ACCESS

    def __init__(self, path: str, own: str) -> None:
        """Makes our socket at `own`; raises SetupError."""
        super().__init__(f"--dgram={path}")
        self._destination = _destination(self.name, path)
        self._endpoint = receive_at(own)
        self.pairs = [Pair(DatagramTransmit(self.lose), DatagramReceive(self.lose))]
        self.begin()

    def open(self) -> list[Fd]:
        """Connects our socket, which stays the same, as whoever sends to it cannot know of another."""
        self._destination.connect(self._endpoint.socket)
        return [Fd(os.dup(self._endpoint.socket.fileno()))]

    async def until_lost(self) -> None:
        """Connects again and again: nothing else tells that the other end has gone, or is another one now.

        The kernel lets no other than the one that we are connected to send to us.
        """
        while self.is_open:
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await super().until_lost()
            try:
                self._destination.connect(self._endpoint.socket)
            except OSError as error:
                self.lose(error.strerror or str(error))

    def grants(self) -> Grants:
        """Connecting there, and the removal of our socket's file."""
        return Grants.together([Grants(connected=(self._destination,)), self._endpoint.grants()])

    def end(self) -> None:
        """Closes it all, and removes our socket's file."""
        super().end()
        self._endpoint.close()
