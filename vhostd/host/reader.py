"""Bytes of a file that may have none for long: they are read where nobody waits for them."""

import asyncio
import os
import time
from functools import partial

from vhostd.host.threads import Threads
from vhostd.wire.fds import Fd

PIECE = 64  # bytes of the first read: a device may not give any before it has all that it is asked for
MOST = 1 << 16  # bytes at a time
GROWTH = 8  # times as many with each read that is fast
PATIENCE = 0.02  # seconds that a fast one takes, and that more bytes are waited for when there are some


class Reader:
    """Reads a file beside the event loop, when somebody waits for bytes; keeps them until they are taken.

    `at_hand` counts those. One read is under way at a time.
    """

    def __init__(self, path: str) -> None:
        """Opens the file; raises OSError."""
        self.name = path
        # A serial line must not become our terminal, whose bytes may be signals.
        self._fd = Fd(os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
        self._threads = Threads(name="reader")
        self._bytes = b""
        self._end: Exception | None = None
        self._piece = PIECE
        self._reading: asyncio.Future[None] | None = None

    @property
    def at_hand(self) -> int:
        return len(self._bytes)

    def take(self, size: int) -> bytes:
        """Up to so many bytes of those at hand; nobody gets them again."""
        taken, self._bytes = self._bytes[:size], self._bytes[size:]
        return taken

    async def fill(self, size: int) -> None:
        """Has `size` bytes at hand, or fewer if the file is slow, or has an end; at least one.

        Raises the read's OSError, or EOFError at the end of the file. Call it where no chain is held: the
        ring's stop need not wait then. Who is cancelled loses nothing: what comes is there for the next.
        """
        is_fast = True
        while not self.at_hand or (is_fast and self._end is None and self.at_hand < size):
            if self._end is not None:
                raise self._end
            is_fast = await self._wait_for_more(size - self.at_hand)

    def close(self) -> None:
        """Closes the file; a read that goes on is waited for only a moment."""
        self._threads.close()
        self._fd.close()

    async def _wait_for_more(self, size: int) -> bool:
        """Waits for a read; only a moment if there are bytes at hand. Whether it was fast."""
        before = time.monotonic()
        reading = self._reading or self._read(min(self._piece, size))
        await asyncio.wait([reading], timeout=PATIENCE if self.at_hand else None)
        is_fast = time.monotonic() - before < PATIENCE
        self._piece = min(self._piece * GROWTH, MOST) if is_fast else PIECE
        return is_fast

    def _read(self, size: int) -> "asyncio.Future[None]":
        self._reading = reading = asyncio.get_running_loop().create_future()

        def arrived(result: bytes | Exception) -> None:
            self._reading = None
            if isinstance(result, Exception):
                self._end = result
            elif result:
                self._bytes += result
            else:
                self._end = EOFError(f"the end of {self.name}")
            reading.set_result(None)

        self._threads.do(partial(os.read, self._fd.fileno(), size), arrived)
        return reading
