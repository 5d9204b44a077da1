"""A unix socket to connect to, again and again: the sandbox lets through this one and no other."""

import os
import socket
import struct

from vhostd.host.syscall import CONNECT, syscall

MOST = 107  # bytes of a path in struct sockaddr_un, before a NUL
FAMILY = struct.Struct("=H")


class Destination:
    """The socket at a path; raises ValueError if no socket's path is as long.

    Whatever has that path when one connects is connected to.
    """

    def __init__(self, path: str) -> None:
        name = os.fsencode(path)
        if not 0 < len(name) <= MOST or b"\0" in name:
            raise ValueError(f"no socket has the path {path!r}: it may have 1 to {MOST} bytes")
        self.path = path
        self.fixed = FAMILY.pack(socket.AF_UNIX) + name + b"\0"  # struct sockaddr_un
        self._address: int | None = None

    def take_name_from(self, address: int) -> None:
        """From now on the kernel is to read the address there (sandbox/names.py)."""
        self._address = address

    def connect(self, sock: socket.socket) -> None:
        """Connects a socket, which does not block; raises OSError, also where one would have to wait."""
        syscall(
            CONNECT, sock.fileno(), self.fixed if self._address is None else self._address, len(self.fixed)
        )
