"""A receive and a transmit queue of the card, and the fd of the host's that both lead to."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vhost_user_net.receive import Receive
from vhost_user_net.transmit import Transmit
from vhostd import Virtqueue

LATE = 100e-6  # seconds that a driver may have to wait for the news that a packet was sent


class Pair:
    """Moves packets between two queues and an fd, which may be lost, and be another one later.

    While there is none, packets of the driver are dropped, as by a card without a cable. `enabled` is told
    whether the driver's receive queue takes packets.
    """

    def __init__(
        self, transmit: Transmit, receive: Receive, enabled: Callable[[bool], None] | None = None
    ) -> None:
        self.transmit = transmit
        self.receive = receive
        self._enabled = enabled
        self._fd = -1
        self._is_open = asyncio.Event()
        self._users = 0  # tasks that have the event loop look at the fd
        self._unused = asyncio.Event()
        self._unused.set()
        self._pumping: asyncio.Task[None] | None = None
        self._writable: asyncio.Future[None] | None = None  # done when the fd takes a packet
        self._watches = False  # whether the event loop looks for that
        transmit.stuck = self._watch

    def open(self, fd: int) -> None:
        """Leads to this fd, which stays its owner's."""
        self._fd = self.transmit.fd = self.receive.fd = fd
        self.transmit.clear()
        self.receive.clear()
        self._is_open.set()

    async def leave(self) -> None:
        """Leads nowhere; returns when the fd may be closed."""
        self.transmit.fd = self.receive.fd = -1
        self._is_open.clear()
        if self._pumping is not None:
            self._pumping.cancel()
        self._end_watch()
        await self._unused.wait()

    async def receiveq(self, queue: Virtqueue) -> None:
        """Gives the driver packets of the fd's, whichever that is."""
        if self._enabled is not None:
            queue.when_enabled(self._enabled)
        while True:
            await self._is_open.wait()
            with self._used():
                self._pumping = asyncio.create_task(queue.pump(self.receive, self._fd))
                try:
                    await self._pumping
                    return  # the ring has stopped
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is None or task.cancelling() or self._is_open.is_set():
                        raise
                finally:
                    self._pumping = None

    async def transmitq(self, queue: Virtqueue) -> None:
        """Sends packets; while the fd takes none, the driver keeps them."""
        queue.use_shortcut(self.transmit)
        queue.coalesce(LATE)
        async for chain in queue:
            queue.put_back(chain)
            await self._wait_until_writable()

    async def _wait_until_writable(self) -> None:
        if self._is_open.is_set():
            self._writable = asyncio.get_running_loop().create_future()
            self._watch()
            await self._writable

    def _watch(self) -> None:
        """Has the event loop tell when the fd takes more."""
        if not self._watches and self._is_open.is_set():
            self._watches = True
            asyncio.get_running_loop().add_writer(self._fd, self._go_on)

    def _go_on(self) -> None:
        """Sends what waits, and lets more come when all of it is gone."""
        self.transmit.flush()
        if not self.transmit.waits:
            self._end_watch()

    def _end_watch(self) -> None:
        if self._watches:
            self._watches = False
            asyncio.get_running_loop().remove_writer(self._fd)
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    @contextmanager
    def _used(self) -> Iterator[None]:
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._unused.set()
