"""Where the card leads to on the host: what each kind of that has in common."""

import asyncio
import errno
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vhost_user_net.features import VERSION_1, Feature, mask
from vhost_user_net.pair import Pair
from vhostd import Fd, Grants

log = logging.getLogger(__name__)

PAUSE = 1.0  # seconds between two tries to open it again
NOBODY_THERE = (errno.ENOENT, errno.ECONNREFUSED)  # which is no news after a loss
SHORT_HEADER, HEADER = 10, 12  # bytes of struct virtio_net_hdr, without and with num_buffers


class Netdev(ABC):
    """Has fds that packets come from and go to, one for each pair of queues; opens them again when lost.

    `changed` is called when it is lost, and when it is back.
    """

    features: int = 0  # offloads that it has, as a mask
    no_access = ""  # what a refused access comes from, for messages
    pairs: Sequence[Pair]

    def __init__(self, name: str) -> None:
        """`name` is the option that names it, for messages."""
        self.name = name
        self.is_open = False
        self.changed: Callable[[], None] = lambda: None
        self._fds: list[Fd] = []
        self._agreed = VERSION_1  # features, with the driver
        self._lost = asyncio.Event()
        self._said = 0  # why it cannot be opened, as the log has it

    @abstractmethod
    def open(self) -> list[Fd]:
        """Fds, as many as there are pairs; raises OSError."""

    def begin(self) -> None:
        """Opens it for the first time. If that fails, `run` tries again."""
        try:
            self.take(self.open())
        except OSError as error:
            self._say(error)

    def take(self, fds: list[Fd]) -> None:
        """Leads to these fds from now on."""
        self._fds = fds
        for pair, fd in zip(self.pairs, fds, strict=True):
            pair.open(fd.fileno())
        self._lost.clear()
        self.is_open = True
        self._said = 0

    def lose(self, why: str) -> None:
        """Notes that an fd leads nowhere any more; idempotent."""
        if self.is_open:
            self.is_open = False
            log.warning("%s is lost: %s; packets are dropped until it is back", self.name, why)
            self._lost.set()
            self.changed()

    async def run(self) -> None:
        """Opens it again whenever it is lost, until it is cancelled."""
        while True:
            if self.is_open:
                await self.until_lost()
            for pair in self.pairs:
                await pair.leave()
            self.close()
            await self._open_again()
            if not self.is_open:  # it is there, and of no use
                await asyncio.sleep(PAUSE)

    async def until_lost(self) -> None:
        """Waits until it is lost."""
        await self._lost.wait()

    def negotiate(self, features: int) -> None:
        """Makes packets as the driver has agreed on, from now on."""
        self._agreed = features
        mergeable = bool(features & mask(Feature.MRG_RXBUF))
        header = HEADER if mergeable or features & VERSION_1 else SHORT_HEADER
        for pair in self.pairs:
            pair.transmit.header = header
            pair.receive.negotiate(header, mergeable=mergeable)
            pair.receive.offload(
                checks=bool(features & mask(Feature.GUEST_CSUM)),
                merges_v4=bool(features & mask(Feature.GUEST_TSO4)),
                merges_v6=bool(features & mask(Feature.GUEST_TSO6)),
            )

    def grants(self) -> Grants:
        """What opening it again needs."""
        return Grants()

    def end(self) -> None:
        """Closes all that it has: the program ends."""
        self.close()

    def close(self) -> None:
        """Closes the fds, which nobody uses any more."""
        for fd in self._fds:
            fd.close()
        self._fds = []

    async def _open_again(self) -> None:
        while True:
            try:
                self.take(self.open())
            except OSError as error:
                if error.errno not in (self._said, *NOBODY_THERE):
                    self._say(error)
                await asyncio.sleep(PAUSE)
            else:
                log.info("%s is there", self.name)
                self.changed()
                return

    def _say(self, error: OSError) -> None:
        """Logs why it cannot be opened; the same is not said again."""
        self._said = error.errno or 0
        hint = f": {self.no_access}" if error.errno == errno.EACCES and self.no_access else ""
        log.warning("%s: %s%s; it is tried again", self.name, error.strerror, hint)
