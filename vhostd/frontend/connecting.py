"""Connecting to a socket that listens, however many others wait there."""

import asyncio
import os
import socket

PAUSE = 0.005  # seconds until the next attempt


async def connected(path: str | os.PathLike[str], patience: float | None = None) -> socket.socket:
    """A connection to `path`; TimeoutError if that takes more than `patience` seconds."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(patience):
            # Not sock_connect: it takes EAGAIN, a full backlog here, for a connection on its way.
            while not _connect(sock, os.fspath(path)):
                await asyncio.sleep(PAUSE)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: socket.socket, path: str) -> bool:
    try:
        sock.connect(path)
    except BlockingIOError:
        return False
    return True
