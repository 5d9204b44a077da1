"""What a device sees of a ring: chains come in, chains go back, and nothing else.

A transport builds a `Virtqueue` over a ring, calls `kicked` when the driver kicks, and `stop` and `quiesce`
when the ring is to stop. It is told of interrupts through a callback. Neither sockets, fds nor memory maps
show here, so that another transport can carry the same devices.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from weakref import WeakKeyDictionary

from vhostd.host.alarm import Alarm
from vhostd.ring import Chain, Gather, Ready, Ring, Shortcut

# After so many chains without a pause, or fewer that take longer (`Ring.effort`), the event loop gets a
# turn, for signals, messages and other rings.
POP_BURST = 64
# An interrupt that may be late is not, once this part of the queue waits for it: the driver may need room.
COALESCED = 1 / 4


MakeQueue = Callable[[int, Ring, Callable[[], None], Callable[[Exception], None] | None], "Virtqueue"]


class Turn:
    """A turn of an event loop: for how many seconds its queues have looked for chains in it, all together."""

    def __init__(self) -> None:
        self.polled = 0.0

    def spend(self, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        """Counts seconds, until the next turn."""
        if not self.polled:
            loop.call_soon(self._end)
        self.polled += seconds

    def _end(self) -> None:
        self.polled = 0.0


_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, Turn] = WeakKeyDictionary()


class Virtqueue:
    """The device's end of one virtqueue, from the ring's start to its stop.

        async for chain in queue:
            ...
            queue.push(chain)

    The loop ends when the ring stops. A chain that was taken must be pushed back, in any order, also after
    that: the ring's stop waits for it. Chains that were given up (`Chain.given_up`) are pushed as well, when
    the work on them has ended: the next ring waits for that.
    """

    def __init__(
        self,
        index: int,
        ring: Ring,
        interrupt: Callable[[], None],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        self.index = index
        self.ring = ring
        self._interrupt = interrupt
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None  # what waits for chains waits for this
        self._changed = asyncio.Event()  # of the chains that are out: none is left, or they were given up
        self._runs = False  # enabled, and not stopped
        self._stopped = False
        self._shortcut: Shortcut | None = None
        self._ahead: Chain | None = None  # what the shortcut left while the handler slept
        self._pumped: Shortcut | None = None  # the pump
        self._pumps: tuple[Shortcut, int] | None = None  # with its fd, which is looked at: there are chains
        self._starves = False  # the pump needs more chains than there are, for now
        self._starves_until = 0.0
        self._starving: asyncio.TimerHandle | None = None  # which is never called off, but set again
        self._when_enabled: Callable[[bool], None] | None = None
        self._poll = 0.0
        self._turn = Turn()
        self._spent = 0  # of a burst, since others had a turn
        self._flushes = False  # at the end of this turn
        self._alarm: Alarm | None = None  # which has the driver interrupted, where that may be late

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
        if self._spent < POP_BURST and (chain := self._take()) is not None:
            return Ready(chain)
        return self._next()

    def use_shortcut(self, shortcut: Shortcut) -> None:
        """Has a shortcut serve what it can of the chains that `async for` would give; call it before that."""
        self._shortcut = shortcut

    def gather(self, ranges: Iterable[tuple[int, int]], most: int = sys.maxsize) -> Gather:
        """As `Chain.gather`, for ranges of guest memory that a saved state has named."""
        return self.ring.gather(ranges, most)

    async def pump(self, pump: Shortcut, fd: int) -> None:
        """Has a pump fill chains whenever an fd of the host's is readable, until the ring stops.

        It is given chains until it leaves one, which is put back: the fd has nothing for it now. While there
        are no chains, nobody looks at the fd; a kick has the pump tried. It has no other shortcut then.

        While it `keeps` something that the fd does not tell of, it is asked as soon as there are chains.
        """
        self._pumped = pump
        try:
            while await self.ready():
                if self._pumps is None:  # to add it again would call off what the loop is just about to do
                    self._pumps = pump, fd
                    self._loop.add_reader(fd, self._pump, pump, fd)
                    if pump.keeps:
                        self._loop.call_soon(self._pump, pump, fd)
                try:
                    await self._change()
                finally:
                    self._wake = None
        finally:
            self._pumped = None
            self._end_pumping(fd)

    def starve(self, patience: float) -> None:
        """For a pump that needs more chains than there are, all of which it has seen, and puts back.

        It asks `Ring.arm` before it puts them back, and leaves the chain that it was given. Nobody looks at
        its fd before the next kick, or before so many seconds have passed.
        """
        self._starves = True
        self._starves_until = self._loop.time() + patience
        if self._starving is None:
            self._starving = self._loop.call_at(self._starves_until, self._starved)

    def when_enabled(self, call: Callable[[bool], None]) -> None:
        """Has `call` told whether the queue gives chains: at once, and whenever it is enabled or disabled."""
        self._when_enabled = call
        call(self._runs)

    def pump_now(self) -> None:
        """Has the pump fill chains, if there are some, as if its fd had just been found readable."""
        if self._pumps is not None:
            self._pump(*self._pumps)

    def poll(self, seconds: float) -> None:
        """Has the queue look for chains that long before it waits for kicks, while no other is in flight.

        Nothing else that the event loop serves goes on meanwhile; so in one turn of it all queues
        together look no longer than one of them may.
        """
        self._poll = seconds
        self._turn = _turns.setdefault(self._loop, Turn())

    def coalesce(self, seconds: float) -> None:
        """Interrupts the driver up to that much later for what the shortcut has served: once for many chains.

        This is for chains that nobody waits for, such as packets that are sent. They are given back at once,
        and the driver is told of many at once. It takes an fd; if there are no more, no interrupt is late.
        """
        self._end_alarm()
        if not self._stopped:
            with suppress(OSError):
                self._alarm = Alarm(seconds, self.flush)

    def pop(self) -> Chain | None:
        """The next chain, if one is there now and the ring runs; raises GuestError for one that is broken.

        There is none, too, while the device has a great many pieces of guest memory in other chains of it,
        or while an address of the next chain is not translated yet. So there may be none after `ready`.
        """
        if (chain := self._ahead) is not None:
            self._ahead = None
            return chain
        if not self._runs:
            return None
        before = self.ring.effort
        chain = self.ring.pop()
        self._spent += self.ring.effort - before
        return chain

    async def ready(self) -> bool:
        """Waits until there is a chain; False once the ring has stopped.

        `pop` gives it, if it can, and is called before the device waits for anything else; no shortcut is
        asked then. After many chains it lets others have a turn.
        """
        if self._spent >= POP_BURST:
            await asyncio.sleep(0)
            self._spent = 0
        while self._ahead is not None or not self._stopped:
            self.flush()
            if not self._starves and (self._has_chain() or (self._runs and not self._arm())):
                self.ring.disarm()
                return True
            try:
                await self._change()
            finally:
                self._wake = None  # the frames of an exception in it may hold a chain
        return False

    def push(self, chain: Chain) -> None:
        """Gives a chain back to the driver, with as many bytes used as were written to it."""
        if self.ring.given_up:
            self.ring.drop(chain)
        elif self.ring.push(chain):
            self.flush()
        elif not self._flushes:
            self._flush_soon()

    def push_all(self, chains: Iterable[Chain]) -> None:
        """Gives several chains back in this order; the driver sees all of them at once, or none."""
        if self.ring.given_up:
            for chain in chains:
                self.ring.drop(chain)
        elif self.ring.push_all(chains):
            self.flush()
        elif not self._flushes:
            self._flush_soon()

    def put_back(self, chain: Chain) -> None:
        """Undoes the last `pop`: the chain is not the device's any more, and is the next one that is given.

        Several are put back the newest first; raises ValueError if another was popped after this one.
        """
        if self.ring.given_up:
            self.ring.drop(chain)
        else:
            self.ring.put_back(chain)

    def flush(self) -> None:
        """Interrupts the driver for what was pushed, if it wants that, now rather than soon."""
        if self.ring.must_call():
            self._interrupt()

    def fail(self, error: Exception) -> None:
        """Ends the queue, as if the handler had raised `error`: for what goes wrong while it goes on."""
        self.stop()
        self.give_up()
        if self._failed is not None:
            self._failed(error)

    def count_error(self) -> None:
        """Notes that a request was ended with an error, or that the ring broke; of use to whoever counts."""

    def count_throttled(self, seconds: float) -> None:
        """Notes that a limit kept the device so long from taking chains; of use to whoever counts."""

    async def _next(self) -> Chain:
        while await self.ready():
            if (chain := self._take()) is not None:
                return chain
        raise StopAsyncIteration

    def _take(self) -> Chain | None:
        """The next chain that the shortcut leaves, if there is one."""
        if self._shortcut is None or self._ahead is not None:
            return self.pop()
        if not self._runs:
            return None
        left = POP_BURST - self._spent
        return self._serve(
            self._shortcut, max(left, 1)
        )  # more than a burst is spent if its last chain took long

    def _flush_soon(self) -> None:
        """Has the driver interrupted at the end of this turn, if it wants that."""
        self._flushes = True
        self._loop.call_soon(self._flush_rest)

    def _flush_rest(self) -> None:
        self._flushes = False
        self.flush()
        self.ring.begin_batch()

    # --- Waiting for chains -----------------------------------------------------------------------------

    def _has_chain(self) -> bool:
        """Whether `pop` has a chain to give now."""
        return self._ahead is not None or (self._runs and not self.ring.is_held and not self.ring.is_empty)

    def _arm(self) -> bool:
        """Asks to be told of the next chain; False, having looked for it a while, if one is there already."""
        if self.ring.is_held:
            self.ring.when_eased(partial(self._soon, self.kicked))
        elif (self._poll and self._spin()) or self.ring.arm():
            return False
        self._spent = 0
        return True

    def _spin(self) -> bool:
        """After chains, looks for the next one as long as the queue is to; True if there is one.

        A whole wait counts as a whole burst: for others it is the same.
        """
        if self._spent and not self.ring.in_flight:
            begin, most = time.perf_counter(), self._poll - self._turn.polled
            while (waited := time.perf_counter() - begin) < most:
                if not self.ring.is_empty:
                    self._turn.spend(waited, self._loop)
                    self._spent += int(POP_BURST * waited / self._poll)
                    return True
            self._turn.spend(waited, self._loop)
        return False

    def _change(self) -> asyncio.Future[None]:
        """What is done when there may be chains, or the ring was enabled, or has stopped."""
        if self._wake is None or self._wake.done():
            self._wake = self._loop.create_future()
        return self._wake

    # --- Shortcuts and pumps ----------------------------------------------------------------------------

    def _serve(self, shortcut: Shortcut, most: int) -> Chain | None:
        """Has a shortcut serve chains, with up to so much effort, which counts; the first that it leaves."""
        before = self.ring.effort
        try:
            chain = self.ring.serve(shortcut, self, most, None if self._alarm else self._interrupt)
        finally:
            self._flush_late()
        self._spent += self.ring.effort - before
        return chain

    def _flush_late(self) -> None:
        """Has the driver interrupted later, where that is allowed, for what was pushed."""
        if self._alarm is not None and self.ring.uncalled:
            if self.ring.uncalled >= self.size * COALESCED:
                self.flush()
            else:
                self._alarm.set()

    def _end_alarm(self) -> None:
        """Has no interrupt be late any more. The driver of a broken ring is told now of what was pushed."""
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
            self.flush()

    def _serve_asleep(self, shortcut: Shortcut) -> bool:
        """Has the shortcut serve what has come while the handler sleeps; True if that may go on sleeping."""
        while self._runs and self._spent < POP_BURST:
            self.ring.disarm()
            left = self._serve(shortcut, POP_BURST - self._spent)
            if left is not None:
                self._leave(left)
                return False
            if self._arm():
                return True
        return False

    def _leave(self, chain: Chain) -> None:
        """Leaves a chain to the handler, which is a pump's only to look at the fd."""
        if self._pumped is None:
            self._ahead = chain
        else:
            self.put_back(chain)

    def _pump(self, pump: Shortcut, fd: int) -> None:
        """The fd is readable: fills chains until it is not any more, they run out, or a burst is over."""
        if not self._pumps:
            return
        self._spent = 0
        self.ring.begin_batch()  # nobody arms a ring that has chains all the time
        try:
            if self._runs and (chain := self._serve(pump, POP_BURST)) is not None:
                self.put_back(chain)
                goes_on = not (self._starves or self.ring.is_held)
            else:
                goes_on = self._spent >= POP_BURST
        except Exception as error:
            self._fail_handler(error)
            goes_on = False
        if not goes_on:
            self._end_pumping(fd)
            self._wake_up()
        elif pump.keeps:
            self._loop.call_soon(self._pump, pump, fd)

    def _starved(self) -> None:
        """Time may be up; if it was given more since this was asked for, that is waited for as well."""
        self._starving = None
        if self._starves and self._loop.time() < self._starves_until:
            self._starving = self._loop.call_at(self._starves_until, self._starved)
        elif self._starves:
            self.wake_handler()

    def _end_pumping(self, fd: int) -> None:
        self._pumps = None
        self._loop.remove_reader(fd)

    def _fail_handler(self, error: Exception) -> None:
        """An error of a shortcut is the handler's, which waits."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_exception(error)
        else:
            self.fail(error)

    # --- The transport's side ---------------------------------------------------------------------------

    def kicked(self) -> None:
        """There may be new buffers: the shortcut serves them now, the handler soon."""
        shortcut = self._shortcut or self._pumped
        if shortcut is None or self._pumps is not None or self._starves:
            self.wake_handler()
        elif self._wake is not None and not self._wake.done():
            try:
                if not self._serve_asleep(shortcut):
                    self._wake.set_result(None)
            except Exception as error:
                self._fail_handler(error)

    def wake_handler(self) -> None:
        """Has the handler look at the ring, soon."""
        self._starves = False
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def settle(self, patience: float) -> None:
        """Waits until the device has done all that there is, and interrupts the driver.

        It waits for so many seconds at most. A driver that never pauses is done when the device has taken as
        many chains as the ring holds.
        """
        most = self.ring.effort + self.size
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                taken = -1
                while self.ring.in_flight or taken < self.ring.effort < most:
                    if self.ring.given_up:
                        return
                    taken = self.ring.effort
                    await self._all_back()
                    await asyncio.sleep(0)  # in which the device may take more
        self.flush()
        await asyncio.sleep(0)  # until the interrupt is on its way

    def enable(self, *, on: bool) -> None:
        """A disabled queue gives no chains; what was taken before may still be pushed."""
        self._runs = on and not self._stopped
        if self._when_enabled is not None:
            self._when_enabled(self._runs)
        self.wake_handler()

    def stop(self) -> None:
        """Ends the device's loop: from now on no chain is given."""
        self._stopped = True
        self.enable(on=False)
        self._end_alarm()
        self.ring.when_eased(None)

    async def quiesce(self) -> None:
        """Waits until every chain taken is back or given up, and interrupts the driver.

        No chain may be given meanwhile: it was stopped, or the ring is held.
        """
        await self._all_back()
        self.flush()

    async def _all_back(self) -> None:
        """Waits until no chain is out, or they were given up."""
        while self.ring.in_flight and not self.ring.given_up:
            self._changed.clear()
            self.ring.when_empty(partial(self._soon, self._changed.set))
            await self._changed.wait()
            if not self.ring.given_up:
                self.ring.push_all(())  # those that waited for others, of which nobody knows any more

    async def let_go(self, first: int, last: int) -> None:
        """Waits until no chain that is out has a buffer at these I/O virtual addresses."""
        while self.ring.uses(first, last):
            returned = asyncio.Event()
            self.ring.when_returned(partial(self._soon, returned.set))
            try:
                await returned.wait()
            finally:
                self.ring.when_returned(None)

    def when_emptied(self, call: Callable[[], object]) -> None:
        """Has it called, after the ring has stopped, when no chain is out, be they given up or not."""
        self.ring.when_empty(partial(self._soon, call))

    def give_up(self) -> None:
        """Gives up the chains that are out: they are never returned to the driver."""
        self.ring.give_up()
        self._changed.set()

    def _soon(self, call: Callable[[], object]) -> None:
        """Has it called on the event loop, from whatever thread."""
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(call)
