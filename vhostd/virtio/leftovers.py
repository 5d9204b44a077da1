"""Requests that were given up, and on which the device goes on working all the same.

A thread, or the kernel, may be in the middle of a write when its ring breaks or its front-end goes, and
nothing can end that. It must not fall into the time of the next ring, which would find its own write
overwritten by an older one.
"""

import asyncio
import gc
from collections.abc import Callable
from functools import partial

from vhostd.virtio.virtqueue import Virtqueue


class Leftovers:
    """The queues of a device that have stopped while chains of theirs were out, as long as they are."""

    def __init__(self) -> None:
        self._queues: list[Virtqueue] = []
        self._emptied = asyncio.Event()

    def add(self, queue: Virtqueue) -> None:
        """Takes note of a queue that has stopped."""
        if queue.in_flight:
            self._queues.append(queue)
            queue.when_emptied(partial(self._forget, queue))

    @property
    def requests(self) -> int:
        """How many requests the device still works on."""
        return sum(queue.in_flight for queue in self._queues)

    def use(self, first: int, last: int) -> bool:
        """Whether one of them has a buffer at these I/O virtual addresses."""
        return any(queue.ring.uses(first, last) for queue in self._queues)

    async def let_go(self, first: int, last: int) -> None:
        """Waits until none of them has a buffer at these I/O virtual addresses."""
        for queue in tuple(self._queues):
            await queue.let_go(first, last)

    async def gone(self) -> None:
        """Waits until the device works on none of them any more."""
        await self._wait(lambda: self.requests > 0)

    async def gone_from(self, queue: Virtqueue) -> None:
        """Waits until the device works on none of this queue's any more."""
        await self._wait(lambda: queue in self._queues)

    async def _wait(self, under_way: Callable[[], bool]) -> None:
        if under_way():
            gc.collect()  # nobody works on a request that only a circle of objects holds
        while under_way():
            self._emptied.clear()
            await self._emptied.wait()

    def _forget(self, queue: Virtqueue) -> None:
        """Lets go of a queue, which keeps its guest's memory mapped."""
        self._queues.remove(queue)
        self._emptied.set()
