"""The pages of a guest that comes from another host by postcopy: brought when a ring needs them."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from vhostd.host.threads import Threads
from vhostd.ring import Absent, Arrivals
from vhostd.vhost_user.vring import Vring
from vhostd.wire.fds import Fd

log = logging.getLogger(__name__)


class Arrival:
    """Touches missing pages in threads, so that the front-end brings them. Then it tells the rings.

    `pages` is for guest memory, which says what a ring misses. Until that is there the ring stands still, and
    misses nothing more. So there are threads for all rings. `failed` is called if the host gives us none.
    While `is_acked` is False, the front-end does not know where we see the memory, and nothing is touched.
    """

    def __init__(self, uffd: Fd, vrings: Sequence[Vring], failed: Callable[[Exception], None]) -> None:
        """It takes the userfaultfd."""
        self.is_acked = True
        self._waits = 0
        self._uffd = Fd(uffd.take())
        self._vrings = vrings
        self._failed = failed
        self._threads = Threads(len(vrings), "postcopy")
        self._under_way: set[Absent] = set()
        self._waiting: list[list[Absent]] = []  # for the ack
        self.pages = Arrivals(self._uffd.fileno())
        self.pages.when_missed(self._missed)

    def acked(self) -> None:
        """The front-end knows where we see the memory: from now on pages are touched."""
        self.is_acked = True
        waiting, self._waiting = self._waiting, []
        for absent in waiting:
            self._fetch(absent)

    def complete(self) -> None:
        """All pages are there, or come soon."""
        log.info("all memory has come; rings have waited for pages %d times", self._waits)
        self._end()

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
        if self.is_acked:
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
        elif come:
            for each in absent:
                each.arrived()
            for each in absent:
                for vring in self._vrings:
                    vring.arrived(each)


def _touch(absent: list[Absent]) -> bool:
    """In a thread: whether all of them are there."""
    return all(each.fetch() for each in absent)
