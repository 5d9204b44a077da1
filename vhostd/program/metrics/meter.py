"""What is counted of each ring: a virtqueue that counts, and the counters, which outlive it."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from time import perf_counter

from vhostd.ring import Chain, Ring
from vhostd.virtio.virtqueue import Virtqueue

# Seconds, from a microsecond to one second, three to a decade.
BOUNDS = (*(float(f"{step}e{power}") for power in range(-6, 0) for step in (1, 2, 5)), 1.0)


class Histogram:
    """How many values there were up to each bound, and above them all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # each without those below it
        self.sum = 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Meter:
    """What the requests of one ring have come to, since the program began."""

    __slots__ = ("errors", "read", "seconds", "throttled", "written")

    def __init__(self) -> None:
        self.seconds = Histogram()  # from a chain's pop to its push
        self.read = 0  # bytes that the driver sent
        self.written = 0  # bytes that it got
        self.errors = 0
        self.throttled = 0.0  # seconds in which a limit kept the device from taking requests


class RequestCounter:
    """Counts the requests of one ring into its meter, but those that are given up.

    It knows neither the ring nor the queue: a ring that referred to itself would never be freed.
    """

    def __init__(self, meter: Meter, ring: Ring) -> None:
        self._meter = meter
        # Of each chain that is out, by its head: when it was taken, and with how many bytes to read.
        self._began = [0.0] * ring.size
        self._sent = [0] * ring.size
        ring.watch(self._popped, self._pushed, None)

    def _popped(self, chain: Chain) -> None:
        self._sent[chain.head] = chain.readable
        self._began[chain.head] = perf_counter()

    def _pushed(self, chain: Chain) -> None:
        meter = self._meter
        meter.read += self._sent[chain.head]
        meter.written += chain.written
        meter.seconds.add(perf_counter() - self._began[chain.head])


class MeteredVirtqueue(Virtqueue):
    """A virtqueue whose requests are counted."""

    def __init__(
        self,
        meter: Meter,
        index: int,
        ring: Ring,
        interrupt: Callable[[], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        super().__init__(index, ring, interrupt, failed)
        self._meter = meter
        RequestCounter(meter, ring)

    def count_error(self) -> None:
        """Counts it."""
        self._meter.errors += 1

    def count_throttled(self, seconds: float) -> None:
        """Counts them."""
        self._meter.throttled += seconds


class Meters(dict[int, Meter]):
    """The meters of the rings that have run, by their index."""

    def make_queue(
        self,
        index: int,
        ring: Ring,
        interrupt: Callable[[], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> MeteredVirtqueue:
        """A virtqueue that counts into the meter of its index."""
        return MeteredVirtqueue(self.setdefault(index, Meter()), index, ring, interrupt, failed)
