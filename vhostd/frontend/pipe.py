"""Fds on the event loop: waiting for one, and a pipe from end to end."""

import asyncio
import os
from collections.abc import Callable

from vhostd.wire.fds import Fd

PIECE = 1 << 18  # bytes at a time


async def readable(fd: int) -> None:
    """Waits until there is something to read, or an end."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_reader, loop.remove_reader)


async def writable(fd: int) -> None:
    """Waits until there is room to write, or nobody who reads."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_writer, loop.remove_writer)


async def read_all(pipe: Fd) -> bytes:
    """Reads to the end of a pipe."""
    os.set_blocking(pipe.fileno(), False)
    data = bytearray()
    while True:
        try:
            if not (piece := os.read(pipe.fileno(), PIECE)):
                return bytes(data)
            data += piece
        except BlockingIOError:
            await readable(pipe.fileno())


async def write_all(pipe: Fd, data: bytes) -> None:
    """Writes all of the bytes; raises BrokenPipeError if nobody reads them any more."""
    os.set_blocking(pipe.fileno(), False)
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(pipe.fileno(), left[:PIECE]) :]
        except BlockingIOError:
            await writable(pipe.fileno())


async def _ready(fd: int, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    ready = asyncio.Event()
    watch(fd, ready.set)
    try:
        await ready.wait()
    finally:
        unwatch(fd)
