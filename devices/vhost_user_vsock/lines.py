"""The first line on a socket of the host, before the bytes that are the guest's.

    CONNECT <port>                       a client of the host asks for a port of the guest
    CONNECT <port> FROM <cid>:<port>     the program of another guest asks for it, on behalf of that
    OK <port>                            the guest has accepted

On a SEQPACKET socket the line is a message.
"""

import re
import socket
from socket import SocketType
from typing import NamedTuple

MOST_LINE = 64  # bytes
MOST_PORT = 0xFFFF_FFFE  # the next number stands for any port
CONNECT = re.compile(rb"connect ([0-9]{1,10})(?: from ([0-9]{1,10}):([0-9]{1,10}))? *\r?\n?", re.IGNORECASE)


class Request(NamedTuple):
    """What a client asks for: a port of the guest, and in whose name, as CID and port."""

    port: int
    source: tuple[int, int] | None


def read_line(sock: SocketType, so_far: bytes = b"") -> bytes:
    """Reads on, to the end of the line at most, and returns what there is of it now.

    Raises ConnectionResetError at the end of the stream, BlockingIOError if there is nothing, and
    ConnectionRefusedError for a line that is too long.
    """
    left = MOST_LINE - len(so_far)
    if sock.type == socket.SOCK_SEQPACKET:
        part = sock.recv(left, socket.MSG_DONTWAIT)
        ends = True
    else:
        seen = sock.recv(left, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        end = seen.find(b"\n") + 1
        part = sock.recv(end or len(seen), socket.MSG_DONTWAIT) if seen else b""
        ends = end > 0
    if not part:
        raise ConnectionResetError
    if len(part) == left and not ends:
        raise ConnectionRefusedError
    return so_far + part if part.endswith(b"\n") or not ends else so_far + part + b"\n"


def parse_request(line: bytes) -> Request | None:
    """What a client's line asks for; None if it is no such line."""
    if (found := CONNECT.fullmatch(line)) is None:
        return None
    port, cid, source_port = (None if number is None else int(number) for number in found.groups())
    if port is None or port > MOST_PORT or (source_port or 0) > MOST_PORT:
        return None
    return Request(port, None if cid is None or source_port is None else (cid, source_port))
