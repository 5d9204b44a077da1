"""`python fake.py MANNER SOCKET`: the least of a back-end, which behaves badly when SET_OWNER comes.

It answers GET_FEATURES only. Of vhostd it uses nothing, and so it starts at once.
"""

import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress

GET_FEATURES, SET_OWNER = 1, 3
FEATURES = 1 << 32
ONCE = ("once", "once-dying", "once-panicking")
HEADER = struct.Struct("=III")


def main(manner: str, path: str) -> None:
    """Serves one front-end after the other; `once` ends with the first."""
    while True:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            print("listening", flush=True)
            serve_all(listener, manner)
        if manner in ONCE:
            return
        os.unlink(path)


def serve_all(listener: socket.socket, manner: str) -> None:
    """Serves who comes; `once` one only, and also if it is `renewing` its socket for each."""
    while True:
        connection, _ = listener.accept()
        with connection, suppress(ConnectionError):
            serve(connection, manner)
        if manner in (*ONCE, "renewing"):
            return


def serve(connection: socket.socket, manner: str) -> None:
    """Answers until the front-end goes."""
    while len(header := connection.recv(HEADER.size)) == HEADER.size:
        request, _, size = HEADER.unpack(header)
        connection.recv(size)
        if request == GET_FEATURES and manner != "silent":
            connection.send(HEADER.pack(request, 5, 8) + struct.pack("=Q", FEATURES))
        elif request == SET_OWNER:
            behave(connection, manner)


def behave(connection: socket.socket, manner: str) -> None:
    """What SET_OWNER leads to."""
    if manner == "hanging":
        time.sleep(3600)
    elif manner == "ending":
        sys.exit("it cannot go on")
    elif manner in ("dying", "once-dying"):
        os.kill(os.getpid(), signal.SIGKILL)
    elif manner == "once-panicking":
        sys.exit("thread 'main' panicked at src/main.rs:1:2:\nit cannot go on")
    elif manner == "closing":
        connection.shutdown(socket.SHUT_RDWR)
    elif manner == "talking":
        connection.send(b"\xff" * HEADER.size)


if __name__ == "__main__":
    main(*sys.argv[1:])
