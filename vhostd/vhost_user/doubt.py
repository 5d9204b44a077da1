"""Warns if the front-end's memory is not the guest's: then no ring ever shows a request."""

import asyncio
import logging
from collections.abc import Callable

from vhostd.errors import GuestError, MemoryLost
from vhostd.ring import GuestMemory, Ring

log = logging.getLogger(__name__)

DELAY = 1.0  # seconds from a kick without a request to the warning
LOOKED_AT = 1 << 20  # bytes at the memory's start: firmware, a kernel or its loader has been there


class Doubt:
    """Watches the rings of a session.

    A driver kicks when it has written a request. If no ring shows one then, the front-end may have passed a
    file and mapped it privately (share=off): the driver's writes stay in the front-end, and all of the file
    is zeros. Rings without a request prove nothing: QEMU kicks them itself when a driver is ready, and that
    of a network card has no request before the interface is up. A ring that went on from elsewhere than its
    start has shown requests before.
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

    def kicked(self, index: int, memory: Callable[[], GuestMemory]) -> None:
        """Call it when a ring without any request was kicked. Warns later, once, if nothing is seen then.

        `memory` tells the memory of that time.
        """
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(DELAY, self._warn_if_no_request, index, memory)

    def _warn_if_no_request(self, index: int, memory: Callable[[], GuestMemory]) -> None:
        if all(map(_shows_nothing, self._rings.values())) and _is_blank(memory()):
            log.warning(
                "vring %d: kicked, and there is no request; is share=on missing from the memory backend?",
                index,
            )


def _shows_nothing(ring: Ring) -> bool:
    try:
        return ring.base == ring.START and not ring.effort and ring.is_empty
    except (GuestError, MemoryLost):
        return False


def _is_blank(memory: GuestMemory) -> bool:
    """Whether there are zeros where any guest has written. Pages that are yet to come are not asked for."""
    if memory.arrivals is not None or not memory.regions:
        return False
    first = min(memory.regions, key=lambda region: region.guest_addr)
    try:
        seen = GuestMemory(memory.regions).read(first.guest_addr, min(first.size, LOOKED_AT))
    except (GuestError, MemoryLost):
        return False
    return not seen.strip(b"\0")
