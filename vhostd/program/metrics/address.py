"""The address of the metrics: a TCP port, or a socket at a path."""

import re
import socket
from typing import NamedTuple

from vhostd.errors import SetupError
from vhostd.program import endpoint
from vhostd.program.endpoint import Endpoint

UNIX = "unix:"
TCP = r"(?P<host>[^\s:/\[\]]*|\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]):(?P<port>[0-9]{1,5})"
LOCAL = "127.0.0.1"
BACKLOG = 64
MAX_PORT = 0xFFFF


class Address(NamedTuple):
    """A host and a port, where port 0 means any free one; or a path."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{UNIX}{self.path}" if self.path else f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads HOST:PORT, :PORT for this machine alone, [V6]:PORT, or unix:PATH; else raises ValueError."""
    if path := text.removeprefix(UNIX) if text.startswith(UNIX) else "":
        return Address(path=path)
    if (found := re.fullmatch(TCP, text)) is None:
        raise ValueError(f"{text!r} is not HOST:PORT, :PORT, [ADDRESS]:PORT or unix:PATH")
    if int(found["port"]) > MAX_PORT:
        raise ValueError(f"{text!r}: the port is above {MAX_PORT}")
    return Address(found["v6"] or found["host"] or LOCAL, int(found["port"]))


def listen(address: Address) -> Endpoint:
    """Listens at the address; raises SetupError on failure. For a path see `endpoint.listen`."""
    if address.path:
        return endpoint.listen(address.path, backlog=BACKLOG)
    try:
        family, *_, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.create_server(place, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SetupError(f"cannot listen at {address} for metrics: {reason}") from None
    return Endpoint(sock)
