"""A file that somebody else has passed, read or written from end to end: a pipe, a socket, a file.

It may be slow, or silent for ever. Whoever waits for it can be cancelled, and closes it then.
"""

import asyncio
import os
import select
from collections.abc import Callable
from functools import partial

from vhostd.host.threads import Threads
from vhostd.wire.fds import Fd

PIECE = 1 << 18  # bytes at a time
PAUSE = 5  # milliseconds of silence after which the event loop waits instead of a thread


class Stream:
    """Reads or writes the file, which it takes, without keeping the event loop waiting.

    Its O_NONBLOCK is set, but is shared with whoever passed it, and may be cleared; and a file has a file
    system, which may not answer. So the event loop waits until the fd is ready, and a thread does the rest,
    as long as there is something to do.
    """

    def __init__(self, fd: Fd, name: str) -> None:
        """`name` is the thread's. Raises OSError, and leaves `fd` to the caller, if it is of no use."""
        os.set_blocking(fd.fileno(), False)
        self._fd = Fd(fd.take())
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(name=name)
        self._is_closed = False

    async def read(self, size: int) -> bytes:
        """Reads `size` bytes, or fewer if the file ends before; raises OSError."""
        number, read = self._fd.fileno(), bytearray()

        def step() -> bool:
            piece = os.read(number, min(size - len(read), PIECE))
            read.extend(piece)
            return not piece or len(read) == size

        if size:
            await self._go(step, writing=False)
        return bytes(read)

    async def write(self, data: bytes) -> None:
        """Writes all of the bytes; raises OSError."""
        number, left = self._fd.fileno(), memoryview(data)

        def step() -> bool:
            nonlocal left
            left = left[os.write(number, left[:PIECE]) :]
            return not left

        if data:
            await self._go(step, writing=True)

    def close(self) -> None:
        """Closes the file. What a thread still does with it is waited for only a moment."""
        self._is_closed = True
        self._threads.close()
        self._fd.close()

    async def _go(self, step: Callable[[], bool], *, writing: bool) -> None:
        """Takes steps until one says that it was the last."""
        is_done = False
        while not is_done:
            await self._ready(writing=writing)
            is_done = await self._threads.run(partial(self._burst, step, writing=writing))

    def _burst(self, step: Callable[[], bool], *, writing: bool) -> bool:
        """In a thread: takes steps as long as the other side keeps pace. Whether the last one was taken."""
        ready = select.poll()
        ready.register(self._fd, select.POLLOUT if writing else select.POLLIN)
        while not self._is_closed:
            try:
                if step():
                    return True
            except BlockingIOError:
                if not ready.poll(PAUSE):
                    return False
        return False

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
