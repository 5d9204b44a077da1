"""One front-end after another at a listening socket, or a single one at a connected socket."""

import asyncio
import logging
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from vhostd.activation import notify
from vhostd.channel import Channel
from vhostd.device import Device
from vhostd.endpoint import Endpoint
from vhostd.session import Session

log = logging.getLogger(__name__)

ACCEPT_PAUSE = 1.0  # seconds until the next try when a connection could not be accepted
SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def serve(device: Device, endpoint: Endpoint) -> None:
    """Runs the device until SIGTERM, SIGINT, or the end of the only front-end of a connected socket.

    Raises what the device's `run` raises.
    """
    loop = asyncio.get_running_loop()
    serving = loop.create_task(Server(device, endpoint).run(), name="serving")
    living = loop.create_task(device.run(), name="device")
    living.add_done_callback(lambda task: None if _ended_well(task) else _end(serving))
    with _ended_by_signals(serving):
        notify("READY=1")
        await asyncio.wait([serving])
        notify("STOPPING=1")
        living.cancel()
        await asyncio.wait([living])
    for task in (living, serving):
        if not task.cancelled():
            task.result()


@contextmanager
def _ended_by_signals(serving: "asyncio.Task[None]") -> Iterator[None]:
    """Lets SIGTERM and SIGINT, which are blocked outside of this (program.py), end the serving."""
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, _end, serving)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _end(serving: "asyncio.Task[None]") -> None:
    """Ends the serving, once: a second time would cut short what it does at its end."""
    if not serving.cancelling():
        serving.cancel()


def _ended_well(task: asyncio.Task[None]) -> bool:
    return task.cancelled() or task.exception() is None


class Server:
    """Accepts front-ends, of which one at a time is served and any other refused at once."""

    def __init__(self, device: Device, endpoint: Endpoint) -> None:
        self._device = device
        self._endpoint = endpoint
        self._current: socket.socket | None = None
        self._next: socket.socket | None = None
        self._arrived = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Serves until cancelled; with a connected socket, until its front-end goes."""
        if not self._endpoint.listening:
            await self._serve(self._endpoint.socket)
            return
        self._watch(on=True)
        try:
            while True:
                notify("STATUS=waiting for a front-end")
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
        notify("STATUS=serving a front-end")
        await Session(self._device, Channel(sock)).run()

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


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
