"""Carries reports from the sources to the eventq: the backlog, and those who wait for it."""

import asyncio
from collections.abc import Callable

from vhost_user_input.backlog import Backlog
from vhost_user_input.description import Description
from vhost_user_input.events import EVENT
from vhost_user_input.origin import Origin
from vhost_user_input.state import State
from vhostd import Unpacker, Virtqueue

# In events. After so many the event loop gets a turn, for signals, messages and the sources.
BURST = 64


class Feed:
    """The sink of all sources, and the handler of the eventq."""

    def __init__(self, backlog: Backlog, description: Description) -> None:
        self.origins: set[Origin] = set()
        self._backlog = backlog
        self._description = description
        self._ended = False
        self._watchers: list[Callable[[bool], None]] = []
        self._waiting = asyncio.Event()  # there are events for the guest
        self._nothing = asyncio.Event()  # there are none
        self._room = asyncio.Event()  # the guest listens, and at least half of the backlog is free
        self._tell()

    # --- The sources' side ------------------------------------------------------------------------------

    @property
    def listening(self) -> bool:
        """Whether the guest's driver takes events."""
        return self._backlog.listening

    @property
    def state(self) -> State:
        """What all reports so far come to."""
        return self._backlog.device

    def origin(self) -> Origin:
        """One more of those who report."""
        return Origin(self, slots=self._description.slots > 0)

    def watch(self, call: Callable[[bool], None]) -> None:
        """Has it called with whether the guest's driver listens: now, and when that changes."""
        self._watchers.append(call)
        call(self.listening)

    def deliver(self, reports: bytes) -> None:
        """Takes whole reports, packed; they reach the guest if its driver listens."""
        if reports and not self._ended:
            self._backlog.add(reports)
            self._tell()

    def replace(self, state: State) -> None:
        """The device is in this state now, whatever was delivered before."""
        if not self._ended:
            self._backlog.replace(state)
            self._tell()

    async def room(self) -> None:
        """Waits until the guest's driver listens and nothing that is delivered now will be dropped."""
        while not self._room.is_set():
            await self._room.wait()

    # --- The guest's side -------------------------------------------------------------------------------

    async def serve(self, queue: Virtqueue) -> None:
        """Fills the driver's buffers with events from the ring's start to its stop."""
        try:
            while await queue.ready():
                # A driver that has given buffers listens; before that it may still be starting.
                self._start()
                await self._waiting.wait()
                self._fill(queue)
                # Neither of the waits above lets others run if there is nothing to wait for.
                await asyncio.sleep(0)
        finally:
            self._stop()

    def doubt(self) -> None:
        """The driver was set up before, and may believe anything. No ring runs."""
        self._backlog.doubt(self._description)

    def save(self) -> bytes:
        """What the driver has been told, and what the device's state is, as bytes. No ring runs."""
        return self._backlog.save()

    def load(self, unpacker: Unpacker) -> None:
        """Goes on for a driver of another program, as `Backlog.load` does. No ring runs."""
        self._backlog.load(unpacker, self._description)

    async def end(self) -> None:
        """Releases all that is held, takes nothing more, and returns when the guest has been told."""
        self._ended = True
        self._backlog.end()
        self._tell()
        await self._nothing.wait()

    def _start(self) -> None:
        if not self._backlog.listening:
            self._backlog.start()
            self._tell()
            self._tell_watchers()

    def _stop(self) -> None:
        if self._backlog.listening:
            self._backlog.stop()
            self._tell()
            self._tell_watchers()

    def _tell_watchers(self) -> None:
        for call in self._watchers:
            call(self.listening)

    def _fill(self, queue: Virtqueue) -> None:
        events = self._backlog.head(BURST)
        done = 0
        try:
            while done < len(events) and (chain := queue.pop()) is not None:
                chain.write(events[done : done + EVENT.size])
                queue.push(chain)
                done += EVENT.size
        finally:
            self._backlog.delivered(events[:done])
            self._tell()

    def _tell(self) -> None:
        _put(self._waiting, on=len(self._backlog) > 0)
        _put(self._nothing, on=not len(self._backlog))
        _put(self._room, on=self._backlog.listening and len(self._backlog) * 2 <= self._backlog.capacity)


def _put(event: asyncio.Event, *, on: bool) -> None:
    event.set() if on else event.clear()
