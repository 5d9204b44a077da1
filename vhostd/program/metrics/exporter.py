"""Those who ask for metrics: a few at a time, each with little time, and at the device's leisure.

Whoever can connect may be hostile. One connection is taken from the kernel's queue at a time, with a pause
after it; while too many are open, none. A page is written at most every so often, so that however many ask
for it, the device has nearly all of the program's time.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from vhostd.program.metrics.http import END, MAX_HEAD

log = logging.getLogger(__name__)

MOST = 8  # connections at a time
PATIENCE = 10.0  # seconds that one may take in all
PAUSE = 0.01  # seconds between two
FAILURE_PAUSE = 1.0  # seconds until the next try when one could not be accepted
REST = 19  # times as long as it took to write a page passes until the next one: 5 % of the time at most
MOST_IGNORED = 1 << 16  # bytes that somebody may go on sending while the response is on its way


class Exporter:
    """Serves those who connect to a listening socket, which stays its owner's.

    `respond` makes a whole response of the first bytes of a request.
    """

    def __init__(self, listener: socket.socket, respond: Callable[[bytes], bytes]) -> None:
        self._listener = listener
        self._respond = respond
        self._room = asyncio.Semaphore(MOST)
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as connections:
            while True:
                await self._room.acquire()
                sock = await self._accept()
                connections.create_task(self._serve(sock), name="metrics")
                await asyncio.sleep(PAUSE)

    async def _accept(self) -> socket.socket:
        while True:
            try:
                sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
                return sock
            except OSError as error:  # it went again, or there are no fds left
                log.warning("a connection for metrics could not be accepted: %s", error)
                await asyncio.sleep(FAILURE_PAUSE)

    async def _serve(self, sock: socket.socket) -> None:
        try:
            with sock, suppress(OSError):  # TimeoutError is one
                async with asyncio.timeout(PATIENCE):
                    await self._answer(sock)
        except Exception:
            log.exception("a connection for metrics ended by a fault of this program")
        finally:
            self._room.release()

    async def _answer(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        if head := await _receive_head(sock):
            await loop.sock_sendall(sock, await self._write_page(head))
            sock.shutdown(socket.SHUT_WR)
            # Closing with something unread would take the response back from who has not read it yet.
            await _ignore(sock)

    async def _write_page(self, head: bytes) -> bytes:
        async with self._turn:
            begin = time.perf_counter()
            page = self._respond(head)
            await asyncio.sleep(REST * (time.perf_counter() - begin))
        return page


async def _receive_head(sock: socket.socket) -> bytes:
    """The bytes up to the end of the head, to MAX_HEAD, or to the end of what there is."""
    loop = asyncio.get_running_loop()
    head = b""
    while END not in head and (more := await loop.sock_recv(sock, MAX_HEAD - len(head))):
        head += more
    return head


async def _ignore(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    left = MOST_IGNORED
    while left > 0 and (more := await loop.sock_recv(sock, left)):
        left -= len(more)
