"""The pages of a guest that comes from another host by postcopy: brought when a ring needs them."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from vhostd.errors import RefusedRequest
from vhostd.host.threads import Threads
from vhostd.ring import Absent, Arrivals, Region
from vhostd.vhost_user.vring import Vring
from vhostd.wire.fds import Fd

log = logging.getLogger(__name__)


class Arrival:
    """Touches missing pages in threads, so that the front-end brings them. Then it tells the rings.

    `pages` is for guest memory, which says what a ring misses. Until that is there the ring stands still, and
    misses nothing more. So there are threads for all rings. `failed` is called if the host gives us none.
    Nothing is touched before the front-end has acked where we see the memory.
    """

    def __init__(self, uffd: Fd, vrings: Sequence[Vring], failed: Callable[[Exception], None]) -> None:
        """It takes the userfaultfd."""
        self._is_acked = True
        self._waits = 0
        self._uffd = Fd(uffd.take())
        self._vrings = vrings
        self._failed = failed
        self._threads = Threads(len(vrings), "postcopy")
        self._under_way: set[Absent] = set()
        self._waiting: list[list[Absent]] = []  # for the ack
        self.pages = Arrivals(self._uffd.fileno())
        self.pages.when_missed(self._missed)

    @contextmanager
    def unacked(self) -> Iterator[None]:
        """From this block on, nothing is touched until an ack. RefusedRequest in the block undoes that."""
        was_acked, self._is_acked = self._is_acked, False
        try:
            yield
        except RefusedRequest:
            if was_acked:
                self.acked()
            raise

    def acked(self) -> None:
        """The front-end knows where we see the memory: from now on pages are touched."""
        self._is_acked = True
        waiting, self._waiting = self._waiting, []
        for absent in waiting:
            self._fetch(absent)

    def complete(self) -> None:
        """All pages are there, or come soon."""
        log.info("all memory has come; rings have waited for pages %d times", self._waits)
        self._end()

    def keep(self, regions: Sequence[Region]) -> None:
        """Waits for no pages of other regions any more. The front-end may not know of such pages."""
        for absent in self._under_way:
            if absent.region not in regions:
                absent.stop(self._uffd.fileno())

    def give_up(self) -> None:
        """Touches no more pages, and waits for none."""
        for absent in self._under_way:
            absent.stop(self._uffd.fileno())
        self._end()

    def _end(self) -> None:
        self.pages.when_missed(None)
        self._waiting.clear()
        self._threads.close()
        self._uffd.close()

    def _missed(self, absent: list[Absent]) -> None:
        new = [each for each in absent if each not in self._under_way]
        self._under_way.update(new)
        if not new:
            return
        if self._is_acked:
            self._fetch(new)
        else:
            self._waiting.append(new)

    def _fetch(self, absent: list[Absent]) -> None:
        self._waits += 1
        self._threads.do(partial(_touch, absent), partial(self._told, absent))

    def _told(self, absent: list[Absent], come: object) -> None:
        self._under_way.difference_update(absent)
        if isinstance(come, Exception):
            self._failed(come)
            return
        for each in absent:
            if come:
                each.arrived()
            for vring in self._vrings:  # they look again, also if it was stopped
                vring.arrived(each)


def _touch(absent: list[Absent]) -> bool:
    """In a thread: whether all of them are there."""
    return all(each.fetch() for each in absent)
