"""A console device that a test drives, with the real session between, and who is at its lines."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.sessions import negotiated
from vhost_user_console.device import Console
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.console import ConsoleDriver
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse


def made(*ports: str) -> Console:
    """The device as its program makes it of options."""
    options = [f"--port={port}" for port in ports]
    return Console.from_options(parse(Console, CommandLine(["console", *options])))


@asynccontextmanager
async def running(*ports: str) -> AsyncIterator[Console]:
    """A device that sees who comes and goes."""
    device = made(*ports)
    living = asyncio.create_task(device.run())
    try:
        await asyncio.sleep(0)
        yield device
    finally:
        living.cancel()
        await asyncio.wait([living])
        device.close()


@asynccontextmanager
async def driven(
    device: Console, features: int | None = None, *, ports: int = 1, size: int = 16
) -> AsyncIterator[tuple[Frontend, ConsoleDriver]]:
    """A driver of the device's."""
    async with negotiated(device, features, size=4 << 20) as (frontend, memory):
        driver = await started(frontend, memory, ports=ports, size=size)
        try:
            yield frontend, driver
        finally:
            driver.close()


async def started(
    frontend: Frontend, memory: SharedMemory, *, ports: int = 1, size: int = 16
) -> ConsoleDriver:
    """A driver with so many ports."""
    return await ConsoleDriver.start(frontend, memory, ports=ports, size=size)


class Terminal:
    """Somebody who has a terminal open."""

    def __init__(self, path: str | Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)

    def write(self, data: bytes) -> None:
        """Types something."""
        assert os.write(self.fd, data) == len(data)

    async def read(self, size: int) -> bytes:
        """What is shown, so many bytes of it."""
        shown = b""
        while len(shown) < size:
            await _readable(self.fd)
            shown += os.read(self.fd, size - len(shown))
        return shown

    def close(self) -> None:
        """Goes."""
        os.close(self.fd)


@contextmanager
def opened(path: str | Path) -> Iterator[Terminal]:
    """Somebody who has the terminal open for the block's time."""
    terminal = Terminal(path)
    try:
        yield terminal
    finally:
        terminal.close()


@contextmanager
def client(path: str | Path) -> Iterator[socket.socket]:
    """Somebody who has connected to a socket for the block's time."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.setblocking(False)
        yield sock


async def received(sock: socket.socket, size: int) -> bytes:
    """So many bytes that come to a client; fewer if it is hung up on."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < size and (piece := await loop.sock_recv(sock, size - len(data))):
        data += piece
    return data


async def _readable(fd: int) -> None:
    ready = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
