"""Carries reports from the sources to the eventq: the backlog, and those who wait for it."""

import asyncio
from typing import TYPE_CHECKING

from vhost_user_input.backlog import Backlog
from vhost_user_input.events import EVENT
from vhost_user_input.state import State

if TYPE_CHECKING:
    from vhostd import Virtqueue

# In events. After so many the event loop gets a turn, for signals, messages and the sources.
BURST = 64


class Feed:
    """The sink of all sources, and the handler of the eventq."""

    def __init__(self, backlog: Backlog) -> None:
        self._backlog = backlog
        self._waiting = asyncio.Event()  # there are events for the guest
        self._room = asyncio.Event()  # the guest listens, and at least half of the backlog is free

    # --- The sources' side ------------------------------------------------------------------------------

    def deliver(self, reports: bytes) -> None:
        """Takes whole reports, packed; they reach the guest if its driver listens."""
        if reports:
            self._backlog.add(reports)
            self._tell()

    def replace(self, state: State) -> None:
        """The device is in this state now, whatever was delivered before."""
        self._backlog.replace(state)
        self._tell()

    async def room(self) -> None:
        """Waits until the guest's driver listens and nothing that is delivered now will be dropped."""
        while not self._room.is_set():
            await self._room.wait()

    # --- The guest's side -------------------------------------------------------------------------------

    async def serve(self, queue: "Virtqueue") -> None:
        """Fills the driver's buffers with events from the ring's start to its stop."""
        try:
            while await queue.ready():
                # A driver that has given buffers listens; before that it may still be starting.
                self._backlog.start()
                self._tell()
                await self._waiting.wait()
                self._fill(queue)
                # Neither of the waits above lets others run if there is nothing to wait for.
                await asyncio.sleep(0)
        finally:
            self._backlog.stop()
            self._tell()

    def _fill(self, queue: "Virtqueue") -> None:
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
        _put(self._room, on=self._backlog.listening and len(self._backlog) * 2 <= self._backlog.capacity)


def _put(event: asyncio.Event, *, on: bool) -> None:
    event.set() if on else event.clear()
