"""Where a guest's requests lead: to sockets of the host, or to the program of another guest."""

import errno
import os
import select
import socket
from socket import SocketType
from typing import Protocol

from vhost_user_vsock.lines import read_line

SEND_BUFFER = 212992  # bytes: a message of the guest's is taken as a whole or not at all, and may be long
FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
SEQPACKET_SUFFIX = "_seqpacket"  # of the path where clients are accepted for SEQPACKET


class Route(Protocol):
    """A way to servers: those of one CID, as the guest sees it."""

    awaits: int  # epoll(7) events at a socket that say that it may be connected; 0 if it is so at once

    def open(self, kind: int, port: int, source: tuple[int, int]) -> SocketType:
        """A socket to the server at a port, on behalf of the guest's CID and port; raises OSError."""

    def check(self, sock: SocketType) -> None:
        """Raises OSError unless it is connected now."""


class UnixServers:
    """Servers of the host that listen at `path`_<port>."""

    awaits = 0

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, kind: int, port: int, source: tuple[int, int]) -> SocketType:
        return connect_unix(f"{self._path}_{port}", kind)

    def check(self, sock: SocketType) -> None:
        """It is."""


class VsockServers:
    """Servers that listen at AF_VSOCK ports of a CID: of the host (1), or of a machine around it (2)."""

    awaits = select.EPOLLOUT

    def __init__(self, cid: int) -> None:
        self._cid = cid

    def open(self, kind: int, port: int, source: tuple[int, int]) -> SocketType:
        sock = socket.socket(socket.AF_VSOCK, kind | FLAGS)
        try:
            failure = sock.connect_ex((self._cid, port))
            if failure not in (0, errno.EINPROGRESS):
                raise OSError(failure, os.strerror(failure))
        except BaseException:
            sock.close()
            raise
        return sock

    def check(self, sock: SocketType) -> None:
        if failure := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(failure, os.strerror(failure))


class Sibling:
    """Another guest, whose program takes clients at `path`."""

    awaits = select.EPOLLIN

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, kind: int, port: int, source: tuple[int, int]) -> SocketType:
        suffix = SEQPACKET_SUFFIX if kind == socket.SOCK_SEQPACKET else ""
        sock = connect_unix(self._path + suffix, kind)
        try:
            sock.send(b"CONNECT %d FROM %d:%d\n" % (port, *source), socket.MSG_NOSIGNAL)
        except BaseException:
            sock.close()
            raise
        return sock

    def check(self, sock: SocketType) -> None:
        line = read_line(sock)
        if not line.startswith(b"OK ") or not line.endswith(b"\n"):
            raise ConnectionRefusedError


def widen(sock: SocketType) -> None:
    """Has a socket for messages take long ones, as far as Linux allows."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def connect_unix(path: str, kind: int) -> SocketType:
    """A socket that is connected to the server at a path. It waits for nobody: a full backlog is EAGAIN."""
    sock = SocketType(socket.AF_UNIX, kind | FLAGS)  # which `socket` builds upon, in Python, and takes longer
    try:
        if kind == socket.SOCK_SEQPACKET:
            widen(sock)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock
