"""An IOMMU made by the front-end: what the driver names are I/O virtual addresses."""

import asyncio
import socket
from contextlib import suppress

from vhostd.frontend.frontend import Frontend
from vhostd.vhost_user.messages import (
    BACK_END,
    BACKEND_IOTLB_MSG,
    IOTLB_MSG,
    SET_BACKEND_REQ_FD,
    Iotlb,
    IotlbType,
)
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty

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
        self._channel: Channel | None = None
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Takes the back-end's requests from now on, until `close`."""
        ours, theirs = socket.socketpair()
        with Fd(theirs.detach()) as fd:
            await self._frontend.call(SET_BACKEND_REQ_FD, Empty(), fd)
        self._channel = Channel(ours, BACK_END)
        self._task = asyncio.create_task(self._answer(self._channel), name="IOMMU")

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
        if self._task is not None and self._channel is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._channel.close()

    async def _answer(self, channel: Channel) -> None:
        with suppress(ConnectionError):
            while (message := await channel.receive()) is not None:
                if message.request == BACKEND_IOTLB_MSG.request:
                    told = await self._hear(Iotlb.unpack(message.payload))
                    if message.needs_reply:
                        await channel.send(BACK_END.encode(message.request, U64(not told), reply=True))

    async def _hear(self, message: Iotlb) -> bool:
        """Does what the back-end asks for; whether it could."""
        if message.type == IotlbType.ACCESS_FAIL:
            self.failures.append((message.iova, message.permission))
            return False
        self.misses.append((message.iova, message.permission))
        await self.answers.wait()
        if (page := self.pages.get(message.iova // PAGE)) is None:
            return False
        await self.update(message.iova // PAGE * PAGE, PAGE, *page)
        return True
