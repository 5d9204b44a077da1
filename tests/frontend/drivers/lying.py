"""A device that answers every request with what the test wants, right or wrong."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from tests.sessions import Echo, negotiated
from vhostd import Handler, Virtqueue
from vhostd.frontend import Frontend, SharedMemory


class Liar(Echo):
    """Both queues write `answer`, as much of it as there is room for."""

    def __init__(self, answer: bytes = b"") -> None:
        super().__init__()
        self.answer = answer

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.lie, self.lie]

    async def lie(self, queue: Virtqueue) -> None:
        async for chain in queue:
            chain.write(self.answer[: chain.writable])
            queue.push(chain)

    def read_config(self) -> bytes:
        return bytes((1, 0, 255))  # an answer that is longer than the config space

    def write_config(self, offset: int, data: bytes) -> None:
        pass


@asynccontextmanager
async def lying(answer: bytes = b"") -> AsyncIterator[tuple[Frontend, SharedMemory]]:
    """A front-end of such a device."""
    async with negotiated(Liar(answer)) as (frontend, memory):
        yield frontend, memory
