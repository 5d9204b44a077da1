"""A guest that runs here before all of its memory has come, which a scripted front-end brings late."""

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import NamedTuple

import pytest

from tests.conftest import Run
from tests.sessions import Echo, closed, connected, refused
from vhostd.errors import MalformedMessage
from vhostd.frontend import Frontend, Iommu, Postcopy, Queue, SharedMemory
from vhostd.frontend.memory import PAGE
from vhostd.ring import Chain
from vhostd.vhost_user import postcopy
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    FRONT_END,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    POSTCOPY_ADVISE,
    POSTCOPY_END,
    POSTCOPY_LISTEN,
    SET_MEM_TABLE,
    SET_VRING_KICK,
    MemoryTable,
    ProtocolFeature,
    VringFd,
)
from vhostd.vhost_user.offer import CHOICES, Offer
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

PACKED, SPLIT = True, False
formats = pytest.mark.parametrize("packed", [SPLIT, PACKED], ids=["split", "packed"])


class Machine(NamedTuple):
    frontend: Frontend
    memory: SharedMemory
    postcopy: Postcopy

    async def answers(self) -> None:
        """Sees that the back-end answers messages."""
        for _ in range(3):
            await self.frontend.call(GET_FEATURES, Empty())

    async def faulted(self) -> None:
        """Waits until the back-end touches a missing page."""
        await self.postcopy.faulted.wait()
        self.postcopy.faulted.clear()

    def pages(self, size: int) -> int:
        """The guest address of pages of their own."""
        return self.memory.allocate(size, PAGE)

    def is_hole(self, guest_addr: int) -> bool:
        """Whether nobody has put anything where a page is missing."""
        offset = guest_addr - self.memory.guest_addr
        return os.lseek(self.memory.fd.fileno(), offset, os.SEEK_HOLE) == offset


@asynccontextmanager
async def arriving(
    device: Device, *, packed: bool = False, size: int = 1 << 20, ack: bool = True
) -> AsyncIterator[Machine]:
    """A front-end whose guest arrives, with a memory shared."""
    memory = SharedMemory(size)
    try:
        async with connected(device) as frontend:
            await frontend.negotiate(packed=packed)
            incoming = Postcopy(frontend)
            with closing(incoming):
                await incoming.advise()
                await incoming.listen()
                await incoming.share(memory, ack=ack)
                yield Machine(frontend, memory, incoming)
    finally:
        memory.close()


async def used(queue: Queue) -> int:
    """The length of the next used element."""
    while (element := queue.driver.used()) is None:
        await asyncio.sleep(0)
    return int(element[1])


async def held(queue: Queue, device: Echo) -> None:
    """Has the second ring do its work."""
    queue.add(b"x", 4)
    queue.kick()
    await device.holding.wait()
    device.release()
    assert (await queue.used())[1] == b"held"


@formats
@pytest.mark.parametrize("missing", ["readable", "writable", "both"])
def test_a_ring_waits_for_its_page_and_nobody_else_does(missing: str, packed: bool, run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with arriving(device, packed=packed) as machine:
            frontend, memory, incoming = machine
            source, target = machine.pages(2 * PAGE), machine.pages(2 * PAGE)
            memory.map.write(source, text := os.urandom(2 * PAGE).replace(b"!", b"."))
            memory.map.write(target, bytes(2 * PAGE))
            with (
                closing(await frontend.start(memory)) as slow,
                closing(await frontend.start(memory, 1)) as fast,
            ):
                await held(fast, device)
                assert await slow.request(b"echo", 4) == b"echo"
                incoming.brings = False
                for addr, name in ((source, "readable"), (target, "writable")):
                    if missing in (name, "both"):
                        incoming.take(memory, addr, 2 * PAGE)
                slow.driver.add([(source, 2 * PAGE, False), (target, 2 * PAGE, True)])
                slow.kick()
                await machine.faulted()
                for _ in range(20):
                    await held(fast, device)
                await machine.answers()
                assert slow.driver.used() is None
                assert incoming.faults[-1] in (source, target)
                incoming.bring()
                assert await used(slow) == 2 * PAGE
                assert memory.map.read(target, 2 * PAGE) == text
                assert await slow.request(b"echo", 4) == b"echo"

    run_async(main)


@formats
def test_what_was_there_once_is_not_touched_again_by_a_thread(packed: bool, run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo(), packed=packed) as machine:
            frontend, memory, incoming = machine
            with closing(await frontend.start(memory)) as queue:
                for _ in range(100):
                    assert await queue.request(b"echo", 4) == b"echo"
                assert incoming.faults == []  # the driver has touched all that the device needs

    run_async(main)


@formats
@pytest.mark.parametrize("part", ["desc_addr", "avail_addr", "used_addr"])
def test_a_ring_whose_own_pages_are_missing_starts_late(part: str, packed: bool, run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with arriving(device, packed=packed) as machine:
            frontend, memory, incoming = machine
            with (
                closing(Queue(memory, 0, 256, frontend.features)) as queue,
                closing(await frontend.start(memory, 1)) as fast,
            ):
                queue.add(b"early", 5)
                incoming.take(memory, getattr(queue.driver, part), 1)
                incoming.brings = False
                await frontend.set_up(queue, queue.driver.base)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                await machine.faulted()
                await held(fast, device)
                await machine.answers()
                incoming.bring()
                await machine.answers()

    run_async(main)


def test_an_indirect_table_may_be_missing(run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo()) as machine:
            frontend, memory, incoming = machine
            table, text = machine.pages(PAGE), machine.pages(PAGE)
            memory.map.write(text, b"echo")
            memory.map.write(table, struct.pack("<QIHH", text, 4, 1, 1) + struct.pack("<QIHH", text + 8, 4, 2, 0))
            with closing(await frontend.start(memory)) as queue:
                for addr in (table, text):
                    incoming.take(memory, addr, PAGE)
                queue.driver.add([(table, 32)])
                queue.kick()
                assert await used(queue) == 4
                assert incoming.faults == [table, text]
                assert memory.map.read(text + 8, 4) == b"echo"

    run_async(main)
