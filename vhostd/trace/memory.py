"""Keeps what the rings hold: at the start of a ring, and at each kick, before the back-end hears of it."""

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
from vhostd.vhost_user.messages import GET_VRING_BASE, SET_VRING_KICK, VRING_KICK, VringFd, VringState
from vhostd.wire.fds import Fd

Event = Literal["start", "kick", "end"]


class Told(Protocol):
    """Whom the watch tells."""

    number: int
    clock: Callable[[], float]
    tell: Callable[[AnyEntry], None]

    def note(self, text: str) -> None:
        """Hears of something that is no message."""


class MemoryWatch:
    """Follows the rings of one connection. The back-end gets kick fds of ours, and hears a moment later."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._guest = Guest()
        self._kicks: dict[int, _Kick] = {}

    def must_hold(self, request: int) -> bool:
        """Whether we must see a message before the back-end does."""
        return request == VRING_KICK.request or self._guest.knows(request)

    def heard(self, message: Cut, fds: list[Fd]) -> list[Fd]:
        """Takes a message of the front-end and its fds; returns those that go on."""
        if not self.must_hold(message.request):
            return fds
        try:
            if message.request == VRING_KICK.request:
                self._look(VringState.unpack(message.payload[: VringState.SIZE]).index)
                return fds
            running = set(self._guest.rings)
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
        for index in list(self._kicks):
            self._kicks.pop(index).close()
        self._guest.close()

    def _passed_on(self, message: Cut, fds: Sequence[Fd]) -> list[Fd]:
        if message.request == GET_VRING_BASE.request:
            self._forget(VringState.unpack(message.payload[: VringState.SIZE]).index)
        if message.request == SET_VRING_KICK.request:
            index = VringFd.unpack(message.payload[: VringFd.SIZE]).index
            self._forget(index)
            if fds and describe(fds[0]).kind == "eventfd":
                self._kicks[index] = kick = _Kick(fds[0], lambda: self._look(index))
                return [kick.theirs()]
        return list(fds)

    def _forget(self, index: int) -> None:
        if kick := self._kicks.pop(index, None):
            kick.close()

    def _look(self, index: int, event: Event = "kick") -> None:
        """Keeps what is new in a ring."""
        if ring := self._guest.rings.get(index):
            try:
                done = ring.count_done()  # first: a packed ring's driver uses the ids of these again
                self._tell(index, event, done, ring.start() if event == "start" else ring.news())
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


class _Kick:
    """The front-end's eventfd, and the one that the back-end has in its place."""

    def __init__(self, front: Fd, kicked: Callable[[], None]) -> None:
        self._front = Fd(front.take())
        self._back = Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        self._kicked = kicked
        asyncio.get_running_loop().add_reader(self._front.fileno(), self._pass_on)

    def theirs(self) -> Fd:
        """The back-end's eventfd, for the message."""
        return Fd(os.dup(self._back.fileno()))

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._front.fileno())
        self._front.close()
        self._back.close()

    def _pass_on(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._front.fileno())
        self._kicked()
        with suppress(BlockingIOError):  # it is full, and so as good as kicked
            os.eventfd_write(self._back.fileno(), 1)
