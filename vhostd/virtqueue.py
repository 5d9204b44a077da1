"""What a device sees of a ring: chains come in, chains go back, and nothing else.

A transport builds a `Virtqueue` over a ring, calls `kicked` when the driver kicks, and `stop` and `quiesce`
when the ring is to stop. It is told of interrupts through a callback. Neither sockets, fds nor memory maps
show here, so that another transport can carry the same devices.
"""

import asyncio
from collections.abc import Awaitable, Callable

from vhostd.ring import Chain, Ready, SplitRing

# Interrupts are batched. In each turn of the event loop there is one for the first chain, the next for two,
# for three, and so on up to this many, and one at the turn's end: the fewer requests a driver has under way,
# the sooner it has to be told, or it and the device wait for each other in turns.
PUSH_BATCH = 32
# After so many chains without a pause the event loop gets a turn, for signals, messages and other rings.
POP_BURST = 64


MakeQueue = Callable[[int, SplitRing, Callable[[], None], Callable[[Exception], None] | None], "Virtqueue"]


class Virtqueue:
    """The device's end of one virtqueue, from the ring's start to its stop.

        async for chain in queue:
            ...
            queue.push(chain)

    The loop ends when the ring stops. A chain that was taken must be pushed back, in any order, also after
    that: the ring's stop waits for it.
    """

    def __init__(
        self,
        index: int,
        ring: SplitRing,
        interrupt: Callable[[], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self.index = index
        self.ring = ring
        self._interrupt = interrupt
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None  # what waits for chains waits for this
        self._drained = asyncio.Event()
        self._enabled = False
        self._stopped = False
        self._abandoned = False
        self._pushed = 0
        self._batch = 1  # so many are pushed before the next interrupt
        self._popped = 0
        self._flushes = False  # at the end of this turn

    @property
    def size(self) -> int:
        """The queue size: the number of descriptors in the ring."""
        return self.ring.size

    @property
    def in_flight(self) -> int:
        """How many chains the device has taken and not given back yet."""
        return self.ring.in_flight

    # --- The device's side ------------------------------------------------------------------------------

    def __aiter__(self) -> "Virtqueue":
        return self

    def __anext__(self) -> Awaitable[Chain]:
        # No coroutine and no future are made while chains are at hand: this is the hot path.
        self._popped += 1
        if not self._popped % POP_BURST:
            return self._next(asyncio.sleep(0))
        if (chain := self.pop()) is not None:
            return Ready(chain)
        return self._next(self.ready())

    def pop(self) -> Chain | None:
        """The next chain, if one is there now and the ring runs; raises GuestError for one that is broken."""
        return self.ring.pop() if self._enabled and not self._stopped else None

    async def ready(self) -> bool:
        """Waits until `pop` has a chain to give; False once the ring has stopped."""
        while not self._stopped:
            self.flush()
            if self._enabled and self.ring.arm():
                self.ring.disarm()
                return True
            if self._wake is None or self._wake.done():
                self._wake = self._loop.create_future()
            await self._wake
        return False

    def push(self, chain: Chain) -> None:
        """Gives a chain back to the driver, with as many bytes used as were written to it."""
        if self._abandoned:
            return
        self.ring.push(chain)
        self._pushed += 1
        if self._pushed >= self._batch:
            self.flush()
            self._batch = min(self._batch + 1, PUSH_BATCH)
        if not self._flushes:
            self._flushes = True
            self._loop.call_soon(self._flush_rest)
        if self._stopped and not self.ring.in_flight:
            self._drained.set()

    def flush(self) -> None:
        """Interrupts the driver for what was pushed, if it wants that, now rather than soon."""
        if self._pushed:
            self._pushed = 0
            if self.ring.must_call():
                self._interrupt()

    def _flush_rest(self) -> None:
        self._flushes = False
        self._batch = 1
        self.flush()

    def fail(self, error: Exception) -> None:
        """As if the handler had raised `error`: for what goes wrong with a chain while it goes on."""
        self.abandon()
        if self._failed is not None:
            self._failed(error)

    def count_error(self) -> None:
        """Notes that a request was ended with an error, or that the ring broke; of use to whoever counts."""

    async def _next(self, pause: Awaitable[object]) -> Chain:
        await pause
        while (chain := self.pop()) is None:
            if not await self.ready():
                raise StopAsyncIteration
        return chain

    # --- The transport's side ---------------------------------------------------------------------------

    def kicked(self) -> None:
        """There may be new buffers."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def enable(self, *, on: bool) -> None:
        """A disabled queue gives no chains; what was taken before may still be pushed."""
        self._enabled = on
        self.kicked()

    def stop(self) -> None:
        """Ends the device's loop: from now on no chain is given."""
        self._stopped = True
        self.kicked()

    async def quiesce(self) -> None:
        """Waits, after `stop`, until every chain taken has been pushed back, and interrupts the driver."""
        while self.ring.in_flight and not self._abandoned:
            await self._drained.wait()
        self.flush()

    def abandon(self) -> None:
        """Gives up on the chains that are out: they are never returned to the driver."""
        self._abandoned = True
        self._drained.set()
