"""The messages about the addresses that a driver behind an IOMMU uses: I/O virtual addresses.

We ask the front-end for each translation that a ring lacks. It sends the translation, or refuses. Until then
the ring stands still, and everything else goes on. When the guest changes the IOMMU's tables, the front-end
takes translations back, and waits until no request uses them any more (vhost-user, "IOMMU support").
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.ring import DeviceIotlb
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.messages import BACKEND_IOTLB_MSG, IOTLB_MSG, Iotlb, IotlbType
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.link import Link
from vhostd.virtio.state import VirtioState
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.calls import Call, answer
from vhostd.wire.channel import Channel
from vhostd.wire.rows import U64

log = logging.getLogger(__name__)

# Seconds that an invalidation waits for requests in flight. The front-end, and often its guest, stands still.
PATIENCE = 10.0
END = (1 << 64) - 1

Miss = tuple[int, int]  # an address, and for which access: 1 to read, 2 to write, 3 for both


class Translation:
    """Keeps the translations of a session, and asks the front-end for those that are missing."""

    def __init__(
        self, state: VirtioState, vrings: Sequence[Vring], memory: Memory, channel: Channel, link: Link
    ) -> None:
        self._state = state
        self._vrings = vrings
        self._memory = memory
        self._channel = channel
        self._link = link
        self._iotlb = DeviceIotlb()
        self._iotlb.when_missed(self._ask)
        self._asked: set[Miss] = set()  # for which no answer has come yet
        self._tasks: set[asyncio.Task[object]] = set()
        self.calls: tuple[Call, ...] = (answer(IOTLB_MSG, self.iotlb_msg),)

    def update(self) -> None:
        """Begins or ends to translate, as the features say. No ring may run if they have changed."""
        wanted = self._state.features >> Feature.ACCESS_PLATFORM & 1
        if wanted != (self._memory.map.iotlb is not None):
            self._iotlb.clear()
            self._memory.translate(self._iotlb if wanted else None)

    def forget(self) -> None:
        """Forgets all translations, since no ring runs. The front-end takes none back until one does."""
        self._iotlb.clear()
        self._asked = set()  # an answer that comes now is for nobody

    async def close(self) -> None:
        """Asks for nothing any more."""
        self._iotlb.when_missed(None)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def iotlb_msg(self, message: Iotlb) -> U64:
        if self._memory.map.iotlb is None:
            raise RefusedRequest("IOTLB_MSG without ACCESS_PLATFORM negotiated")
        if message.type == IotlbType.UPDATE:
            self._translate(message)
        elif message.type == IotlbType.INVALIDATE:
            await self._invalidate(message)
        else:
            raise RefusedRequest(f"IOTLB_MSG of type {message.type}")
        return U64(0)

    # --- Translations -----------------------------------------------------------------------------------

    def _translate(self, message: Iotlb) -> None:
        first, last = message.iova, message.iova + message.size - 1
        self._iotlb.update(first, message.size, message.user_addr, message.permission)
        awaited = {vring.awaited for vring in self._vrings if vring.awaited is not None}
        for miss in self._asked | awaited:
            if first <= miss[0] <= last:
                self._asked.discard(miss)
                self._answered(miss)
        for vring in self._vrings:
            vring.seek()

    async def _invalidate(self, message: Iotlb) -> None:
        """Takes translations back. A size of 0 goes to the end: QEMU adds 1 to a mask, and gets 0 for all."""
        first = message.iova
        last = min(first + message.size - 1, END) if message.size else END
        self._iotlb.invalidate(first, last)
        lost = [vring for vring in self._vrings if vring.lies_in(first, last)]
        for vring in lost:
            vring.hold()
        if self._state.uses(first, last) or any(vring.runner.in_flight for vring in lost):
            await self._channel.outlast(self._let_go(first, last, lost), "requests were in flight")

    async def _let_go(self, first: int, last: int, lost: Iterable[Vring]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._state.let_go(first, last)
                for vring in lost:
                    await vring.let_go()
        except TimeoutError:
            raise RefusedRequest(
                f"requests still use I/O virtual addresses from {first:#x} to {last:#x} after {PATIENCE} s"
            ) from None

    # --- Misses -----------------------------------------------------------------------------------------

    def _ask(self, misses: Iterable[Miss]) -> None:
        """Asks the front-end for translations that it has not been asked for yet, in this order."""
        for miss in misses:
            if miss not in self._asked:
                self._asked.add(miss)
                self._send(self._miss(miss, self._asked))

    async def _miss(self, miss: Miss, asked: set[Miss]) -> None:
        """Asks for one. If it is refused, no translation comes; else it has come, or comes soon."""
        refused = not await self._tell(IotlbType.MISS, *miss)
        if miss in asked:
            asked.remove(miss)
            if refused:
                self._answered(miss)

    def _answered(self, miss: Miss) -> None:
        """The front-end has sent a translation, or refused one. A ring breaks if it has no access now."""
        iova, access = miss
        refused = not self._iotlb.allows(iova, access)
        if refused and self._iotlb.covers(iova):
            self._send(self._tell(IotlbType.ACCESS_FAIL, iova, access))
        for vring in self._vrings:
            vring.answered(miss, refused=refused)

    async def _tell(self, kind: int, iova: int, access: int) -> bool:
        """Tells the front-end of what has no translation; False if it refuses to hear of it."""
        try:
            await self._link.ask(BACKEND_IOTLB_MSG, Iotlb(iova, 0, 0, access, kind))
        except RefusedRequest as error:
            log.debug("I/O virtual address %#x: %s", iova, error)
            return False
        except (ConnectionError, MalformedMessage) as error:
            log.debug("I/O virtual address %#x: %s", iova, error)
        return True

    def _send(self, telling: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(telling, name="I/O virtual address")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
