"""Requests that were given up, and on which the device goes on working all the same.

A thread, or the kernel, may be in the middle of a write when its ring breaks or its front-end goes, and
nothing can end that. It must not fall into the time of the next ring, which would find its own write
overwritten by an older one.
"""

import gc

from vhostd.virtqueue import Virtqueue


class Leftovers:
    """The queues of a device that have stopped while chains of theirs were out."""

    def __init__(self) -> None:
        self._queues: list[Virtqueue] = []

    def add(self, queue: Virtqueue) -> None:
        """Takes note of a queue that has stopped."""
        if queue.in_flight:
            gc.collect()  # those of a handler that failed may only be held by the traceback's frames
        if queue.in_flight:
            self._queues.append(queue)

    @property
    def requests(self) -> int:
        """How many requests the device still works on."""
        return sum(queue.in_flight for queue in self._queues)

    async def gone(self) -> None:
        """Waits until the device works on none of them any more."""
        while self._queues:
            await self._queues[0].emptied()
            self._queues = [queue for queue in self._queues if queue.in_flight]
