"""A vring: what vhost-user keeps of one ring, and how its kicks and calls travel.

A ring has two independent states. It is *started* by SET_VRING_KICK, or by a kick that is a message. It is
stopped by GET_VRING_BASE, or when it is disabled and set up anew. It is *enabled* or disabled by
SET_VRING_ENABLE at any time. The device's handler runs from start to stop (`virtio/queue_runner.py`), and is
given chains while the ring is enabled.
"""

from vhostd.errors import BadRing, NoGuestMemory, NotThereYet, RefusedRequest
from vhostd.ring import Absent, GuestMemory, InflightQueue, Ring, Window, ring_format
from vhostd.vhost_user.doubt import Doubt
from vhostd.vhost_user.kicks import KickFd, Kicks, Polling
from vhostd.vhost_user.link import FrontendLink
from vhostd.vhost_user.messages import BACKEND_VRING_CALL, BACKEND_VRING_ERR, VringAddr
from vhostd.vhost_user.notification import Notification, notification
from vhostd.vhost_user.ring_message import RingMessage
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd


class Vring:
    """One ring of the session: its settings, and its kick, call and err fds, which it owns.

    `inflight` is its part of the inflight area, if there is one; it counts when the ring starts. `doubt`
    watches all rings of the session. Over `link` go calls and errs for which there are no fds.
    """

    def __init__(self, runner: QueueRunner, doubt: Doubt, link: FrontendLink) -> None:
        self.runner = runner
        self.index = runner.index
        self.size = 0
        self.base = 0
        self.addr: VringAddr | None = None
        self.inflight: InflightQueue | None = None
        self.is_recorded = False  # whether another ring can go on with what is in flight
        self._features = 0  # that were negotiated when it was started
        self._map = GuestMemory()  # where it lies, or will be looked for, while it is started
        self._seeks = False  # its areas, of which the front-end was asked where they lie
        self._doubt = doubt
        self._kicks: Kicks | None = None
        self._call_message = RingMessage(link, BACKEND_VRING_CALL, self.index)
        self._err_message = RingMessage(link, BACKEND_VRING_ERR, self.index)
        self._call: Notification | None = None
        self._err: Notification | None = None

    def describe(self, memory: GuestMemory, features: int) -> str:
        """The ring as it is now, in a line for the log; avail and used are what a split ring itself says."""
        runner, queue = self.runner, self.runner.queue
        state = "broken" if runner.is_broken else "not found yet" if queue is None else "started"
        state = state if runner.started else "stopped"
        fds = [self._kicks.name] if self._kicks is not None and self._kicks.name else []
        fds += [name for name, fd in (("call", self._call), ("err", self._err)) if fd is not None]
        return (
            f"vring {self.index}: {state}, {'enabled' if runner.is_enabled else 'disabled'}, "
            f"size={self.size} {self._where(memory, features)} in_flight={runner.in_flight} "
            f"fds={'+'.join(fds) or 'none'} "
            f"event_idx={features >> Feature.EVENT_IDX & 1} indirect={features >> Feature.INDIRECT_DESC & 1} "
            f"packed={features >> Feature.RING_PACKED & 1}"
        )

    def _where(self, memory: GuestMemory, features: int) -> str:
        base = self.base if self.runner.queue is None else self.runner.queue.ring.base
        where = f"base={ring_format(features).spell(base)}"
        if features >> Feature.RING_PACKED & 1:
            return where
        avail = None if self.addr is None else _index(memory, self.addr.avail)
        used = None if self.addr is None else _index(memory, self.addr.used)
        return f"{where} avail={avail} used={used}"

    # --- Settings, all of which may change while the ring runs -------------------------------------------

    def set_size(self, size: int) -> None:
        """Sets the number of descriptors of a stopped ring; RefusedRequest if it runs."""
        self._require_stopped("SET_VRING_NUM")
        self.size = size

    def set_base(self, base: int) -> None:
        """Sets where a stopped ring goes on, as its format has it; RefusedRequest if it runs."""
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
        """Moves a running ring to another map of the guest's memory; RefusedRequest if it is not there.

        If the front-end has yet to say where it lies, the ring stands still until that is known.
        """
        if not self.runner.started:
            return
        if (queue := self.runner.queue) is None:
            self._map = memory
            self.seek()
            return
        try:
            self._attach(queue, memory)
        except NotThereYet:
            self._map = memory
            self.hold()

    def _attach(self, queue: Virtqueue, memory: GuestMemory) -> None:
        queue.ring.remap(memory, *self._windows(memory))
        self._map, self._seeks = memory, False
        queue.wake_handler()  # a ring at another place has not been asked for kicks yet

    def set_call(self, fd: Fd | None) -> None:
        """Replaces the eventfd that interrupts the driver, and signals it, as libvhost-user does.

        What the one before was told may be lost, or there was none; an interrupt too many costs nothing.
        """
        self._replace_fd("_call", fd)
        if fd is not None:
            self.interrupt()

    def set_err(self, fd: Fd | None) -> None:
        """Replaces the eventfd that tells the front-end of a broken ring; signals it if this one is."""
        self._replace_fd("_err", fd)
        if self.runner.started and self.runner.is_broken:
            self.broke()

    # --- Start and stop ---------------------------------------------------------------------------------

    def start(self, kick: Fd | None, memory: GuestMemory, features: int) -> None:
        """Starts the ring, or gives a running one another kick fd; None stands for polling.

        Raises RefusedRequest if the ring's size, addresses or memory are missing or wrong; then the ring
        stays stopped, and `kick` stays the caller's.
        """
        if (queue := self.runner.queue) is not None:
            self._watch_kick(kick)
            queue.kicked()
            return
        self._features = features
        try:
            ring = self._make_ring(memory)
        except NotThereYet:
            self._watch_kick(kick)
            self._wait(memory)
            return
        self._watch_kick(kick)
        self._begin(ring, memory)

    def kick(self, memory: GuestMemory, features: int) -> None:
        """A kick that came as a message. It starts a ring that is stopped; raises as `start` does."""
        if self.runner.started:
            self._kicked()
            return
        self._features = features
        try:
            self._begin(self._make_ring(memory), memory)
        except NotThereYet:
            self._wait(memory)

    def _wait(self, memory: GuestMemory) -> None:
        """Starts later: the front-end has been asked where the ring lies."""
        self.runner.begin(self)
        self._map, self._seeks, self.is_recorded = memory, True, False

    def _begin(self, ring: Ring, memory: GuestMemory) -> None:
        self._map, self._seeks = memory, False
        self.is_recorded = self.inflight is not None
        self.runner.start(ring, self)
        self._doubt.begin(self.index, ring)
        if ring.base != ring.START:
            # Whoever served the ring before may have died between a used element and its interrupt.
            self.interrupt()

    def close(self) -> None:
        """Closes the fds of a stopped ring, and unmaps its part of the inflight area."""
        self.inflight = None
        self.set_call(None)
        self.set_err(None)

    def _make_ring(self, memory: GuestMemory) -> Ring:
        if not self.size:
            raise RefusedRequest(f"vring {self.index}: kick before SET_VRING_NUM")
        if self.addr is None:
            raise RefusedRequest(f"vring {self.index}: kick before SET_VRING_ADDR")
        if not memory.regions:
            raise NoGuestMemory(
                f"vring {self.index}: the front-end shares no guest memory; is share=on missing from its "
                "memory backend?"
            )
        features, inflight = self._features, self.inflight
        form = ring_format(features)
        if inflight is not None and not isinstance(inflight, form.INFLIGHT):
            raise RefusedRequest(f"vring {self.index}: an inflight area of the other ring format")
        windows = self._windows(memory)
        return form(self.size, *windows, memory, features=features, base=self.base, inflight=inflight)

    def _windows(self, memory: GuestMemory) -> tuple[Window, Window, Window]:
        desc, avail, used = (memory.area(addr, size) for addr, size in self._areas())
        return desc, avail, used

    def _require_stopped(self, request: str) -> None:
        if self.runner.started:
            raise RefusedRequest(f"vring {self.index}: {request} while it is started")

    # --- I/O virtual addresses --------------------------------------------------------------------------

    @property
    def awaited(self) -> tuple[int, int] | None:
        """The miss for which a running ring stands still, if it does: an address, and for which access."""
        return None if self.runner.queue is None else self.runner.queue.ring.awaited

    def lies_in(self, first: int, last: int) -> bool:
        """Whether any byte of the ring is at these addresses."""
        return any(addr <= last and first < addr + size for addr, size in self._areas())

    def hold(self) -> None:
        """Has a running ring stand still; what is in flight can be pushed.

        The front-end is asked where the ring lies when somebody waits for chains of it.
        """
        if (queue := self.runner.queue) is not None:
            queue.flush()
            queue.ring.hold(self._find)

    def seek(self) -> None:
        """Has the ring start or go on, if it has waited for the front-end to say where it lies."""
        if self._seeks:
            self._find()

    def _find(self) -> None:
        """Has the ring start or go on, if its areas are translated; else asks the front-end."""
        self._seeks = True
        try:
            if (queue := self.runner.queue) is None:
                self._begin(self._make_ring(self._map), self._map)
            else:
                self._attach(queue, self._map)
        except NotThereYet:
            pass
        except RefusedRequest as error:
            self._seeks = False
            self.runner.fail(BadRing(str(error)))

    def answered(self, miss: tuple[int, int], *, refused: bool) -> None:
        """The front-end has sent a translation of an address, for such an access, or has refused it."""
        if (queue := self.runner.queue) is not None:
            queue.ring.answered(*miss, refused=refused)
        if self._seeks and refused and self.lies_in(miss[0], miss[0]):
            self._seeks = False
            self.runner.fail(BadRing(f"no access to it at I/O virtual address {miss[0]:#x}"))

    def arrived(self, absent: Absent) -> None:
        """Pages that were missing are there."""
        if (queue := self.runner.queue) is not None:
            queue.ring.arrived(absent)
        self.seek()

    async def let_go(self) -> None:
        """Waits until nothing that is in flight can write to the ring any more; it stands still."""
        if self.runner.queue is not None:
            await self.runner.queue.quiesce()

    def _areas(self) -> list[tuple[int, int]]:
        """The address and the size of each of the ring's areas."""
        if self.addr is None:
            return []
        sizes = ring_format(self._features).footprint(self.size)
        return list(zip((self.addr.desc, self.addr.avail, self.addr.used), sizes, strict=True))

    # --- What the runner tells (`QueueTransport`) ----------------------------------------------------------

    def interrupt(self) -> None:
        """Signals the call fd, or sends a message."""
        (self._call or self._call_message).signal()

    def broke(self) -> None:
        """Signals the err fd, or sends a message."""
        self.is_recorded = False
        (self._err or self._err_message).signal()

    def stopped(self) -> None:
        """Keeps the base, lets go of the kick fd, and sends no more messages: the device may be suspended."""
        if self.runner.queue is not None:  # else it has never begun
            self.base = self.runner.queue.ring.base
        self._seeks = False
        self._map = GuestMemory()
        self._take_kicks(None)
        self._call_message.close()
        self._err_message.close()
        self._doubt.end(self.index)

    # --- Notifications ----------------------------------------------------------------------------------

    def _watch_kick(self, fd: Fd | None) -> None:
        kick = self._notification(fd)
        if kick is None:
            self._take_kicks(Polling(self._look))
        else:
            self._take_kicks(KickFd(kick, f"vring {self.index}", self._kicked))

    def _take_kicks(self, kicks: Kicks | None) -> None:
        """Has kicks come from there, and not from where they came before."""
        if self._kicks is not None:
            self._kicks.close()
        self._kicks = kicks

    def _kicked(self) -> None:
        if (queue := self.runner.queue) is not None:
            queue.kicked()
            if not queue.ring.effort:
                self._doubt.kicked(self.index, lambda: self._map)

    def _look(self) -> None:
        if self.runner.queue is not None:
            self.runner.queue.kicked()

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
    """The idx field of an avail or a used ring (virtio 1.3, 2.7.6 and 2.7.8); None if it is not found."""
    if memory.iotlb is not None or memory.arrivals is not None:
        return None
    try:
        return int.from_bytes(bytes(memory.user(user_addr, 4))[2:], "little")
    except RefusedRequest:
        return None
