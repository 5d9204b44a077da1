"""The option --metrics: the counters, and the endpoint that shows them."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.program.endpoint import Endpoint
from vhostd.program.metrics.address import Address, listen
from vhostd.program.metrics.collector import Connections, ProgramCollector
from vhostd.program.metrics.exporter import Exporter
from vhostd.program.metrics.http import PATH, respond
from vhostd.program.metrics.meter import BOUNDS, Histogram, Meters
from vhostd.virtio.virtqueue import MakeQueue
from vhostd.wire.fds import Fd

log = logging.getLogger(__name__)

LAG_INTERVAL = 1.0  # seconds between two looks at how late the event loop is
PROC = "/proc/self"  # where the library reads the process's figures
FINEST = 0.001  # seconds: the resolution of the event loop's timers


def open_metrics(address: Address, about: Mapping[str, str]) -> "Metrics":
    """Listens at the address; raises SetupError if that fails, or if there is no /proc."""
    # The sandbox knows a folder by its inode. The kernel keeps this inode only while an fd is open for it.
    try:
        proc = Fd(os.open(PROC, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        raise SetupError(f"--metrics: {PROC}: {error.strerror}") from None
    with proc:
        return Metrics(listen(address), Fd(proc.take()), about)


class Metrics:
    """Counts requests, and shows the counts. Owns the endpoint and the fd of /proc/self.

    `about` has the labels of vhost_user_build_info.
    """

    def __init__(self, endpoint: Endpoint, proc: Fd, about: Mapping[str, str]) -> None:
        self.meters = Meters()
        self._endpoint = endpoint
        self._proc = proc
        self._about = about
        self._lag = Histogram([bound for bound in BOUNDS if bound >= FINEST])
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)

    @property
    def make_queue(self) -> MakeQueue:
        """Makes virtqueues that count."""
        return self.meters.make_queue

    async def run(self, served: Connections) -> None:
        """Shows the counts until it is cancelled. A fault in it ends only the metrics."""
        self._registry.register(ProgramCollector(self._about, served, self.meters, self._lag))
        exporter = Exporter(self._endpoint.socket, lambda head: respond(head, self._page))
        log.info("metrics are at %s", self._address())
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_loop(), name="event loop lag")
                tasks.create_task(exporter.run(), name="exporter")
        except Exception:
            log.exception("there are no metrics any more, by a fault of this program")

    def grants(self) -> Grants:
        """The removal of the socket's file, and reading /proc/self."""
        return Grants.together([self._endpoint.grants(), Grants(read=(PROC,))])

    def close(self) -> None:
        """Closes the endpoint."""
        self._proc.close()
        self._endpoint.close()

    def _address(self) -> str:
        sock = self._endpoint.socket
        if sock.family == socket.AF_UNIX:
            return f"{sock.getsockname()}, path {PATH}"
        host, port, *_ = sock.getsockname()
        return f"http://{Address(host, port)}{PATH}"

    def _page(self, accepted: str) -> tuple[str, bytes]:
        try:
            encode, kind = choose_encoder(accepted)
        except (TypeError, ValueError):  # an Accept field whose versions are not numbers
            encode, kind = choose_encoder("")
        return kind, encode(self._registry)

    async def _watch_loop(self) -> None:
        while True:
            due = time.monotonic() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self._lag.add(max(0.0, time.monotonic() - due))
