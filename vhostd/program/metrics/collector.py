"""The program's counts as metrics of Prometheus, made for each scrape."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Protocol

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vhostd.program.metrics.meter import Histogram, Meters
from vhostd.virtio.device import Device
from vhostd.virtio.state import VirtioState

RING = ("ring",)


class Connections(Protocol):
    """What the server tells of its front-ends."""

    @property
    def state(self) -> VirtioState | None:
        """The device's state while a front-end is served; else None."""

    connections: int
    device: Device


class ProgramCollector(Collector):
    """Yields the metrics that the library turns into text. It counts nothing itself."""

    def __init__(self, about: Mapping[str, str], served: Connections, meters: Meters, lag: Histogram) -> None:
        self._about = dict(about)
        self._served = served
        self._meters = meters
        self._lag = lag

    def collect(self) -> Iterator[Metric]:
        """All metrics, with their present values."""
        yield InfoMetricFamily("vhost_user_build", "What program this is", self._about)
        yield from self._of_front_ends()
        yield from self._of_rings()
        yield from self._of_requests()
        yield from self._of_device()
        lag = HistogramMetricFamily(
            "vhost_user_event_loop_lag_seconds",
            "How late the event loop was for a timer, of which there is one each second",
        )
        lag.add_metric((), _buckets(self._lag), self._lag.sum)
        yield lag

    def _of_front_ends(self) -> Iterable[Metric]:
        yield CounterMetricFamily(
            "vhost_user_front_end_connections",
            "Front-ends that were served; all but the first are reconnects",
            self._served.connections,
        )
        yield GaugeMetricFamily(
            "vhost_user_front_end_connected",
            "Whether a front-end is being served",
            int(self._served.state is not None),
        )

    def _of_rings(self) -> Iterable[Metric]:
        state = self._served.state
        queues = [] if state is None else state.queues
        started = GaugeMetricFamily("vhost_user_ring_started", "Whether the ring runs", labels=RING)
        depth = GaugeMetricFamily(
            "vhost_user_ring_in_flight", "Requests that the device has taken and not ended yet", labels=RING
        )
        running = {queue.index: queue.in_flight for queue in queues if queue.started}
        for index in self._meters:
            started.add_metric((str(index),), int(index in running))
            depth.add_metric((str(index),), running.get(index, 0))
        return started, depth

    def _of_device(self) -> Iterable[Metric]:
        """What only a device of this type has to count."""
        if counts := self._served.device.counts():
            family = CounterMetricFamily(
                "vhost_user_device", "What the device itself counts, by its name", labels=("count",)
            )
            for name, value in counts.items():
                family.add_metric((name,), value)
            yield family

    def _of_requests(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("vhost_user_requests", "Requests ended", labels=RING)
        read = CounterMetricFamily("vhost_user_read_bytes", "Bytes that the driver sent in them", labels=RING)
        written = CounterMetricFamily("vhost_user_written_bytes", "Bytes that it got", labels=RING)
        errors = CounterMetricFamily(
            "vhost_user_errors", "Requests ended with an error, and times that the ring broke", labels=RING
        )
        seconds = HistogramMetricFamily(
            "vhost_user_request_duration_seconds",
            "From when the device took a request until it ended it",
            labels=RING,
        )
        throttled = CounterMetricFamily(
            "vhost_user_throttled_seconds",
            "Time in which a limit kept the device from taking requests",
            labels=RING,
        )
        for index, meter in self._meters.items():
            ring = (str(index),)
            requests.add_metric(ring, sum(meter.seconds.counts))
            read.add_metric(ring, meter.read)
            written.add_metric(ring, meter.written)
            errors.add_metric(ring, meter.errors)
            throttled.add_metric(ring, meter.throttled)
            seconds.add_metric(ring, _buckets(meter.seconds), meter.seconds.sum)
        return requests, read, written, errors, throttled, seconds


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Each bound with the number of values up to it (cumulative, as Prometheus wants)."""
    bounds = [*map(repr, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
