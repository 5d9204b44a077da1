"""Sockets in a guest: servers for what the host asks, and a client of the host's servers.

vsock.py serve
vsock.py connect PORT COUNT SIZE      so many connections at once, each an echo of so many bytes
vsock.py messages PORT SIZES...       SEQPACKET messages of these sizes, each an echo
vsock.py refused CID PORT             what connecting there says
vsock.py half PORT SIZE [BUFFER]      sends so many bytes, says that it is all, and reads a digest of it
vsock.py pour PORT SIZES...           SEQPACKET messages of these sizes, and a digest of all of them
"""

import hashlib
import random
import socket
import sys
import threading
from collections.abc import Callable

HOST = 2
ECHO, DIGEST, SOURCE, MESSAGES, SILENT = 1000, 1001, 1002, 1003, 1004  # ports
CHUNK = 1 << 16
MOST_MESSAGE = 1 << 18


def some_bytes(size: int) -> bytes:
    """Bytes that both sides know."""
    return random.Random(size).randbytes(size)


def read_all(sock: socket.socket) -> bytes:
    """All bytes until the other end sends no more."""
    parts = []
    while part := sock.recv(CHUNK):
        parts.append(part)
    return b"".join(parts)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    data = bytearray()
    while len(data) < size and (part := sock.recv(min(CHUNK, size - len(data)))):
        data += part
    return bytes(data)


def echo(sock: socket.socket) -> None:
    """Sends back what comes."""
    while part := sock.recv(CHUNK):
        sock.sendall(part)


def digest(sock: socket.socket) -> None:
    """Answers a digest when the other end sends no more."""
    sock.sendall(hashlib.sha256(read_all(sock)).hexdigest().encode())


def source(sock: socket.socket) -> None:
    """Sends as many bytes as the first line says."""
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    sock.sendall(some_bytes(int(line)))


def messages(sock: socket.socket) -> None:
    """Sends back messages as they come."""
    while message := sock.recv(MOST_MESSAGE):
        sock.send(message)


def silent(sock: socket.socket) -> None:
    """Reads nothing until the first byte that is sent out of the ordinary: for ever."""
    threading.Event().wait()


def serve() -> None:
    """Serves all ports, until the program is ended."""
    servers: list[tuple[int, int, Callable[[socket.socket], None]]] = [
        (ECHO, socket.SOCK_STREAM, echo),
        (DIGEST, socket.SOCK_STREAM, digest),
        (SOURCE, socket.SOCK_STREAM, source),
        (MESSAGES, socket.SOCK_SEQPACKET, messages),
        (SILENT, socket.SOCK_STREAM, silent),
    ]
    for port, kind, handler in servers:
        listener = socket.socket(socket.AF_VSOCK, kind)
        listener.bind((socket.VMADDR_CID_ANY, port))
        listener.listen(256)
        threading.Thread(target=accept_all, args=(listener, handler)).start()
    print("serving", flush=True)


def accept_all(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    """Serves each client in a thread."""
    while True:
        client, _ = listener.accept()
        threading.Thread(target=serve_one, args=(client, handler)).start()


def serve_one(client: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    with client:
        try:
            handler(client)
        except OSError as error:
            print(error, flush=True)


def connect(port: int, count: int, size: int) -> None:
    """Opens connections, then uses all of them at once."""
    data = some_bytes(size)
    socks = [socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) for _ in range(count)]
    for sock in socks:
        sock.connect((HOST, port))
    for sock in socks:
        threading.Thread(target=sock.sendall, args=(data,)).start()
    same = sum(read_exactly(sock, size) == data for sock in socks)
    print(f"{same} of {count}")


def send_messages(port: int, sizes: list[int]) -> None:
    """Sends messages, and looks at what comes back."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as sock:
        sock.connect((HOST, port))
        for size in sizes:
            sock.send(some_bytes(size))
            answer = sock.recv(MOST_MESSAGE)
            print(len(answer), answer == some_bytes(size))


def refused(cid: int, port: int) -> None:
    """Says with which error a connection fails."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        try:
            sock.connect((cid, port))
        except OSError as error:
            print(type(error).__name__)


def half(port: int, size: int, buffer: int = 0) -> None:
    """Says that it sends no more, and reads on; with a socket that keeps so much, if it is told."""
    data = some_bytes(size)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
        if buffer:
            sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MIN_SIZE, buffer)
            sock.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, buffer)
        sock.connect((HOST, port))
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        print(read_all(sock).decode() == hashlib.sha256(data).hexdigest())


def pour(port: int, sizes: list[int]) -> None:
    """Sends messages, and nothing comes back before the end.

    The socket waits. With a timeout, Linux would send the begin of a message twice if it has no room.
    """
    with socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET) as sock:
        sock.connect((HOST, port))
        for size in sizes:
            sock.send(some_bytes(size))
        sock.shutdown(socket.SHUT_WR)
        expected = hashlib.sha256(b"".join(map(some_bytes, sizes))).hexdigest()
        print(sock.recv(CHUNK).decode() == expected)


def main(command: str, *arguments: str) -> None:
    numbers = [int(argument) for argument in arguments]
    if command in ("messages", "pour"):
        {"messages": send_messages, "pour": pour}[command](numbers[0], numbers[1:])
    else:
        commands: dict[str, Callable[..., None]] = {"connect": connect, "refused": refused, "half": half}
        commands.get(command, serve)(*numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
