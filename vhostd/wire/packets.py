"""Packets with fds, over a socket that keeps packets apart. Python's send_fds and recv_fds ignore flags."""

import array
import socket
from collections.abc import Sequence

ROOM = socket.CMSG_SPACE(array.array("i").itemsize)


def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int] = (), flags: int = 0) -> None:
    """Sends a packet, and copies of fds along with it; raises OSError."""
    with_fds = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], with_fds, flags)


def receive_packet(sock: socket.socket, most: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """A packet of at most so many bytes, and the fd that came along, if one did; raises OSError."""
    data, ancillary, _, _ = sock.recvmsg(most, ROOM, flags | socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    return data, list(fds)
