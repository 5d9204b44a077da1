"""Faults that only a driver brings to light that is not honest: a broken ring ends the program, or worse."""

import signal
from collections.abc import Callable
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import GuestError, RefusedRequest
from vhostd.ring import Chain
from vhostd.vhost_user.rings import Rings
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.virtqueue import Virtqueue

FATAL = "was ended by SIGSEGV"
BLOCK_HEADER = 16  # bytes


@breaks("DRV-1", FATAL)
def loops_are_followed() -> None:
    """A chain that never ends is followed."""
    _fatal()


@breaks("DRV-2", FATAL)
def next_anywhere() -> None:
    """A next outside of the table is followed."""
    _fatal()


@breaks("DRV-3", FATAL)
def head_anywhere() -> None:
    """A head outside of the table is followed."""
    _fatal()


@breaks("DRV-4", FATAL)
def index_anywhere() -> None:
    """An available index that jumps is believed."""
    _fatal()


@breaks("DRV-6", FATAL)
def buffers_anywhere() -> None:
    """A buffer outside of memory is used."""
    _fatal()


@breaks("DRV-10", FATAL)
def tables_anywhere() -> None:
    """A table that cannot be right is read."""
    _fatal()


@breaks("DRV-11", FATAL)
def packed_without_end() -> None:
    """A packed chain that never ends is followed."""
    _fatal()


@breaks("DRV-13", FATAL)
def noise_is_believed() -> None:
    """Noise is believed."""
    _fatal()


@breaks("DRV-8", FATAL)
def any_order() -> None:
    """A buffer to read may come behind one to write."""
    _fatal()


@breaks("DRV-12", FATAL)
def any_id() -> None:
    """Any id is believed."""
    _fatal()


@breaks("DRV-14", "SET_VRING_KICK was acked with 1")
def broken_for_good() -> None:
    """A ring that was broken cannot be started again."""
    broken: set[int] = set()

    def break_it(before: Any, self: QueueRunner, error: GuestError) -> None:
        broken.add(self.index)
        before(self, error)

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        if vring_fd.index in broken:
            raise RefusedRequest("it is broken")
        before(self, vring_fd, fds)

    replace(QueueRunner, "_break", break_it)
    replace(Rings, "set_vring_kick", set_vring_kick)


@breaks("DRV-15", "a valid request was not answered", program="block", patience=SILENCE)
def all_are_broken() -> None:
    """When one ring is broken all stop."""
    runners: list[QueueRunner] = []

    def init(before: Any, self: QueueRunner, *arguments: Any, **keywords: Any) -> None:
        runners.append(self)
        before(self, *arguments, **keywords)

    def break_it(before: Any, self: QueueRunner, error: GuestError) -> None:
        for runner in runners:
            if runner.started and not runner.is_broken:
                before(runner, error)

    replace(QueueRunner, "__init__", init)
    replace(QueueRunner, "_break", break_it)


@breaks("DRV-5", FATAL)
def heads_of_their_own() -> None:
    """A head that comes again and again is taken for a fault of its own."""
    heads: list[int] = []

    def is_repeated(chain: Chain) -> bool:
        heads.append(chain.head)
        return heads[-8:] == [chain.head] * 8

    _dies_of(is_repeated)


@breaks("DRV-7", FATAL)
def something_to_do() -> None:
    """A chain is taken to have bytes."""
    _dies_of(lambda chain: not chain.readable + chain.writable)


@breaks("DRV-9", FATAL, program="block")
def whole_requests() -> None:
    """A request is taken to have a header, and room for a status."""
    _dies_of(lambda chain: chain.readable < BLOCK_HEADER or not chain.writable)


def _dies_of(is_fatal: Callable[[Chain], bool]) -> None:
    """Has a chain for which this holds end the program. No chain takes a shortcut."""

    def pop(before: Any, self: Virtqueue) -> Chain | None:
        chain: Chain | None = before(self)
        if chain is not None and is_fatal(chain):
            signal.raise_signal(signal.SIGSEGV)
        return chain

    replace(Virtqueue, "use_shortcut", lambda _before, _self, _shortcut: None)
    replace(Virtqueue, "pop", pop)


def _fatal() -> None:
    """Has a broken ring end the program."""

    def break_it(_before: Any, _self: QueueRunner, _error: GuestError) -> None:
        signal.raise_signal(signal.SIGSEGV)

    replace(QueueRunner, "_break", break_it)
