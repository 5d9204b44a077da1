"""A file that somebody else has passed, read or written from end to end: a pipe, a socket, a file.

It may be slow, or silent for ever. Whoever waits for it can be cancelled.
"""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from vhostd.host.threads import Threads
from vhostd.wire.fds import Fd

T = TypeVar("T")

PIECE = 1 << 18  # bytes at a time


class Stream:
    """Reads or writes the file, which it takes, without keeping the event loop waiting.

    Its O_NONBLOCK is set, but is shared with whoever passed it, and may be cleared; and a file has a file
    system, which may not answer. So the event loop waits until the fd is ready, and a thread does the rest.
    """

    def __init__(self, fd: Fd, name: str) -> None:
        """`name` is the thread's. Raises OSError, and leaves `fd` to the caller, if it is of no use."""
        os.set_blocking(fd.fileno(), False)
        self._fd = Fd(fd.take())
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(name=name)

    async def read(self, size: int) -> bytes:
        """Reads `size` bytes, or fewer if the file ends before; raises OSError."""
        read = bytearray()
        while len(read) < size:
            read_some = partial(os.read, self._fd.fileno(), min(size - len(read), PIECE))
            if not (piece := await self._when_ready(read_some, writing=False)):
                break
            read += piece
        return bytes(read)

    async def write(self, data: bytes) -> None:
        """Writes all of the bytes; raises OSError."""
        left = memoryview(data)
        while left:
            write_some = partial(os.write, self._fd.fileno(), left[:PIECE])
            left = left[await self._when_ready(write_some, writing=True) :]

    def close(self) -> None:
        """Closes the file. What a thread still does with it is waited for only a moment."""
        self._threads.close()
        self._fd.close()

    async def _when_ready(self, work: Callable[[], T], *, writing: bool) -> T:
        while True:
            await self._ready(writing=writing)
            try:
                return await self._threads.run(work)
            except BlockingIOError:
                continue

    async def _ready(self, *, writing: bool) -> None:
        loop, ready = self._loop, asyncio.Event()
        watch, unwatch = (
            (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
        )
        try:
            watch(self._fd.fileno(), ready.set)
        except PermissionError:  # a file of a kind that is always ready (epoll_ctl(2))
            return
        try:
            await ready.wait()
        finally:
            unwatch(self._fd.fileno())
