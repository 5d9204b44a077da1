"""A limit on requests and bytes per second: a bucket for each fills at the rate, and holds a second of it."""

import time
from collections.abc import Callable

BURST = 1.0  # seconds' worth of the rate that may be spent at once


class Throttle:
    """Limits to `iops` requests and `bytes_per_second`, of which 0 is no limit."""

    def __init__(self, iops: int, bytes_per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._buckets = [Bucket(iops, clock), Bucket(bytes_per_second, clock)]

    def spend(self, size: int) -> float:
        """Counts a request of so many bytes; returns the seconds until the next may follow."""
        requests, transferred = self._buckets
        return max(requests.spend(1), transferred.spend(size))


class Bucket:
    """Tokens that come at `rate` per second; one may owe some, and then has to wait."""

    def __init__(self, rate: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._tokens = rate * BURST
        self._then = clock()

    def spend(self, tokens: int) -> float:
        """Takes tokens; returns the seconds until none are owed."""
        if not self._rate:
            return 0.0
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._then) * self._rate, self._rate * BURST) - tokens
        self._then = now
        return max(-self._tokens / self._rate, 0.0)
