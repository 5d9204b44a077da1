"""Faults of the states of rings, and of what both formats have to keep."""

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.rings import LAIRS, Lair, lose, refuse, watch_rings, when_pushing
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.ring import Chain
from vhostd.ring.driver import INDIRECT, WRITE
from vhostd.vhost_user.messages import VringAddr, VringState
from vhostd.vhost_user.negotiation import Negotiation
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.vring import Vring, _index
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.virtqueue import Virtqueue

UNUSED = "a request that was made available was not used"
UNANSWERED = "a valid request was not answered"


@breaks("RING-1", UNANSWERED, patience=SILENCE)
def never_begun() -> None:
    """A ring is not started."""
    replace(Vring, "start", lambda before, self, kick, memory, features: None)


@breaks("RING-2", UNUSED, patience=SILENCE)
def begins_with_what_comes() -> None:
    """What is in a ring at its start is passed over."""

    def make_ring(before: Any, self: Vring, memory: Any) -> Any:
        if self.addr is not None and not self.base:
            self.base = _index(memory, self.addr.avail) or 0
        return before(self, memory)

    replace(Vring, "_make_ring", make_ring)


@breaks("RING-3", UNUSED, patience=SILENCE)
def waits_for_a_kick() -> None:
    """A ring is started by its first kick."""
    waiting: dict[Vring, tuple[Any, ...]] = {}

    def begin(before: Any, self: Vring, *arguments: Any) -> None:
        waiting[self] = (before, self, *arguments)

    def kicked(before: Any, self: Vring) -> None:
        if self in waiting:
            start, *arguments = waiting.pop(self)
            start(*arguments)
        before(self)

    replace(Vring, "_begin", begin)
    replace(Vring, "_kicked", kicked)


@breaks("RING-4", UNANSWERED, patience=SILENCE)
def size_comes_first() -> None:
    """SET_VRING_NUM forgets the call fd."""

    def set_size(before: Any, self: Vring, size: int) -> None:
        self._replace_fd("_call", None)
        before(self, size)

    replace(Vring, "set_size", set_size)


@breaks("RING-5", "after 3 requests it says 4, and not 3")
def one_more() -> None:
    """The base that is told is one too far."""

    async def get_vring_base(before: Any, self: Rings, state: VringState) -> VringState:
        reply = await before(self, state)
        return VringState(reply.index, reply.num + 1)

    replace(Rings, "get_vring_base", get_vring_base)


@breaks("RING-6", "the device has returned 0, which it did not have")
def begins_at_the_start() -> None:
    """Each ring begins at 0."""
    replace(Vring, "set_base", lambda before, self, base: before(self, 0))


@breaks("RING-7", "it has written to memory after the ring was stopped")
def writes_when_stopped() -> None:
    """A stopped ring asks for no kicks any more."""
    watch_rings()

    def get_features(before: Any, self: Negotiation, empty: Any) -> Any:
        for lair in LAIRS.values():
            if lair.vring.runner.queue is None:
                lair.write("used", 0, b"\1\0")
        return before(self, empty)

    replace(Negotiation, "get_features", get_features)


@breaks("RING-8", "and has used what lies before")
def gives_up() -> None:
    """Requests take a second, and a ring that stops does not wait for them."""

    def push(before: Any, self: Virtqueue, chain: Chain) -> None:
        asyncio.get_running_loop().call_later(1, before, self, chain)

    async def stop(before: Any, self: QueueRunner) -> None:
        if self.queue is not None:
            await asyncio.sleep(0.01)  # in which it takes what there is
            self.give_up()
        await before(self)

    replace(Virtqueue, "push", push)
    replace(QueueRunner, "stop", stop)


@breaks("RING-9", "never started closed the connection")
def stops_what_runs_only() -> None:
    """GET_VRING_BASE is for rings that run."""

    async def get_vring_base(before: Any, self: Rings, state: VringState) -> Any:
        if not self._vring(state.index).runner.started:
            raise MalformedMessage("planted")
        return await before(self, state)

    replace(Rings, "get_vring_base", get_vring_base)


@breaks("RING-10", "SET_VRING_KICK was acked with 1")
def forgets_its_size() -> None:
    """A ring that has stopped has no size any more."""

    def stopped(before: Any, self: Vring) -> None:
        before(self)
        self.size = 0

    replace(Vring, "stopped", stopped)


@breaks("RING-11", UNANSWERED, patience=SILENCE)
def stays_where_it_was() -> None:
    """The first address of a ring is its last."""

    def set_addr(before: Any, self: Vring, addr: VringAddr, memory: Any) -> None:
        before(self, self.addr or addr, memory)

    replace(Vring, "set_addr", set_addr)


@breaks("RING-12", UNANSWERED, program="input", patience=SILENCE)
def stops_all() -> None:
    """GET_VRING_BASE stops all rings."""

    async def get_vring_base(before: Any, self: Rings, state: VringState) -> Any:
        await self.stop_all()
        return await before(self, state)

    replace(Rings, "get_vring_base", get_vring_base)


@breaks("RING-13", "a ring was served that was never enabled")
def enabled_by_its_start() -> None:
    """A ring that starts is enabled."""

    def start(before: Any, self: QueueRunner, *arguments: Any) -> None:
        self.is_enabled = True
        before(self, *arguments)

    replace(QueueRunner, "start", start)


@breaks("RING-14", "a request was served while the ring was disabled")
def never_disabled() -> None:
    """A ring that is disabled goes on."""
    replace(QueueRunner, "enable", lambda before, self, *, on: before(self, on=True))


@breaks("RING-15", UNUSED, patience=SILENCE)
def disabled_for_good() -> None:
    """A ring that was disabled is not enabled again."""
    off: set[QueueRunner] = set()

    def enable(before: Any, self: QueueRunner, *, on: bool) -> None:
        if not on:
            off.add(self)
        before(self, on=on and self not in off)

    replace(QueueRunner, "enable", enable)


@breaks("RING-16", UNUSED, patience=SILENCE)
def enabled_too_early() -> None:
    """Only a ring that runs can be enabled."""
    replace(QueueRunner, "enable", lambda before, self, *, on: before(self, on=on and self.started))


@breaks("RING-17", UNUSED, patience=SILENCE)
def disabled_by_its_stop() -> None:
    """A ring that has stopped is disabled."""

    async def stop(before: Any, self: QueueRunner) -> None:
        await before(self)
        self.is_enabled = False

    replace(QueueRunner, "stop", stop)


@breaks("RING-18", "closed the connection")
def stops_enabled_rings_only() -> None:
    """GET_VRING_BASE is for rings that are enabled."""

    async def get_vring_base(before: Any, self: Rings, state: VringState) -> Any:
        if not self._vring(state.index).runner.is_enabled:
            raise MalformedMessage("planted")
        return await before(self, state)

    replace(Rings, "get_vring_base", get_vring_base)


@breaks("RING-19", "SET_VRING_ADDR was acked with 1")
def fixed_while_it_runs() -> None:
    """The addresses of a ring that runs cannot be set."""

    def set_addr(before: Any, self: Vring, addr: VringAddr, memory: Any) -> None:
        self._require_stopped("SET_VRING_ADDR")
        before(self, addr, memory)

    replace(Vring, "set_addr", set_addr)


@breaks("RING-20", "ended by SIGKILL")
def dies_of_another_size() -> None:
    """The size of a ring that runs must not change."""

    def set_size(before: Any, self: Vring, size: int) -> None:
        if self.runner.started:
            os.kill(os.getpid(), signal.SIGKILL)
        before(self, size)

    replace(Vring, "set_size", set_size)


@breaks("RING-21", UNUSED, patience=SILENCE)
def loses_one() -> None:
    """The 63rd chain of a ring is lost."""
    lose(lambda lair, chain: lair.count == 63)


@breaks("RING-22", UNANSWERED, patience=SILENCE)
def ends_at_the_end() -> None:
    """A ring of 16 gives 16 chains."""
    lose(lambda lair, chain: lair.size == 16 and lair.count > 16)


@breaks("RING-23", UNUSED, patience=SILENCE)
def one_descriptor() -> None:
    """A chain has a single descriptor."""
    refuse(lambda lair, chain: lair.is_chained(chain.head))


@breaks("RING-24", UNUSED, patience=SILENCE)
def large_descriptors() -> None:
    """A descriptor has four bytes at least."""
    refuse(lambda lair, chain: lair.descriptor(chain.head)[1] < 4)


@breaks("RING-25", UNUSED, patience=SILENCE)
def no_tables() -> None:
    """Tables are not followed."""
    refuse(lambda lair, chain: lair.flags(chain.head) & INDIRECT)


@breaks("RING-26", UNUSED, patience=SILENCE)
def readable_tables() -> None:
    """A table must not be writable."""
    refuse(lambda lair, chain: lair.flags(chain.head) & (INDIRECT | WRITE) == INDIRECT | WRITE)


@breaks("RING-27", "it has changed descriptor 63")
def scribbles() -> None:
    """The last descriptor is changed with each chain."""
    when_pushing(lambda lair, chain: lair.write("desc", 16 * 63, b"mine"))


@breaks("RING-28", "byte 63 was not written, and the used length says that it was")
def exaggerates() -> None:
    """The last byte of a buffer is left as it was."""
    watch_rings()
    last: dict[Chain, bytes] = {}

    def pop(before: Any, self: Virtqueue) -> Chain | None:
        chain: Chain | None = before(self)
        if chain is not None:
            lair = LAIRS[self]
            last[chain] = lair.memory.read(_end(lair, chain), 1)
        return chain

    replace(Virtqueue, "pop", pop)
    when_pushing(lambda lair, chain: lair.memory.write(_end(lair, chain), last.pop(chain)))


def _end(lair: Lair, chain: Chain) -> int:
    """Where the last byte is of a chain with a single buffer."""
    at = 0 if lair.is_packed else chain.head
    addr, size, *_ = lair.descriptor(at)
    return addr + size - 1


def _refuse_size(is_refused: Any) -> None:
    async def set_vring_num(before: Any, self: Rings, state: VringState) -> None:
        if is_refused(state.num):
            raise RefusedRequest("planted")
        await before(self, state)

    replace(Rings, "set_vring_num", set_vring_num)


@breaks("RING-29", "SET_VRING_NUM was acked with 1")
def at_most_512() -> None:
    """A ring has 512 descriptors at most."""
    _refuse_size(lambda size: size > 512)


@breaks("RING-30", "SET_VRING_NUM was acked with 1")
def at_most_16384() -> None:
    """A ring has 16384 descriptors at most."""
    _refuse_size(lambda size: size > 16384)


@breaks("RING-31", "SET_VRING_NUM was acked with 1")
def at_least_4() -> None:
    """A ring has 4 descriptors at least."""
    _refuse_size(lambda size: size < 4)


@breaks("RING-32", "a ring of 0 descriptors was accepted")
def any_size() -> None:
    """A size that no ring has is taken for 64."""

    async def set_vring_num(before: Any, self: Rings, state: VringState) -> None:
        await before(self, state if 0 < state.num <= 32768 else VringState(state.index, 64))

    replace(Rings, "set_vring_num", set_vring_num)


@breaks("RING-33", "a ring without addresses was started")
def starts_nothing() -> None:
    """A ring that cannot start is acked all the same."""

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        if self._vring(vring_fd.index).size:
            before(self, vring_fd, fds)

    replace(Rings, "set_vring_kick", set_vring_kick)


@breaks("RING-34", "is not aligned was accepted")
def aligns() -> None:
    """Addresses are rounded down."""

    def set_vring_addr(before: Any, self: Rings, addr: VringAddr) -> None:
        parts = {part: getattr(addr, part) & ~15 for part in ("desc", "avail", "used")}
        before(self, VringAddr(**(vars(addr) | parts)))

    replace(Rings, "set_vring_addr", set_vring_addr)


@breaks("RING-35", "is outside the memory was accepted")
def lies_anywhere() -> None:
    """A ring that is not found is acked all the same."""

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        with suppress(RefusedRequest):
            before(self, vring_fd, fds)

    replace(Rings, "set_vring_kick", set_vring_kick)
