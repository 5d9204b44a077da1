"""A device to play with, and a front-end connected to it in the same process."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, SharedMemory
from vhostd.ring import Chain
from vhostd.vhost_user.messages import FRONT_END, GET_FEATURES
from vhostd.vhost_user.offer import DEFAULT_OFFER, Offer
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device, Handler
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import DeviceType
from vhostd.wire.channel import Channel
from vhostd.wire.rows import Empty

NO_FD = 0x100  # in the payload of SET_VRING_KICK, CALL and ERR


class Echo(Device):
    """Two queues: the first echoes at once, the second holds every chain until `release`.

    The first byte of what the first queue gets may be a command: "!" raises a bug of ours.
    """

    kind = DeviceType.CONSOLE
    features = 1 << 5

    def __init__(self) -> None:
        self.space = bytearray(b"configuration")
        self.held: list[Chain] = []
        self.holding = asyncio.Event()
        self.ended = asyncio.Event()
        self.held_queue: Virtqueue | None = None
        self.resets = 0
        self.resumes = 0
        self.served = 0

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.echoq, self.holdq]

    async def echoq(self, queue: Virtqueue) -> None:
        async for chain in queue:
            data = chain.read(chain.readable)
            if data.startswith(b"!"):
                raise ZeroDivisionError("a fault of the device")
            chain.write(data[: chain.writable])
            self.served += 1
            queue.push(chain)

    async def holdq(self, queue: Virtqueue) -> None:
        self.held_queue = queue
        async for chain in queue:
            self.held.append(chain)
            self.holding.set()
        self.ended.set()

    def release(self) -> None:
        """Answers all that the second queue holds with "held"."""
        assert self.held_queue is not None
        for chain in self.held:
            chain.write(b"held"[: chain.writable])
            self.held_queue.push(chain)
        self.held.clear()
        self.holding.clear()

    def read_config(self) -> bytes:
        return bytes(self.space)

    def write_config(self, offset: int, data: bytes) -> None:
        if offset < 4:
            raise RefusedRequest("the first four bytes are read-only")
        self.space[offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets += 1

    def resume(self) -> None:
        self.resumes += 1


@asynccontextmanager
async def connected(device: Device, offer: Offer = DEFAULT_OFFER) -> AsyncIterator[Frontend]:
    """A front-end of a session with the device, which has ended when the block has."""
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END), offer=offer).run())
    frontend = Frontend(ours)
    try:
        yield frontend
    finally:
        frontend.close()
        await serving


@asynccontextmanager
async def negotiated(
    device: Device, features: int | None = None, size: int = 1 << 20, offer: Offer = DEFAULT_OFFER
) -> AsyncIterator[tuple[Frontend, SharedMemory]]:
    """As `connected`, with all, or these, features accepted and a memory shared."""
    memory = SharedMemory(size)
    try:
        async with connected(device, offer) as frontend:
            await frontend.negotiate(features, protocol_features=~0)  # INBAND_NOTIFICATIONS as well
            await frontend.share(memory)
            yield frontend, memory
    finally:
        memory.close()


async def closed(frontend: Frontend) -> None:
    """Asks harmless questions until the session has closed the connection."""
    with suppress(ConnectionError):
        while True:
            await frontend.call(GET_FEATURES, Empty())


async def refused(request: Awaitable[object]) -> None:
    """Expects a non-zero ack, or what stands for one."""
    with pytest.raises(RefusedRequest):
        await request


@asynccontextmanager
async def backend_requests(frontend: Frontend) -> AsyncIterator[Channel]:
    """Takes the back-end's requests: a channel on which they arrive."""
    channel = await frontend.take_requests()
    try:
        yield channel
    finally:
        channel.close()
