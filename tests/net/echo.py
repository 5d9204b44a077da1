"""`python3 echo.py PORT [dns]`: gives back what it gets, over TCP and UDP; it may answer DNS, too.

Over TCP it does so at once; at the port behind PORT when all has come.

It needs the standard library only: any Python runs it, in any namespace.
"""

import socket
import socketserver
import struct
import sys
from contextlib import suppress
from threading import Thread

PIECE = 1 << 20
ADDRESS = bytes((192, 0, 2, 1))


class Stream(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Gives back what comes."""
        try:
            while data := self.request.recv(PIECE):
                self.request.sendall(data)
        except OSError:
            pass  # it was reset


class Turns(socketserver.StreamRequestHandler):
    """One connection, which says first how many bytes come: 8 bytes, big-endian."""

    def handle(self) -> None:
        """Gives back all, when it is all there."""
        with suppress(OSError):  # it was reset
            size = int.from_bytes(self.rfile.read(8), "big")
            self.wfile.write(self.rfile.read(size))


class Datagram(socketserver.BaseRequestHandler):
    """One datagram."""

    def handle(self) -> None:
        """Gives it back."""
        data, sock = self.request
        sock.sendto(data, self.client_address)


class Question(socketserver.BaseRequestHandler):
    """One question about a name: the answer is always the same address."""

    def handle(self) -> None:
        """Answers it, for IPv4."""
        data, sock = self.request
        name_end = data.index(b"\0", 12) + 1
        question = data[12 : name_end + 4]
        kind = struct.unpack("!H", question[-4:-2])[0]
        answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, len(ADDRESS)) + ADDRESS if kind == 1 else b""
        header = data[:2] + struct.pack("!HHHHH", 0x8180, 1, bool(answer), 0, 0)
        sock.sendto(header + question + answer, self.client_address)


class Datagrams(socketserver.UDPServer):
    """A server of datagrams of all sizes."""

    max_packet_size = 65536
    allow_reuse_address = True


class Streams(socketserver.ThreadingTCPServer):
    """A server of streams."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def main() -> None:
    """Serves until it is killed."""
    port = int(sys.argv[1])
    servers: list[socketserver.BaseServer] = [
        Streams(("", port), Stream),
        Streams(("", port + 1), Turns),
        Datagrams(("", port), Datagram),
    ]
    for server in servers:
        if isinstance(server, Datagrams):
            server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    if len(sys.argv) > 2:
        servers.append(Datagrams(("", 53), Question))
    for server in servers[1:]:
        Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    servers[0].serve_forever()


if __name__ == "__main__":
    main()
