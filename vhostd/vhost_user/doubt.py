"""Whether the front-end's memory is the guest's: if not, no ring ever shows a request."""

import asyncio
import logging

from vhostd.errors import GuestError, MemoryLost
from vhostd.ring import Ring

log = logging.getLogger(__name__)

DELAY = 1.0  # seconds after a kick until it is said that there is no request


class Doubt:
    """Watches the rings of a session.

    A driver kicks when it has written a request. If it does, and no ring shows one, the front-end may have
    passed a file and mapped it privately (share=off): what the driver writes then stays in the front-end.
    Single rings are kicked in vain: QEMU kicks all, if a guest begins early.
    """

    def __init__(self) -> None:
        self._rings: dict[int, Ring] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, index: int, ring: Ring) -> None:
        """A ring has started."""
        self._rings[index] = ring

    def end(self, index: int) -> None:
        """It has stopped."""
        self._rings.pop(index, None)
        if not self._rings and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def kicked(self, index: int) -> None:
        """A ring was kicked that has never shown a request: has it said later, once, if none of them has."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(DELAY, self._judge, index)

    def _judge(self, index: int) -> None:
        if all(map(_shows_nothing, self._rings.values())):
            log.warning(
                "vring %d: kicked, and there is no request; is share=on missing from the memory backend?",
                index,
            )


def _shows_nothing(ring: Ring) -> bool:
    try:
        return not ring.effort and ring.is_empty
    except (GuestError, MemoryLost):
        return False
