"""Sockets that arrive as fds: is it one that a byte stream with a peer on this machine can go through?"""

import socket

from vhostd.errors import RefusedRequest
from vhostd.wire.fds import Fd


def connected_stream(fd: Fd, request: object) -> socket.socket:
    """The connected AF_UNIX stream socket that came with a request, out of its `fd`.

    Raises RefusedRequest, and leaves `fd` to the caller, if it is anything else.
    """
    try:
        sock = socket.socket(fileno=fd.fileno())
    except OSError as error:
        raise RefusedRequest(f"{request} with an fd that is no socket: {error}") from None
    if not is_unix_stream(sock):
        sock.detach()
        raise RefusedRequest(f"{request} with a socket of {sock.family!r}, {sock.type!r}")
    if not has_peer(sock):
        sock.detach()
        raise RefusedRequest(f"{request} with a socket that leads nowhere")
    fd.take()
    return sock


def is_other_end(fd: Fd, sock: socket.socket) -> bool:
    """Whether `fd` is the other end of the AF_UNIX connection that `sock` is one end of.

    The kernel tells no more of the other end than its name. So a socket without a name gets one, from the
    abstract namespace (unix(7), autobind), which does it no harm.
    """
    try:
        other = socket.socket(fileno=fd.fileno())
    except OSError:  # no socket
        return False
    try:
        if not is_unix_stream(other):
            return False
        if not other.getsockname():
            other.bind("")
        names = other.getsockname(), other.getpeername()
    except OSError:
        return False
    finally:
        other.detach()  # it is still the caller's
    return names == (sock.getpeername(), sock.getsockname())


def is_unix_stream(sock: socket.socket) -> bool:
    """Whether fds and an ordered stream of bytes can go over it."""
    return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM


def has_peer(sock: socket.socket) -> bool:
    """Whether it was connected; the peer may have gone since."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
