"""Faults of reconnecting, and of the inflight area."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import RefusedRequest
from vhostd.vhost_user import rings as rings_module
from vhostd.vhost_user import vring as vring_module
from vhostd.vhost_user.messages import Inflight
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.session import Session
from vhostd.vhost_user.vring import Vring
from vhostd.wire.fds import Fd

HEADER_SIZE, STATE_SIZE = 16, 16  # of a queue's region, and of each descriptor there
VERSION_AT = 8


@breaks("CONN-1", "SET_VRING_KICK was acked with 1")
def rings_of_one_session() -> None:
    """Only the first front-end that starts rings may do so."""
    first: list[Rings] = []

    def set_vring_kick(before: Any, self: Rings, vring_fd: Any, fds: Any) -> None:
        first.append(self)
        if self is not first[0]:
            raise RefusedRequest("another one")
        before(self, vring_fd, fds)

    replace(Rings, "set_vring_kick", set_vring_kick)


@breaks("CONN-2", "the program was ended by SIGKILL")
def dies_at_work() -> None:
    """A front-end that goes while rings run ends the program."""

    def close(before: Any, self: Session) -> Any:
        if self.state.is_running:
            signal.raise_signal(signal.SIGKILL)
        return before(self)

    replace(Session, "_close", close)


@breaks("CONN-3", "which it did not have")
def base_is_ignored() -> None:
    """Each ring begins at its start."""
    replace(Vring, "set_base", lambda before, self, _base: before(self, 0))


@breaks("CONN-4", "a valid request was not answered", patience=SILENCE)
def begins_at_the_avail_index() -> None:
    """What is in a ring when it starts is passed over."""

    def make_ring(before: Any, self: Vring, memory: Any) -> Any:
        if self.addr is not None:
            self.base = vring_module._index(memory, self.addr.avail) or 0
        return before(self, memory)

    replace(Vring, "_make_ring", make_ring)


@breaks("CONN-6", "the program ended with status 1: it runs already")
def runs_once() -> None:
    """A program that was killed leaves behind what keeps the next from starting."""
    path = next(word.partition("=")[2] for word in sys.argv if word.startswith("--socket-path="))
    lock = Path(path).with_name("lock")
    if lock.exists():
        sys.exit("it runs already")
    lock.touch()


@breaks("CONN-7", "SET_INFLIGHT_FD was acked with 1")
def areas_of_others() -> None:
    """An area that was in use is not taken."""

    def set_inflight_fd(before: Any, self: Rings, area: Any, fds: list[Fd]) -> None:
        if any(os.pread(fds[0].fileno(), HEADER_SIZE, 0)):
            raise RefusedRequest("it is not new")
        before(self, area, fds)

    replace(Rings, "set_inflight_fd", set_inflight_fd)


@breaks("CONN-8", "the file has")
def short_file() -> None:
    """The area is said to be longer than its file."""

    def make_area(before: Any, *arguments: Any) -> tuple[Inflight, Fd]:
        area, fd = before(*arguments)
        return Inflight(2 * area.mmap_size, 0, area.num_queues, area.queue_size), fd

    replace(rings_module, "make_area", make_area)


@breaks("CONN-9", "the second area is the first one")
def one_area() -> None:
    """There is one area only."""
    made: list[tuple[Inflight, Fd]] = []

    def make_area(before: Any, *arguments: Any) -> tuple[Inflight, Fd]:
        if not made:
            made.append(before(*arguments))
        return made[0][0], Fd(os.dup(made[0][1].fileno()))

    replace(rings_module, "make_area", make_area)


@breaks("CONN-10", "the version is 7, not 1")
def version_of_its_own() -> None:
    """The area has another version when the ring stops."""
    areas: list[int] = []

    def stopped(before: Any, self: Vring) -> None:
        before(self)
        for fd in areas:
            os.pwrite(fd, b"\7\0", VERSION_AT)

    _when_set(lambda fd: areas.append(os.dup(fd)))
    replace(Vring, "stopped", stopped)


@breaks("CONN-11", "which it did not have")
def off_by_one() -> None:
    """The record of each descriptor is taken for that of the one before."""

    def shift(fd: int) -> None:
        states = os.pread(fd, 64 * STATE_SIZE, HEADER_SIZE)
        os.pwrite(fd, states[STATE_SIZE:], HEADER_SIZE)

    _when_set(shift)


@breaks("CONN-13", "the program was ended by SIGKILL")
def bus_error() -> None:
    """An area whose file is too short is touched."""
    _when_set(lambda fd: None if os.fstat(fd).st_size else signal.raise_signal(signal.SIGKILL))


@breaks("CONN-14", "the program was ended by SIGKILL")
def any_number_of_queues() -> None:
    """The number of queues in an area is trusted."""

    def set_inflight_fd(before: Any, self: Rings, area: Inflight, fds: list[Fd]) -> None:
        if area.num_queues > len(self._vrings):
            signal.raise_signal(signal.SIGKILL)
        before(self, area, fds)

    replace(Rings, "set_inflight_fd", set_inflight_fd)


@breaks("CONN-15", "the program was ended by SIGKILL")
def queues_of_no_size() -> None:
    """The size of a queue is divided by."""

    def get_inflight_fd(before: Any, self: Rings, wanted: Inflight) -> Any:
        if not wanted.queue_size:
            signal.raise_signal(signal.SIGKILL)
        return before(self, wanted)

    replace(Rings, "get_inflight_fd", get_inflight_fd)


def _when_set(call: Any) -> None:
    """Has it called with the fd of each area that a front-end gives."""

    def set_inflight_fd(before: Any, self: Rings, area: Any, fds: list[Fd]) -> None:
        call(fds[0].fileno())
        before(self, area, fds)

    replace(Rings, "set_inflight_fd", set_inflight_fd)
