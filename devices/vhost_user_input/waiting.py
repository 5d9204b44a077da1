"""What clients of the event socket have sent and no guest has taken yet, in the order in which it came."""

import asyncio
import logging
from collections import deque
from typing import NamedTuple

from vhost_user_input.origin import Origin
from vhost_user_input.source import Sink

log = logging.getLogger(__name__)

MOST = 1 << 18  # bytes of events that wait
OVERHEAD = 64  # bytes that each item counts beside its events
PATIENCE = 300.0  # seconds that they wait


class Item(NamedTuple):
    """Whole reports of an origin; `last` if it leaves after them, and `time`, when they came."""

    origin: Origin
    reports: bytes
    last: bool
    time: float

    @property
    def size(self) -> int:
        """In bytes, as it counts."""
        return len(self.reports) + OVERHEAD


class Waiting:
    """A queue to the guest.

    While a guest listens, whoever fills it waits for `space`. While none does, nobody is kept waiting, and
    what becomes too much, or too old, is given up: only the state that it leads to is remembered.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._items: deque[Item] = deque()
        self._size = 0
        self._some = asyncio.Event()
        self._space = asyncio.Event()
        sink.watch(lambda _listening: self._tell())

    def add(self, origin: Origin, reports: bytes, *, last: bool = False) -> None:
        """Puts reports at the end."""
        self._items.append(Item(origin, reports, last, asyncio.get_running_loop().time()))
        self._size += self._items[-1].size
        while self._size > MOST and not self._sink.listening:
            self._hand_on(self._items[0])
        self._tell()

    async def space(self) -> None:
        """Waits until more may be added."""
        await self._space.wait()

    async def run(self) -> None:
        """Hands on what waits, for ever."""
        while True:
            await self._some.wait()
            item = self._items[0]
            try:
                async with asyncio.timeout_at(item.time + PATIENCE):
                    await self._sink.room()
            except TimeoutError:
                pass
            if self._items and self._items[0] is item:
                self._hand_on(item)
            # None of the waits above lets others run if there is nothing to wait for.
            await asyncio.sleep(0)

    def _hand_on(self, item: Item) -> None:
        if item.reports and not self._sink.listening:
            log.warning("no guest takes events: %d bytes of them are forgotten", len(item.reports))
        self._items.popleft()
        self._size -= item.size
        item.origin.deliver(item.reports)
        if item.last:
            item.origin.leave()
        self._tell()

    def _tell(self) -> None:
        _put(self._some, on=bool(self._items))
        _put(self._space, on=self._size <= MOST or not self._sink.listening)


def _put(event: asyncio.Event, *, on: bool) -> None:
    event.set() if on else event.clear()
