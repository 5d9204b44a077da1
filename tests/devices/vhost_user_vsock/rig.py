"""A guest's driver and the host's sockets, with the real device and session between, in one process."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from tests.sessions import negotiated
from vhost_user_vsock.device import Vsock
from vhostd.frontend import Frontend, SharedMemory, VsockDriver
from vhostd.frontend.drivers.vsock import VsockConnection
from vhostd.program.command_line import CommandLine
from vhostd.program.options import parse

CID = 7
PATIENCE = 20.0  # seconds for what takes milliseconds


class Rig:
    """The driver of a guest, and the host beside it."""

    def __init__(self, path: Path, device: Vsock, frontend: Frontend, memory: SharedMemory) -> None:
        self.path, self.device, self.frontend, self.memory = path, device, frontend, memory
        self.driver: VsockDriver
        self.stack = ExitStack()
        self._loop = asyncio.get_running_loop()

    def serve(self, port: int, kind: int = socket.SOCK_STREAM, backlog: int = 64) -> socket.socket:
        """A server of the host at a port."""
        server = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        server.setblocking(False)
        server.bind(f"{self.path}_{port}")
        server.listen(backlog)
        return server

    async def accept(self, server: socket.socket) -> socket.socket:
        """The next client of a server."""
        client, _ = await self._loop.sock_accept(server)
        return self.stack.enter_context(client)

    async def client(self, line: bytes = b"", kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A client of the host, which has said this."""
        client = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        client.setblocking(False)
        suffix = "_seqpacket" if kind == socket.SOCK_SEQPACKET else ""
        await self._loop.sock_connect(client, f"{self.path}{suffix}")
        if line:
            await self._loop.sock_sendall(client, line)
        return client

    async def receive(self, sock: socket.socket, size: int = 1 << 16) -> bytes:
        """What comes next on a socket of the host."""
        async with asyncio.timeout(PATIENCE):
            return await self._loop.sock_recv(sock, size)

    async def receive_exactly(self, sock: socket.socket, size: int) -> bytes:
        """So many bytes."""
        parts = bytearray()
        while len(parts) < size:
            part = await self.receive(sock, size - len(parts))
            assert part, f"the end after {len(parts)} bytes of {size}"
            parts += part
        return bytes(parts)

    async def send(self, sock: socket.socket, data: bytes) -> None:
        """Sends all of it."""
        async with asyncio.timeout(PATIENCE):
            await self._loop.sock_sendall(sock, data)


async def send_for_ever(connection: VsockConnection) -> None:
    """Sends until that fails."""
    while True:
        await connection.send(bytes(1000))


def make(*options: str) -> Vsock:
    """The device, as its program makes it."""
    arguments = ("vsock", f"--guest-cid={CID}", *options)
    return Vsock.from_options(parse(Vsock, CommandLine(list(arguments))))


@asynccontextmanager
async def running(device: Vsock) -> AsyncIterator[None]:
    """The device serves the host's side, as in its program; it is closed then."""
    task = asyncio.create_task(device.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        device.close()


@asynccontextmanager
async def rig(tmp_path: Path, *options: str, room: int = 4096, size: int = 128) -> AsyncIterator[Rig]:
    """A guest that runs."""
    path = tmp_path / "vm"
    async with guest(path, make(f"--uds-path={path}", *options), room=room, size=size) as made:
        yield made


@asynccontextmanager
async def forwarding(tmp_path: Path, cid: int, *options: str) -> AsyncIterator[Rig]:
    """A guest whose sockets lead to AF_VSOCK."""
    async with guest(tmp_path, make(f"--forward-cid={cid}", *options)) as made:
        yield made


@asynccontextmanager
async def guest(path: Path, device: Vsock, *, room: int = 4096, size: int = 128) -> AsyncIterator[Rig]:
    """A guest of this device."""
    async with running(device), negotiated(device, size=32 << 20) as (frontend, memory):
        made = Rig(path, device, frontend, memory)
        made.driver = await VsockDriver.start(frontend, memory, size=size, room=room)
        with made.stack:
            try:
                async with asyncio.timeout(PATIENCE):
                    yield made
            finally:
                made.driver.close()
