"""A guest's virtio-rng driver to script (virtio 1.3, 5.4)."""

from typing import Self

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.queue import Queue


class RngDriver:
    """Drives an entropy source over its requestq, which it owns. Raises what a `Pipeline` raises."""

    def __init__(self, queue: Queue) -> None:
        self._requestq = Pipeline(queue)

    @classmethod
    async def start(cls, frontend: Frontend, memory: SharedMemory, *, size: int = 64) -> Self:
        """Starts the requestq, of `size` descriptors, of which a request takes one."""
        return cls(await frontend.start(memory, 0, size))

    async def read(self, size: int) -> bytes:
        """Random bytes: `size` of them, or fewer, if the device has no more now."""
        answer = await self._requestq.request(room=size)
        if not answer:  # 5.4.6.2: the device MUST place one or more random bytes
            raise DeviceError("the device has filled nothing")
        return answer

    def close(self) -> None:
        """Closes the queue; whoever still waits is cancelled. Idempotent."""
        self._requestq.close()
