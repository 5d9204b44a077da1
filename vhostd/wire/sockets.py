"""Checks sockets that arrive as fds: is it a connected AF_UNIX stream?"""

import socket

from vhostd.errors import RefusedRequest
from vhostd.wire.fds import Fd


def connected_stream(fd: Fd, request: object) -> socket.socket:
    """Makes a socket from the `fd` of a request, which must be a connected AF_UNIX stream.

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
    """Whether `fd` and `sock` are the two ends of one AF_UNIX connection.

    The kernel tells only the name of the other end. So if `fd` has no name, it gets one from the abstract
    namespace (unix(7), autobind), which is harmless.
    """
    try:
        other = socket.socket(fileno=fd.fileno())
    except OSError:  # not a socket
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
        other.detach()  # the fd stays the caller's
    return names == (sock.getpeername(), sock.getsockname())


def is_unix_stream(sock: socket.socket) -> bool:
    """Whether it is an AF_UNIX stream socket, which carries fds and an ordered stream of bytes."""
    return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM


def has_peer(sock: socket.socket) -> bool:
    """Whether it was connected. The peer may have gone since."""
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
