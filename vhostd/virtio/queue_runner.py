"""The task that serves one queue of a device, from its ring's start to its stop, on any transport.

The start rule: the handler begins when no request of an earlier ring is under way any more. Until then the
ring is started, but the handler gets no chain.

The stop rule: when the ring stops, the handler's loop ends. The handler completes the chains that it has
taken. Only then, when it holds no chain, may it be cancelled.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from vhostd.errors import GuestError, forget
from vhostd.ring import Ring, WriteLog
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue

log = logging.getLogger(__name__)


class QueueTransport(Protocol):
    """The transport's part for a running queue."""

    def interrupt(self) -> None:
        """Interrupts the driver, since chains were given back."""

    def broke(self) -> None:
        """Reports that the driver broke the ring. The ring stands still until it is stopped."""

    def stopped(self) -> None:
        """Ends the watch for kicks, since the ring has stopped."""


class QueueRunner:
    """Runs the device's handler of one queue on one ring after the other.

    `failed` is called with an exception of the device that is not the guest's fault. `leftovers` has the
    requests that earlier rings of the device gave up. `broke` is called when the driver has broken a ring.
    """

    def __init__(
        self,
        index: int,
        handler: Callable[[Virtqueue], Awaitable[None]],
        failed: Callable[[Exception], None],
        broke: Callable[[], None],
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
    ) -> None:
        self.index = index
        self.queue: Virtqueue | None = None  # while a ring runs
        self.is_enabled = False
        self.is_broken = False
        self.is_starting = False  # the transport still looks for the ring in guest memory
        self._log: WriteLog | None = None
        self._handler = handler
        self._failed = failed
        self._broke = broke
        self._make_queue = make_queue
        self._leftovers = Leftovers() if leftovers is None else leftovers
        self._transport: QueueTransport | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether the ring is between its start and its stop. It may be broken, or not be there yet."""
        return self.queue is not None or self.is_starting

    @property
    def in_flight(self) -> int:
        """How many chains the device has taken and not given back yet."""
        return 0 if self.queue is None else self.queue.in_flight

    def start(self, ring: Ring, transport: QueueTransport) -> None:
        """Starts the handler on a ring. No ring may run. The handler gets chains while enabled."""
        queue = self._make_queue(
            self.index, ring, transport.interrupt, lambda error: self._judge(ring, error)
        )
        self.queue, self._transport, self.is_broken = queue, transport, False
        self.is_starting = False
        ring.log_writes(self._log)
        queue.enable(on=self.is_enabled)
        self._task = asyncio.get_running_loop().create_task(
            self._run_handler(queue), name=f"vring {self.index}"
        )
        log.info("vring %d started, %d entries, at %s", self.index, ring.size, ring.spell(ring.base))
        if ring.unfinished:
            log.info(
                "vring %d: %d requests were not finished before and are done again",
                self.index,
                ring.unfinished,
            )

    def enable(self, *, on: bool) -> None:
        """Gives chains to the handler, or no more. It keeps those that it has."""
        self.is_enabled = on
        if self.queue is not None:
            self.queue.enable(on=on)

    def log_writes(self, log: WriteLog | None) -> None:
        """Has a log told of all that is written to this ring, and to each later one; None ends that."""
        self._log = log
        if self.queue is not None:
            self.queue.ring.log_writes(log)

    async def stop(self) -> None:
        """Stops the ring, after every chain that the handler took is given back or given up.

        Has no effect on a stopped ring.
        """
        queue, transport = self.queue, self._transport
        if queue is None or transport is None:
            self._give_up_start()
            return
        queue.stop()
        await queue.quiesce()
        await self._end_task()
        if self.queue is queue:  # else another call of `stop` has done the rest
            self._leftovers.add(queue)
            transport.stopped()
            self.queue = None
            log.info("vring %d stopped at %s", self.index, queue.ring.spell(queue.ring.base))

    async def suspend(self) -> None:
        """Stops the ring at once: what is in flight stays in the ring's record, for whoever starts it next.

        It is given up. Returns when the device works on none of it any more, so that nothing is done late.
        """
        if (queue := self.queue) is not None:
            if queue.in_flight:
                log.info("vring %d: %d requests in flight are left", self.index, queue.in_flight)
            queue.give_up()
            await self.stop()
            await self._leftovers.gone_from(queue)

    def give_up(self) -> None:
        """Gives up the chains in flight: `stop` no longer waits for them."""
        if self.queue is not None and self.queue.in_flight:
            log.warning("vring %d: %d chains are given up", self.index, self.queue.in_flight)
            self.queue.give_up()

    def begin(self, transport: QueueTransport) -> None:
        """Counts the ring as started, though the transport has not found it in guest memory yet."""
        self.is_starting, self._transport, self.is_broken = True, transport, False

    def fail(self, error: GuestError) -> None:
        """Breaks a ring that cannot be used where the driver has it."""
        if self.queue is not None:
            self.queue.fail(error)
        elif self.is_starting:
            self._break(error)

    def _give_up_start(self) -> None:
        if self.is_starting and self._transport is not None:
            self.is_starting = False
            self._transport.stopped()

    async def _run_handler(self, queue: Virtqueue) -> None:
        try:
            await self._wait_for_leftovers()
            await self._handler(queue)
        except asyncio.CancelledError as error:
            forget(error)  # a task group in the handler may still refer to it
            raise
        except Exception as error:
            queue.fail(error)

    def _judge(self, ring: Ring, error: Exception) -> None:
        """Breaks this ring for a fault of the guest; reports any other error by `failed`, for all rings."""
        if not isinstance(error, GuestError):
            self._failed(error)
            return
        if self.queue is not None and self.queue.ring is ring and not self.is_broken:  # else the ring is gone
            self._break(error)
            self.queue.count_error()
        forget(error)

    def _break(self, error: GuestError) -> None:
        log.error("vring %d is broken: %s", self.index, error)
        self.is_broken = True
        if self._transport is not None:
            self._transport.broke()
        self._broke()

    async def _wait_for_leftovers(self) -> None:
        if requests := self._leftovers.requests:
            log.warning(
                "vring %d waits for %d requests that were given up before and are still under way",
                self.index,
                requests,
            )
            await self._leftovers.gone()
            log.info("vring %d goes on: no request of before is under way any more", self.index)

    async def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
