"""One front-end after another at a listening socket, or a single one at a connected socket."""

import asyncio
import logging
import select
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from vhostd.host.grants import Grants
from vhostd.host.pause import ENDING
from vhostd.program.activation import Notifier, watchdog_interval
from vhostd.program.endpoint import Endpoint
from vhostd.program.log import REPORTS
from vhostd.vhost_user.messages import FRONT_END
from vhostd.vhost_user.offer import DEFAULT_OFFER, Offer
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.state import VirtioState
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.wire.channel import Channel

log = logging.getLogger(__name__)
reports = logging.getLogger(REPORTS)

FINISH_PATIENCE = 0.05  # seconds that a device has for its last words
ACCEPT_PAUSE = 1.0  # seconds until the next try when a connection could not be accepted
SIGNALS = (*ENDING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)  # those that we, or a device, may take


class Metrics(Protocol):
    """What `metrics/` has, whose library only those load who want metrics."""

    @property
    def make_queue(self) -> MakeQueue:
        """Makes virtqueues that count."""

    async def run(self, served: "Server") -> None:
        """Shows the counts until cancelled."""

    def grants(self) -> Grants:
        """What showing them still needs of the system."""

    def close(self) -> None:
        """Gives up where they are shown."""


async def serve(
    device: Device,
    endpoint: Endpoint,
    notifier: Notifier,
    metrics: Metrics | None = None,
    offer: Offer = DEFAULT_OFFER,
) -> None:
    """Runs the device until SIGTERM, SIGINT, or the end of the only front-end of a connected socket.

    Raises what the device's `run` raises.
    """
    loop = asyncio.get_running_loop()
    make_queue = Virtqueue if metrics is None else metrics.make_queue
    server = Server(device, endpoint, make_queue, notifier.tell, offer)
    serving = loop.create_task(server.run(), name="serving")
    living = loop.create_task(device.run(), name="device")
    ending: asyncio.Future[None] = loop.create_future()
    living.add_done_callback(lambda task: None if _ended_well(task) else _end(ending))
    beside = [living, loop.create_task(_show_life(notifier), name="watchdog")]
    if metrics is not None:
        beside.append(loop.create_task(metrics.run(server), name="metrics"))
    asked = {signal.Signals[name]: call for name, call in device.signals().items()}
    with _signals_taken(asked | {signal.SIGUSR2: server.report}, ending):
        notifier.tell("READY=1")
        await asyncio.wait([serving, ending], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            await _finish(device)
            serving.cancel()
            await asyncio.wait([serving])
    await notifier.end("STOPPING=1")
    for task in beside:
        task.cancel()
    await asyncio.wait(beside)
    for task in (living, serving):
        if not task.cancelled():
            task.result()


async def _finish(device: Device) -> None:
    """Lets the device tell its driver a last thing, if that takes no more than a moment."""
    try:
        await asyncio.wait_for(device.finish(), FINISH_PATIENCE)
    except TimeoutError:
        log.warning("the program ends before the driver was told")


async def _show_life(notifier: Notifier) -> None:
    """Tells a service manager's watchdog, again and again, that the event loop runs."""
    if interval := watchdog_interval():
        while True:
            notifier.tell("WATCHDOG=1")
            await asyncio.sleep(interval)


@contextmanager
def _signals_taken(
    asked: Mapping[signal.Signals, Callable[[], None]], ending: "asyncio.Future[None]"
) -> Iterator[None]:
    """Lets signals end the serving, or ask for something; outside of this they are held (main.py)."""
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, _end, ending)
    for number, call in asked.items():
        loop.add_signal_handler(number, call)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _end(ending: "asyncio.Future[None]") -> None:
    """Asks for the end; asked once more, nothing is cut short."""
    if not ending.done():
        ending.set_result(None)


def _ended_well(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is None


class Server:
    """Accepts front-ends, of which one at a time is served and any other refused at once."""

    def __init__(
        self,
        device: Device,
        endpoint: Endpoint,
        make_queue: MakeQueue = Virtqueue,
        tell: Callable[[str], None] = lambda _: None,
        offer: Offer = DEFAULT_OFFER,
    ) -> None:
        """`tell` hears what is served, in the words of sd_notify(3)."""
        self.session: Session | None = None  # with the front-end that is being served
        self.connections = 0  # of front-ends that were served
        self.device = device
        self._endpoint = endpoint
        self._make_queue = make_queue
        self._leftovers = Leftovers()
        self._tell = tell
        self._offer = offer
        self._current: socket.socket | None = None
        self._next: socket.socket | None = None
        self._arrived = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None

    @property
    def state(self) -> VirtioState | None:
        """The device's, while a front-end is served."""
        return None if self.session is None else self.session.state

    async def run(self) -> None:
        """Serves until cancelled; with a connected socket, until its front-end goes."""
        if not self._endpoint.listening:
            await self._serve(self._endpoint.socket)
            return
        self._watch(on=True)
        try:
            while True:
                self._tell("STATUS=waiting for a front-end")
                await self._arrived.wait()
                self._arrived.clear()
                self._current, self._next = self._next, None
                if self._current is not None:
                    await self._serve(self._current)
                    self._current = None
        finally:
            self._watch(on=False)
            if self._next is not None:
                self._next.close()

    def report(self) -> None:
        """Tells the log of the session and of all its rings, as they are now."""
        if self.session is None:
            reports.info("no front-end is connected; %d were before", self.connections)
        else:
            for line in self.session.describe():
                reports.info("%s", line)

    def _watch(self, *, on: bool) -> None:
        """Accepts connections as they come, or not; either ends a pause."""
        if self._pause is not None:
            self._pause.cancel()
        loop = asyncio.get_running_loop()
        if on:
            loop.add_reader(self._endpoint.socket, self._accept)
        else:
            loop.remove_reader(self._endpoint.socket)

    async def _serve(self, sock: socket.socket) -> None:
        log.info("a front-end has connected")
        self._tell("STATUS=serving a front-end")
        self.connections += 1
        self.session = Session(
            self.device, Channel(sock, FRONT_END), self._make_queue, self._leftovers, self._offer
        )
        try:
            await self.session.run()
        finally:
            self.session = None

    def _accept(self) -> None:
        try:
            sock, _ = self._endpoint.socket.accept()
        except OSError as error:  # it went again, or there are no fds left
            log.warning("a connection could not be accepted: %s", error)
            self._watch(on=False)
            self._pause = asyncio.get_running_loop().call_later(ACCEPT_PAUSE, lambda: self._watch(on=True))
            return
        if any(other is not None and not _hung_up(other) for other in (self._current, self._next)):
            log.warning("refused a second front-end: one is being served")
            sock.close()
            return
        # The one before has gone, even if its session has yet to notice: a quick reconnect just waits.
        if self._next is not None:
            self._next.close()
        self._next = sock
        self._arrived.set()
        if self.session is not None:
            self.session.hurry()


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
