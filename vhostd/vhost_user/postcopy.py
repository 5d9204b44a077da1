"""The messages about postcopy: a guest runs here before all of its memory has come from another host.

The front-end brings the pages that somebody touches. A userfaultfd tells it of ours, which it gets at
POSTCOPY_ADVISE. From POSTCOPY_LISTEN to POSTCOPY_END, replies tell it where we see the memory (memory.py), so
that it understands what the userfaultfd says (vhost-user, "Migration").
"""

import logging
import os
from collections.abc import Callable, Sequence

from vhostd.errors import RefusedRequest
from vhostd.host.grants import Grants
from vhostd.host.ioctls import Ioctl
from vhostd.ring.arrivals import USERFAULTFD_FLAGS, USERFAULTFD_IOCTLS, open_userfaultfd
from vhostd.vhost_user.arrival import Arrival
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.messages import POSTCOPY_ADVISE, POSTCOPY_END, POSTCOPY_LISTEN
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.device import Device
from vhostd.wire.calls import Call, Reply, answer
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty

log = logging.getLogger(__name__)


class Postcopy:
    """Begins and ends that pages of guest memory may be missing."""

    def __init__(self, vrings: Sequence[Vring], memory: Memory, failed: Callable[[Exception], None]) -> None:
        """`failed` is called if missing pages cannot be fetched."""
        self._vrings = vrings
        self._memory = memory
        self._failed = failed
        self._uffd = Fd(-1)
        self.calls: tuple[Call, ...] = (
            answer(POSTCOPY_ADVISE, self.postcopy_advise),
            answer(POSTCOPY_LISTEN, self.postcopy_listen),
            answer(POSTCOPY_END, self.postcopy_end),
        )

    @staticmethod
    def grants(device: Device) -> Grants:
        """What it needs of the system, for such a device."""
        if device.keeps_memory:
            return Grants()
        return Grants(ioctls=tuple(map(Ioctl, USERFAULTFD_IOCTLS)), userfaultfds=(USERFAULTFD_FLAGS,))

    @staticmethod
    def is_possible(device: Device) -> bool:
        """Whether the kernel gives us a userfaultfd, and such a device touches no memory but its chains'."""
        if device.keeps_memory:
            return False
        try:
            Fd(open_userfaultfd()).close()
        except OSError as error:
            log.warning("postcopy is not offered: %s", error.strerror)
            return False
        return True

    def close(self) -> None:
        """Waits for no page any more. The rings stand still where one is missing."""
        self._uffd.close()
        if self._memory.arrival is not None:
            self._memory.arrival.give_up()

    def postcopy_advise(self, _: Empty) -> Reply[Empty]:
        if self._memory.arrival is not None:
            raise RefusedRequest("POSTCOPY_ADVISE after POSTCOPY_LISTEN")
        self._uffd.close()
        try:
            self._uffd = Fd(open_userfaultfd())
            return Reply(Empty(), [Fd(os.dup(self._uffd.fileno()))])
        except OSError as error:
            raise RefusedRequest(f"POSTCOPY_ADVISE: {error.strerror}") from None

    def postcopy_listen(self, _: Empty) -> None:
        if not self._uffd:
            raise RefusedRequest("POSTCOPY_LISTEN without POSTCOPY_ADVISE")
        if self._memory.map.regions:
            raise RefusedRequest("POSTCOPY_LISTEN when memory is shared: its pages may have been touched")
        self._memory.await_pages(Arrival(self._uffd, self._vrings, self._failed))

    def postcopy_end(self, _: Empty) -> U64:
        """No error if it has not begun: a front-end whose migration fails early ends it all the same."""
        self._uffd.close()
        self._memory.await_no_more()
        return U64(0)
