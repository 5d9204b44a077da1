"""Faults of notifications."""

import os
import signal
from contextlib import suppress
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.rings import LAIRS, Lair, lose, watch_rings, when_kicked, when_pushing
from vhostd.errors import RefusedRequest
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.vhost_user.ring_message import RingMessage
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd

UNUSED = "a request that was made available was not used"
ALL = "--offer=all"
FAR = 0x4000  # an index that no ring of a check reaches


def _interrupt_if(is_due: Any) -> None:
    """Has the driver interrupted only if this holds of the ring."""
    watch_rings()

    def interrupt(before: Any, self: Vring) -> None:
        queue = self.runner.queue
        if queue is None or queue not in LAIRS or is_due(LAIRS[queue]):
            before(self)

    replace(Vring, "interrupt", interrupt)


def _has_events(lair: Lair) -> bool:
    return bool(lair.vring._features >> Feature.EVENT_IDX & 1)


def _interrupt_always() -> None:
    replace(Virtqueue, "flush", lambda before, self: self._interrupt())


@breaks("NOTE-1", "a chain was used without an interrupt", patience=SILENCE)
def silent() -> None:
    """Without EVENT_IDX there are no interrupts."""
    _interrupt_if(_has_events)


@breaks("NOTE-2", "it has interrupted a driver that had asked for no interrupts")
def loud() -> None:
    """Interrupts whenever it can."""
    _interrupt_always()


@breaks("NOTE-3", "the chain at the event was used without an interrupt", patience=SILENCE)
def misses_events() -> None:
    """With EVENT_IDX there are no interrupts after three chains."""
    _interrupt_if(lambda lair: not _has_events(lair) or lair.count < 3)


@breaks("NOTE-4", "it has interrupted the driver before the chain")
def early() -> None:
    """Interrupts whenever it can."""
    _interrupt_always()


@breaks("NOTE-5", "NO_INTERRUPT counted", patience=SILENCE)
def heeds_flags() -> None:
    """NO_INTERRUPT counts with EVENT_IDX, too."""
    _interrupt_if(lambda lair: lair.is_packed or not lair.word("avail", 0) & 1)


@breaks("NOTE-6", "the used event counted", patience=SILENCE)
def heeds_events() -> None:
    """The used event counts without EVENT_IDX, too."""
    _interrupt_if(lambda lair: lair.is_packed or lair.word("avail", 4 + 2 * lair.size) != 1000)


@breaks("NOTE-7", "its flags for kicks are 0x2, and 0 at most")
def flags_of_its_own() -> None:
    """The flags of the used ring have a bit that there is not."""
    when_pushing(lambda lair, chain: None if lair.is_packed else lair.write("used", 0, b"\2\0"))


def _after_arming(fault: Any) -> None:
    watch_rings()

    def arm(before: Any, self: Virtqueue) -> bool:
        armed: bool = before(self)
        if self in LAIRS and LAIRS[self].count > 3:
            fault(LAIRS[self])
        return armed

    replace(Virtqueue, "_arm", arm)


@breaks("NOTE-8", UNUSED, patience=SILENCE)
def wants_no_kicks() -> None:
    """NO_NOTIFY stays set, after some chains."""
    _after_arming(lambda lair: None if _has_events(lair) else lair.queue.ring.disarm())


@breaks("NOTE-9", UNUSED, patience=SILENCE)
def wants_kicks_late() -> None:
    """The available event is far away, after some chains."""
    _after_arming(lambda lair: lair.write("used", 4 + 8 * lair.size, FAR.to_bytes(2, "little")))


@breaks("NOTE-10", UNUSED, patience=SILENCE)
def forgetful() -> None:
    """The last of 16 chains is lost."""
    lose(lambda lair, chain: lair.count == 16)


@breaks("NOTE-11", "ended by SIGKILL")
def hates_idle_kicks() -> None:
    """The third kick of an empty ring is the last."""
    idle: list[Lair] = []

    def look(lair: Lair) -> None:
        if lair.queue.ring.is_empty:
            idle.append(lair)
        if idle.count(lair) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    when_kicked(look)


@breaks("NOTE-12", "SET_VRING_KICK was acked with 1")
def never_polls() -> None:
    """There must be a kick fd."""

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        if not vring_fd.has_fd:
            raise RefusedRequest("planted")
        before(self, vring_fd, fds)

    replace(Rings, "set_vring_kick", set_vring_kick)


@breaks("NOTE-13", UNUSED, patience=SILENCE)
def keeps_the_kick_fd() -> None:
    """The kick fd of a ring that runs stays."""

    def start(before: Any, self: Vring, *arguments: Any) -> None:
        if self.runner.queue is None:
            before(self, *arguments)

    replace(Vring, "start", start)


@breaks("NOTE-14", "SET_VRING_CALL was acked with 1")
def must_call() -> None:
    """There must be a call fd."""

    def set_vring_call(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        if not vring_fd.has_fd:
            raise RefusedRequest("planted")
        before(self, vring_fd, fds)

    replace(Rings, "set_vring_call", set_vring_call)


@breaks("NOTE-15", "there was no interrupt by the new call fd", patience=SILENCE)
def keeps_the_call_fd() -> None:
    """The call fd of a ring that runs stays."""

    def set_call(before: Any, self: Vring, fd: Fd | None) -> None:
        if self.runner.queue is None:
            before(self, fd)

    replace(Vring, "set_call", set_call)


@breaks("NOTE-16", "a call fd was signalled after it was replaced")
def signals_all() -> None:
    """All call fds that were ever given are signalled."""
    given: list[int] = []

    def set_call(before: Any, self: Vring, fd: Fd | None) -> None:
        if fd is not None:
            given.append(os.dup(fd.fileno()))
        before(self, fd)

    def interrupt(before: Any, self: Vring) -> None:
        before(self)
        for fd in given:
            with suppress(OSError):
                os.eventfd_write(fd, 1)

    replace(Vring, "set_call", set_call)
    replace(Vring, "interrupt", interrupt)


@breaks("NOTE-17", "it was not signalled")
def relies_on_the_last() -> None:
    """A new call fd is signalled when there is something to tell."""
    replace(Vring, "set_call", lambda before, self, fd: self._replace_fd("_call", fd))


def _broken_in_silence() -> None:
    def broke(before: Any, self: Vring) -> None:
        self.is_recorded = False

    replace(Vring, "broke", broke)


@breaks("NOTE-18", "did not make it signal the err fd", patience=SILENCE)
def broken_in_silence() -> None:
    """Nobody is told of a broken ring."""
    _broken_in_silence()


@breaks("NOTE-19", "VRING_KICK was acked with 1", options=ALL)
def no_kicks_by_message() -> None:
    """VRING_KICK is refused."""

    async def vring_kick(before: Any, self: Rings, state: Any) -> None:
        raise RefusedRequest("planted")

    replace(Rings, "vring_kick", vring_kick)


@breaks("NOTE-20", "a chain was used without a message", options=ALL, patience=SILENCE)
def no_calls_by_message() -> None:
    """No messages take the place of fds."""
    replace(RingMessage, "signal", lambda before, self: None)


@breaks("NOTE-21", "a ring was broken without a message", options=ALL, patience=SILENCE)
def no_errs_by_message() -> None:
    """Nobody is told of a broken ring."""
    _broken_in_silence()


@breaks("NOTE-22", "SET_VRING_KICK was acked with 1", options=ALL)
def messages_only() -> None:
    """With INBAND_NOTIFICATIONS there must be no fds."""

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        if self._agreed.has(ProtocolFeature.INBAND_NOTIFICATIONS):
            raise RefusedRequest("planted")
        before(self, vring_fd, fds)

    replace(Rings, "set_vring_kick", set_vring_kick)
