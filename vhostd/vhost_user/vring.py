"""A vring: what vhost-user keeps of one ring, and the task that serves it.

A ring has two independent states. It is *started* by SET_VRING_KICK and stopped by GET_VRING_BASE, or when it
is disabled and set up anew; it is *enabled* or disabled by SET_VRING_ENABLE at any time. The device's handler
runs from start to stop, and is given chains while the ring is enabled.

The stop rule: when the ring stops, the handler's loop ends; what it had taken it completes; only then, when
it holds no chain, may it be cancelled.

The start rule: the handler begins when the device works on nothing that an earlier ring has left behind.
Until then the ring is started, and messages about it are served, but it gives no chain.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from vhostd.errors import GuestError, NoGuestMemory, RefusedRequest
from vhostd.ring import GuestMemory, InflightQueue, SplitRing, Window
from vhostd.vhost_user.doubt import Doubt
from vhostd.vhost_user.messages import VringAddr
from vhostd.vhost_user.notification import Notification, notification
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.virtio.vocabulary import MAX_QUEUE_SIZE, Feature
from vhostd.wire.fds import Fd

log = logging.getLogger(__name__)

POLL_INTERVAL = 0.001  # seconds between looks at a ring whose front-end gave no kick fd


class Vring:
    """One ring of the session; owns its kick, call and err fds, its virtqueue and its handler's task.

    `failed` is called with an exception of the device that is not the guest's fault. `inflight` is its part
    of the inflight area, if there is one; it counts when the ring starts. `leftovers` is what earlier rings
    of the device have left behind, `doubt` watches all rings of the session.
    """

    def __init__(
        self,
        index: int,
        handler: Callable[[Virtqueue], Awaitable[None]],
        failed: Callable[[Exception], None],
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
        doubt: Doubt | None = None,
    ) -> None:
        self.index = index
        self.size = 0
        self.base = 0
        self.addr: VringAddr | None = None
        self.enabled = False
        self.inflight: InflightQueue | None = None
        self._handler = handler
        self._failed = failed
        self._make_queue = make_queue
        self._leftovers = Leftovers() if leftovers is None else leftovers
        self._doubt = Doubt() if doubt is None else doubt
        self._broken = False
        self._loop = asyncio.get_running_loop()
        self._kick: Notification | None = None
        self._call: Notification | None = None
        self._err: Notification | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._queue: Virtqueue | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """Whether the ring is between its start and its stop, broken or not."""
        return self._queue is not None

    @property
    def in_flight(self) -> int:
        """How many chains the device has taken and not given back yet."""
        return 0 if self._queue is None else self._queue.in_flight

    def describe(self, memory: GuestMemory, features: int) -> str:
        """The ring as it is now, in a line for the log; avail and used are what the rings themselves say."""
        state = "stopped" if self._queue is None else "broken" if self._broken else "started"
        base = self.base if self._queue is None else self._queue.ring.base
        avail = None if self.addr is None else _index(memory, self.addr.avail)
        used = None if self.addr is None else _index(memory, self.addr.used)
        fds = {"kick": self._kick, "poll": self._poll, "call": self._call, "err": self._err}
        return (
            f"vring {self.index}: {state}, {'enabled' if self.enabled else 'disabled'}, "
            f"size={self.size} base={base} avail={avail} used={used} in_flight={self.in_flight} "
            f"fds={'+'.join(name for name, there in fds.items() if there is not None) or 'none'} "
            f"event_idx={features >> Feature.EVENT_IDX & 1} indirect={features >> Feature.INDIRECT_DESC & 1}"
        )

    # --- Settings, all of which may change while the ring runs -------------------------------------------

    def check_size(self, size: int) -> None:
        """Raises RefusedRequest unless it is a power of two up to 32768."""
        if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise RefusedRequest(
                f"vring {self.index}: size {size} is not a power of two up to {MAX_QUEUE_SIZE}"
            )

    def set_size(self, size: int) -> None:
        """Sets the number of descriptors of a stopped ring; raises RefusedRequest if that cannot be."""
        self.check_size(size)
        self._require_stopped("SET_VRING_NUM")
        self.size = size

    def check_base(self, base: int) -> None:
        """Raises RefusedRequest unless it is an index of the available ring."""
        if base > 0xFFFF:
            raise RefusedRequest(f"vring {self.index}: base {base} is above 65535")

    def set_base(self, base: int) -> None:
        """Sets the next index of the available ring to look at; refused as `set_size` is."""
        self.check_base(base)
        self._require_stopped("SET_VRING_BASE")
        self.base = base

    def set_addr(self, addr: VringAddr, memory: GuestMemory) -> None:
        """Sets where the ring lies; at once if it runs. On failure the old addresses stay."""
        old, self.addr = self.addr, addr
        try:
            self.remap(memory)
        except RefusedRequest:
            self.addr = old
            raise

    def remap(self, memory: GuestMemory) -> None:
        """Moves a running ring to another map of the guest's memory; RefusedRequest if it is not there."""
        if self._queue is not None:
            self._queue.ring.remap(memory, *self._windows(self._queue.size, memory))
            self._queue.look()  # a ring at another place has not been asked for kicks yet

    def set_enabled(self, *, enabled: bool) -> None:
        """Lets the handler have chains, or not; what it has it keeps."""
        self.enabled = enabled
        if self._queue is not None:
            self._queue.enable(on=enabled)

    def set_call(self, fd: Fd | None) -> None:
        """Replaces the eventfd that interrupts the driver, and signals it, as libvhost-user does.

        What the one before was told may be lost, or there was none; an interrupt too many costs nothing.
        """
        self._replace_fd("_call", fd)
        self._interrupt()

    def set_err(self, fd: Fd | None) -> None:
        """Replaces the eventfd that tells the front-end of a broken ring."""
        self._replace_fd("_err", fd)

    # --- Start and stop ---------------------------------------------------------------------------------

    def start(self, kick: Fd | None, memory: GuestMemory, features: int) -> None:
        """Starts the ring, or gives a running one another kick fd; None stands for polling.

        Raises RefusedRequest if the ring's size, addresses or memory are missing or wrong; then the ring
        stays stopped, and `kick` stays the caller's.
        """
        if self._queue is None:
            ring = self._make_ring(memory, features)
            self._watch_kick(kick)
            self._run(ring)
        else:
            self._watch_kick(kick)
            self._queue.kicked()

    async def stop(self) -> int:
        """Stops the ring and returns its base, once every chain that the handler took is back or given up.

        No effect on a stopped ring.
        """
        if (queue := self._queue) is not None:
            queue.stop()
            await queue.quiesce()
            await self._end_task()
            self._leftovers.add(queue)
            self.base = queue.ring.base
            self._queue = None
            self._unwatch_kick()
            self._doubt.end(self.index)
            log.info("vring %d stopped at %d", self.index, self.base)
        return self.base

    def give_up(self) -> None:
        """Lets nobody wait any more for the chains that are out."""
        if self._queue is not None and self._queue.in_flight:
            log.warning("vring %d: %d chains are given up", self.index, self._queue.in_flight)
            self._queue.give_up()

    def close(self) -> None:
        """Closes the fds of a stopped ring."""
        self.set_call(None)
        self.set_err(None)

    def _make_ring(self, memory: GuestMemory, features: int) -> SplitRing:
        if not self.size:
            raise RefusedRequest(f"vring {self.index}: kick before SET_VRING_NUM")
        if self.addr is None:
            raise RefusedRequest(f"vring {self.index}: kick before SET_VRING_ADDR")
        if not memory.regions:
            raise NoGuestMemory(
                f"vring {self.index}: the front-end shares no guest memory; is share=on missing from its "
                "memory backend?"
            )
        windows = self._windows(self.size, memory)
        return SplitRing(
            self.size, *windows, memory, features=features, base=self.base, inflight=self.inflight
        )

    def _windows(self, size: int, memory: GuestMemory) -> tuple[Window, Window, Window]:
        assert self.addr is not None  # a ring that has none does not start
        desc, avail, used = SplitRing.footprint(size)
        return (
            memory.user(self.addr.desc, desc),
            memory.user(self.addr.avail, avail),
            memory.user(self.addr.used, used),
        )

    def _run(self, ring: SplitRing) -> None:
        self._queue = queue = self._make_queue(
            self.index, ring, self._interrupt, lambda error: self._judge(queue, error)
        )
        self._broken = False
        queue.enable(on=self.enabled)
        self._doubt.begin(self.index, ring)
        self._task = self._loop.create_task(self._serve(queue), name=f"vring {self.index}")
        log.info("vring %d started, %d entries, at %d", self.index, ring.size, ring.base)
        if ring.unfinished:
            log.info(
                "vring %d: %d requests were not finished before and are done again",
                self.index,
                ring.unfinished,
            )
        if ring.base:
            # Whoever served the ring before may have died between a used element and its interrupt.
            self._interrupt()

    async def _serve(self, queue: Virtqueue) -> None:
        try:
            await self._wait_for_leftovers()
            await self._handler(queue)
        except Exception as error:
            queue.fail(error)

    def _judge(self, queue: Virtqueue, error: Exception) -> None:
        """Has an error of the handler, or of a request that ends later, cost this ring, or the connection."""
        if not isinstance(error, GuestError):
            self._failed(error)
        elif queue is self._queue and not self._broken:  # else it is a request of a ring that is gone
            log.error("vring %d is broken: %s", self.index, error)
            self._broken = True
            queue.count_error()
            _signal(self._err)

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

    def _require_stopped(self, request: str) -> None:
        if self.started:
            raise RefusedRequest(f"vring {self.index}: {request} while it is started")

    # --- Notifications ----------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        _signal(self._call)

    def _watch_kick(self, fd: Fd | None) -> None:
        kick = self._notification(fd)
        self._unwatch_kick()
        self._kick = kick
        if kick is None:
            self._poll_ring()
        else:
            self._loop.add_reader(kick.fileno(), self._kicked)

    def _unwatch_kick(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if self._kick is not None:
            self._loop.remove_reader(self._kick.fileno())
            self._kick.close()
            self._kick = None

    def _kicked(self) -> None:
        assert self._kick is not None
        assert self._queue is not None
        try:
            kicked = self._kick.clear()
        except OSError as error:
            log.warning("vring %d: the kick fd is of no use any more: %s", self.index, error)
            self._unwatch_kick()
        else:
            if kicked:
                self._queue.kicked()
                if not self._queue.ring.effort:
                    self._doubt.kicked(self.index)

    def _poll_ring(self) -> None:
        if self._queue is not None:
            self._queue.kicked()
        self._poll = self._loop.call_later(POLL_INTERVAL, self._poll_ring)

    def _replace_fd(self, name: str, fd: Fd | None) -> None:
        new = self._notification(fd)
        old: Notification | None = getattr(self, name)
        setattr(self, name, new)
        if old is not None:
            old.close()

    def _notification(self, fd: Fd | None) -> Notification | None:
        try:
            return None if fd is None else notification(fd)
        except RefusedRequest as error:
            raise RefusedRequest(f"vring {self.index}: {error}") from None


def _index(memory: GuestMemory, user_addr: int) -> int | None:
    """The idx field of an avail or a used ring (virtio 1.3, 2.7.6 and 2.7.8); None if it is not in memory."""
    try:
        return int.from_bytes(bytes(memory.user(user_addr, 4))[2:], "little")
    except RefusedRequest:
        return None


def _signal(target: Notification | None) -> None:
    if target is not None:
        target.signal()
