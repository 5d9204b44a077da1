"""The events of the event socket's clients that no guest has taken yet, in the order in which they came."""

import asyncio
import logging
from collections import deque
from typing import NamedTuple

from vhost_user_input.origin import Origin
from vhost_user_input.source import Sink

log = logging.getLogger(__name__)

MOST = 1 << 18  # bytes of events that may wait
OVERHEAD = 64  # bytes that each item counts besides its events
PATIENCE = 300.0  # seconds that events wait


class Item(NamedTuple):
    """Whole reports of an origin. `last`: the origin leaves after them. `time`: when they came."""

    origin: Origin
    reports: bytes
    last: bool
    time: float

    @property
    def size(self) -> int:
        """The bytes that count against MOST."""
        return len(self.reports) + OVERHEAD


class Waiting:
    """A queue to the guest.

    While a guest listens, a client that fills the queue waits for `space`. While no guest listens, no client
    waits. Events that are too many or too old are dropped then; only the state that they lead to is kept.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._items: deque[Item] = deque()
        self._size = 0
        self._has_items = asyncio.Event()
        self._has_space = asyncio.Event()
        sink.watch(lambda _listening: self._update_events())

    def add(self, origin: Origin, reports: bytes, *, last: bool = False) -> None:
        """Puts reports at the end."""
        self._items.append(Item(origin, reports, last, asyncio.get_running_loop().time()))
        self._size += self._items[-1].size
        while self._size > MOST and not self._sink.listening:
            self._hand_on(self._items[0])
        self._update_events()

    async def space(self) -> None:
        """Waits until more may be added."""
        await self._has_space.wait()

    async def run(self) -> None:
        """Hands on the reports that wait, until it is cancelled."""
        while True:
            await self._has_items.wait()
            item = self._items[0]
            try:
                async with asyncio.timeout_at(item.time + PATIENCE):
                    await self._sink.room()
            except TimeoutError:
                pass
            if self._items and self._items[0] is item:
                self._hand_on(item)
            # The awaits above may return without a pause; this one lets other tasks run.
            await asyncio.sleep(0)

    def _hand_on(self, item: Item) -> None:
        if item.reports and not self._sink.listening:
            log.warning("no guest takes events: %d bytes of them are forgotten", len(item.reports))
        self._items.popleft()
        self._size -= item.size
        item.origin.deliver(item.reports)
        if item.last:
            item.origin.leave()
        self._update_events()

    def _update_events(self) -> None:
        _set_or_clear(self._has_items, on=bool(self._items))
        _set_or_clear(self._has_space, on=self._size <= MOST or not self._sink.listening)


def _set_or_clear(event: asyncio.Event, *, on: bool) -> None:
    event.set() if on else event.clear()
