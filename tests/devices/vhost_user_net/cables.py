"""A network card on pairs of sockets. The test holds the other ends: a tap device, a switch, or passt."""

import socket
import struct
from collections.abc import Callable, Sequence

from vhost_user_net.features import CHECKSUMS, STREAM, TCP, UDP
from vhost_user_net.netdev import Netdev
from vhost_user_net.pair import Pair
from vhost_user_net.receive import DatagramReceive, Receive, StreamReceive, TapReceive
from vhost_user_net.transmit import DatagramTransmit, StreamTransmit, TapTransmit, Transmit
from vhostd import Fd

KINDS = ("tap", "datagrams", "stream")
PARTS: dict[str, tuple[Callable[..., Transmit], Callable[..., Receive], socket.SocketKind]] = {
    "tap": (TapTransmit, TapReceive, socket.SOCK_DGRAM),
    "datagrams": (DatagramTransmit, DatagramReceive, socket.SOCK_DGRAM),
    "stream": (StreamTransmit, StreamReceive, socket.SOCK_STREAM),
}
LENGTH = struct.Struct("!I")
PATIENCE = 20.0
SO_SNDBUFFORCE = 32  # Linux, include/uapi/asm-generic/socket.h


class Cable(Netdev):
    """A netdev of this kind. `far` are the other ends of its fds, one for each pair."""

    def __init__(self, kind: str = "tap", pairs: int = 1) -> None:
        super().__init__("the cable")
        self.kind = kind
        transmit, receive, self._socket = PARTS[kind]
        self.features = {"tap": CHECKSUMS | TCP | UDP, "stream": STREAM, "datagrams": 0}[kind]
        self.pairs = [Pair(transmit(self.lose), receive(self.lose)) for _ in range(pairs)]
        self.far: list[socket.socket] = []
        self.refusals = 0  # so often `open` fails
        self.take(self.open())

    def open(self) -> list[Fd]:
        """Makes new pairs of sockets."""
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError(111, "Connection refused")
        self.unplug()
        ends = [socket.socketpair(socket.AF_UNIX, self._socket) for _ in self.pairs]
        self.far = [far for _near, far in ends]
        for near, far in ends:
            near.setblocking(False)
            far.settimeout(PATIENCE)
            far.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)  # for some frames of the largest size
        return [Fd(near.detach()) for near, _far in ends]

    def unplug(self) -> None:
        """Closes the other ends."""
        for far in self.far:
            far.close()

    def end(self) -> None:
        super().end()
        self.unplug()

    def sent(self) -> bytes:
        """The next frame that the card has sent; of a tap device with its header."""
        far = self.far[0]
        if self.kind != "stream":
            return far.recv(1 << 17)
        (length,) = LENGTH.unpack(far.recv(LENGTH.size, socket.MSG_WAITALL))
        return far.recv(length, socket.MSG_WAITALL)

    def give(self, frames: Sequence[bytes], header: bytes = bytes(12)) -> None:
        """Gives frames to the card."""
        for frame in frames:
            if self.kind == "stream":
                self.far[0].sendall(LENGTH.pack(len(frame)) + frame)
            else:
                self.far[0].send(header + frame if self.kind == "tap" else frame)
