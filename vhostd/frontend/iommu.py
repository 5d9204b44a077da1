"""An IOMMU made by the front-end: what the driver names are I/O virtual addresses."""

import asyncio
from collections.abc import Sequence

from vhostd.errors import RefusedRequest
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.requests import BackendRequests
from vhostd.vhost_user.messages import BACKEND_IOTLB_MSG, IOTLB_MSG, Iotlb, IotlbType
from vhostd.wire.calls import Call, answer

PAGE = 4096
READ, WRITE, BOTH = 1, 2, 3


class Iommu:
    """Answers the back-end's misses from a page table, as QEMU does: first the translation, then the ack.

    `pages` is the page table: the user address and the permission of each page, by its number. `misses` and
    `failures` are the addresses and accesses that it was told of, in this order. It answers while `answers`
    is set.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.misses: list[tuple[int, int]] = []
        self.failures: list[tuple[int, int]] = []
        self.pages: dict[int, tuple[int, int]] = {}
        self.answers = asyncio.Event()
        self.answers.set()
        self._frontend = frontend
        self._requests = BackendRequests(frontend, self.calls)

    @property
    def calls(self) -> Sequence[Call]:
        """For a `BackendRequests` that answers others as well, in place of `connect` and `close`."""
        return [answer(BACKEND_IOTLB_MSG, self._hear)]

    async def connect(self) -> None:
        """Takes the back-end's requests from now on, until `close`."""
        await self._requests.connect()

    def map(self, iova: int, user_addr: int, size: int, permission: int = BOTH) -> None:
        """Lets the device at so many bytes. The addresses and the size are multiples of a page."""
        for at in range(0, size, PAGE):
            self.pages[(iova + at) // PAGE] = (user_addr + at, permission)

    async def unmap(self, iova: int, size: int) -> None:
        """Does so no more, when the back-end has let go of them. RefusedRequest if it has not."""
        for page in range(iova // PAGE, (iova + size) // PAGE):
            self.pages.pop(page, None)
        await self.invalidate(iova, size)

    async def invalidate(self, iova: int, size: int) -> None:
        """Has the back-end forget what it was told of the addresses."""
        await self._frontend.call(IOTLB_MSG, Iotlb(iova, size, 0, 0, IotlbType.INVALIDATE))

    async def update(self, iova: int, size: int, user_addr: int, permission: int = BOTH) -> None:
        """Tells the back-end of a translation that it may not have asked for."""
        await self._frontend.call(IOTLB_MSG, Iotlb(iova, size, user_addr, permission, IotlbType.UPDATE))

    async def close(self) -> None:
        """Answers nothing any more."""
        await self._requests.close()

    async def _hear(self, message: Iotlb) -> None:
        if message.type == IotlbType.ACCESS_FAIL:
            self.failures.append((message.iova, message.permission))
            raise RefusedRequest("an access that was not allowed")
        self.misses.append((message.iova, message.permission))
        await self.answers.wait()
        if (page := self.pages.get(message.iova // PAGE)) is None:
            raise RefusedRequest(f"no page at {message.iova:#x}")
        await self.update(message.iova // PAGE * PAGE, PAGE, *page)
