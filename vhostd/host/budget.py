"""A limit on what a guest gets in a time."""

import asyncio
import time


class Budget:
    """What may be spent in each period: bytes, requests, whatever its owner counts.

    `left` is what may be spent now; who spends subtracts. The first period begins with the first `refill`.
    """

    def __init__(self, limit: int, period: float) -> None:
        """`limit` per `period` seconds."""
        self.left = 0
        self._limit = limit
        self._period = period
        self._end = 0.0

    async def refill(self) -> float:
        """Starts a new period if the old one is over; waits for that if nothing is left of it.

        Returns the seconds that it waited. Call it where no chain is held: the ring's stop need not wait
        then.
        """
        begin = now = time.monotonic()
        while now < self._end:
            if self.left:
                return now - begin
            await asyncio.sleep(self._end - now)  # which may end early
            now = time.monotonic()
        self.left, self._end = self._limit, now + self._period
        return now - begin
