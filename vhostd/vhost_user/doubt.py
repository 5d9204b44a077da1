"""Warns if the front-end's memory is not the guest's: then no ring ever shows a request."""

import asyncio
import logging

from vhostd.errors import GuestError, MemoryLost
from vhostd.ring import Ring

log = logging.getLogger(__name__)

DELAY = 1.0  # seconds from a kick without a request to the warning


class Doubt:
    """Watches the rings of a session.

    A driver kicks when it has written a request. If no ring shows one then, the front-end may have passed a
    file and mapped it privately (share=off): the driver's writes stay in the front-end. One ring without a
    request proves nothing, since QEMU kicks all rings if a guest begins early. A ring that went on from
    elsewhere than its start has shown requests before.
    """

    def __init__(self) -> None:
        self._rings: dict[int, Ring] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, index: int, ring: Ring) -> None:
        """Call it when a ring has started."""
        self._rings[index] = ring

    def end(self, index: int) -> None:
        """Call it when a ring has stopped."""
        self._rings.pop(index, None)
        if not self._rings and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def kicked(self, index: int) -> None:
        """Call it when a ring without any request was kicked. Warns later, once, if no ring shows one."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._warn_if_no_request, index)

    def _warn_if_no_request(self, index: int) -> None:
        if all(map(_shows_nothing, self._rings.values())):
            log.warning(
                "vring %d: kicked, and there is no request; is share=on missing from the memory backend?",
                index,
            )


def _shows_nothing(ring: Ring) -> bool:
    try:
        return ring.base == ring.START and not ring.effort and ring.is_empty
    except (GuestError, MemoryLost):
        return False
