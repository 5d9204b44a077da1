"""`python talk.py udp|tcp HOST PORT ...`: talks to tests/net/echo.py, and compares all that comes back.

    udp HOST PORT FIRST LAST STEP     a datagram of each of these sizes
    tcp HOST PORT BYTES               so many bytes, both ways at once
    turns HOST PORT BYTES             so many bytes, first there, then back, at the port behind PORT

They print `talks` after the first answer. TCP loses nothing, whatever happens to the card meanwhile.
"""

import random
import socket
import sys
from threading import Thread

PIECE = 1 << 16
PATTERN = random.Random(1).randbytes(PIECE) * 2
TRIES = 5
PATIENCE = 60.0


def udp(address: tuple[str, int], first: int, last: int, step: int) -> None:
    """Raises if a datagram does not come back, however often it is sent, or comes back as another."""
    lost = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.settimeout(1.0)
        for size in range(first, last + 1, step):
            begin = size % PIECE
            data = PATTERN[begin : begin + size]
            lost += exchange(sock, data)
            if size == first:
                print("talks", flush=True)
    print("lost", lost)


def exchange(sock: socket.socket, data: bytes) -> int:
    """Sends a datagram until it comes back; how often it was lost."""
    for lost in range(TRIES):
        sock.send(data)
        try:
            while (answer := sock.recv(PIECE * 2)) != data:
                if len(answer) == len(data):
                    raise SystemExit(f"a datagram of {len(data)} bytes came back as another")
        except TimeoutError:
            continue
        return lost
    raise SystemExit(f"a datagram of {len(data)} bytes is lost each time")


def tcp(address: tuple[str, int], size: int, *, at_once: bool) -> None:
    """Raises if what comes back is not what was sent."""
    with socket.create_connection(address, timeout=PATIENCE) as sock:
        if not at_once:
            sock.sendall(size.to_bytes(8, "big"))
        sender = Thread(target=send, args=(sock, size), daemon=True)
        sender.start()
        if not at_once:
            sender.join()
        received = 0
        while received < size:
            data = sock.recv(PIECE)
            if not data:
                raise SystemExit(f"the connection ended after {received} bytes")
            begin = received % PIECE
            if data != PATTERN[begin : begin + len(data)]:
                raise SystemExit(f"other bytes came back, from {received} on")
            if not received:
                print("talks", flush=True)
            received += len(data)
        sender.join()
    print("received", received)


def send(sock: socket.socket, size: int) -> None:
    """Sends the pattern again and again."""
    piece = PATTERN[:PIECE]
    for left in range(size, 0, -PIECE):
        sock.sendall(piece[: min(left, PIECE)])


def main() -> None:
    """What the command line asks for."""
    kind, host, port, *numbers = sys.argv[1:]
    if kind == "udp":
        first, last, step = map(int, numbers)
        udp((host, int(port)), first, last, step)
    elif kind == "tcp":
        tcp((host, int(port)), int(numbers[0]), at_once=True)
    else:
        tcp((host, int(port) + 1), int(numbers[0]), at_once=False)


if __name__ == "__main__":
    main()
