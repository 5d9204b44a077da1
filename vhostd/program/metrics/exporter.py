"""Answers scrapes of the metrics: few connections at a time, each with a time limit.

A client may be hostile. One connection is accepted at a time, with a pause after it; while too many are open,
none is accepted. After each page there is a rest, so that the device has nearly all of the program's time,
however many clients there are.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from vhostd.host.accept import accept
from vhostd.program.metrics.http import END, MAX_HEAD

log = logging.getLogger(__name__)

MOST = 8  # connections that may be open at a time
PATIENCE = 10.0  # seconds that a connection may take in all
PAUSE = 0.01  # seconds between two accepted connections
REST = 19  # a page's time is followed by a rest of 19 times as long: pages take at most 5 % of the time
MOST_IGNORED = 1 << 16  # bytes that are read and ignored after the response


class Exporter:
    """Answers the clients of a listening socket. The socket stays its owner's.

    `respond` turns the first bytes of a request into a whole response.
    """

    def __init__(self, listener: socket.socket, respond: Callable[[bytes], bytes]) -> None:
        self._listener = listener
        self._respond = respond
        self._free_connections = asyncio.Semaphore(MOST)
        self._page_lock = asyncio.Lock()

    async def run(self) -> None:
        """Answers clients until it is cancelled."""
        async with asyncio.TaskGroup() as connections:
            while True:
                await self._free_connections.acquire()
                sock = await accept(self._listener, "metrics")
                connections.create_task(self._answer_scrape(sock), name="metrics")
                await asyncio.sleep(PAUSE)

    async def _answer_scrape(self, sock: socket.socket) -> None:
        try:
            with sock, suppress(OSError):  # TimeoutError is an OSError
                async with asyncio.timeout(PATIENCE):
                    await self._receive_and_answer(sock)
        except Exception:
            log.exception("a connection for metrics ended by a fault of this program")
        finally:
            self._free_connections.release()

    async def _receive_and_answer(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if head := await _receive_head(sock):
            await loop.sock_sendall(sock, await self._write_page(head))
            sock.shutdown(socket.SHUT_WR)
            # close(2) with unread bytes would drop a response that the client has not read yet.
            await _read_and_ignore(sock)

    async def _write_page(self, head: bytes) -> bytes:
        async with self._page_lock:
            begin = time.perf_counter()
            page = self._respond(head)
            await asyncio.sleep(REST * (time.perf_counter() - begin))
        return page


async def _receive_head(sock: socket.socket) -> bytes:
    """Receives up to the end of the request's head, MAX_HEAD bytes, or the end of the stream."""
    loop = asyncio.get_running_loop()
    head = b""
    while END not in head and (more := await loop.sock_recv(sock, MAX_HEAD - len(head))):
        head += more
    return head


async def _read_and_ignore(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    left = MOST_IGNORED
    while left > 0 and (more := await loop.sock_recv(sock, left)):
        left -= len(more)
