"""Keeps what the rings hold: at the start of a ring, and at each kick, before the back-end hears of it.

What a driver makes available without a kick is kept before the driver hears that it is done: after that, the
driver may use the memory again.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol

from vhostd.errors import FrontendError, GuestError
from vhostd.trace.cutting import Cut
from vhostd.trace.entries import AnyEntry, Rings
from vhostd.trace.guest import Guest
from vhostd.trace.passed import describe
from vhostd.trace.rings import News
from vhostd.vhost_user.messages import (
    GET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_KICK,
    VRING_KICK,
    VringFd,
    VringState,
)
from vhostd.wire.fds import Fd

Event = Literal["start", "kick", "call", "end"]


class Told(Protocol):
    """Whom the watch tells."""

    number: int
    clock: Callable[[], float]
    tell: Callable[[AnyEntry], None]

    def note(self, text: str) -> None:
        """Hears of something that is no message."""


class MemoryWatch:
    """Follows the rings of one connection. The back-end gets kick and call fds of ours."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._guest = Guest()
        self._between: dict[tuple[int, int], _Between] = {}  # by the request that passed an fd, and the ring

    def must_hold(self, request: int) -> bool:
        """Whether we must see a message before the back-end does."""
        return request in (VRING_KICK.request, SET_VRING_CALL.request) or self._guest.knows(request)

    def heard(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        """Takes a message of the front-end and its fds; returns those that go on."""
        if not self.must_hold(message.request):
            return fds
        try:
            if message.request == VRING_KICK.request:
                self._look(VringState.unpack(message.payload[: VringState.SIZE]).index, "kick")
                return fds
            running = set(self._guest.rings)
            if self._guest.knows(message.request):
                self._guest.hear(message.request, message.payload, fds)
            for index in set(self._guest.rings) - running:
                self._look(index, "start")
            return self._passed_on(message, fds)
        except (FrontendError, GuestError, ValueError) as error:
            self._told.note(f"the rings cannot be followed: {error}")
            return fds

    def close(self) -> None:
        """Tells how far the rings have come, and lets go of memory and kicks."""
        for index in list(self._guest.rings):
            self._look(index, "end")
        for between in self._between.values():
            between.close()
        self._between.clear()
        self._guest.close()

    def _passed_on(self, message: Cut, fds: Sequence[Fd]) -> list[Fd]:
        """The fds that go on: eventfds of ours in place of a ring's kick and call."""
        request = message.request
        if request == GET_VRING_BASE.request:
            index = VringState.unpack(message.payload[: VringState.SIZE]).index
            self._forget(SET_VRING_KICK.request, index)
        if request not in (SET_VRING_KICK.request, SET_VRING_CALL.request):
            return list(fds)
        index = VringFd.unpack(message.payload[: VringFd.SIZE]).index
        self._forget(request, index)
        if not fds or describe(fds[0]).kind != "eventfd":
            return list(fds)
        front, ours = Fd(fds[0].take()), Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        theirs = Fd(os.dup(ours.fileno()))
        if request == SET_VRING_KICK.request:
            between = _Between(front, ours, lambda: self._look(index, "kick"))
        else:
            between = _Between(ours, front, lambda: self._look(index, "call"))
        self._between[request, index] = between
        return [theirs]

    def _forget(self, request: int, index: int) -> None:
        if between := self._between.pop((request, index), None):
            between.close()

    def _look(self, index: int, event: Event) -> None:
        """Keeps what is new in a ring."""
        if ring := self._guest.rings.get(index):
            try:
                done = ring.count_done()  # first: a packed ring's driver uses the ids of these again
                news = ring.start() if event == "start" else ring.news()
                if news.chains or event != "call":
                    self._tell(index, event, done, news)
            except (FrontendError, GuestError) as error:
                self._told.note(f"ring {index} cannot be followed any more: {error}")
                del self._guest.rings[index]

    def _tell(self, index: int, event: Event, done: int, news: News) -> None:
        self._told.tell(
            Rings(
                time=self._told.clock(),
                connection=self._told.number,
                ring=index,
                event=event,
                chains=news.chains,
                done=done,
                cut=news.is_cut,
                memory=tuple(news.pieces),
            )
        )


class _Between:
    """Two eventfds, which it owns: what is signalled to one is signalled to the other, after a look."""

    def __init__(self, source: Fd, sink: Fd, look: Callable[[], None]) -> None:
        self._source = source
        self._sink = sink
        self._look = look
        asyncio.get_running_loop().add_reader(source.fileno(), self._pass_on)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._source.fileno())
        self._source.close()
        self._sink.close()

    def _pass_on(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._source.fileno())
        self._look()
        with suppress(BlockingIOError):  # it is full, and so as good as signalled
            os.eventfd_write(self._sink.fileno(), 1)
