"""A guest that runs here before all of its memory has come, which a scripted front-end brings late."""

import asyncio
import errno
import os
import random
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Run
from tests.sessions import Echo, closed, connected, refused
from vhostd.frontend import Frontend, Iommu, Postcopy, Queue, SharedMemory, raw_message
from vhostd.frontend.memory import PAGE
from vhostd.frontend.raw import NEED_REPLY, VERSION
from vhostd.vhost_user import postcopy
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_VRING_BASE,
    POSTCOPY_ADVISE,
    POSTCOPY_END,
    POSTCOPY_LISTEN,
    REM_MEM_REG,
    SET_MEM_TABLE,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.vhost_user.offer import CHOICES, Offer
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

ELSEWHERE = {"guest_addr": 0x9000_0000, "user_addr": 0x6F00_0000_0000}
PACKED, SPLIT = True, False
BY_DEFAULT = [choice.name for choice in CHOICES.values() if choice.by_default]
OFFER = Offer([*BY_DEFAULT, "pagefault", "access-platform"])
IOMMU = mask(Feature.VERSION_1, Feature.PROTOCOL_FEATURES, Feature.ACCESS_PLATFORM)
formats = pytest.mark.parametrize("packed", [SPLIT, PACKED], ids=["split", "packed"])


class Machine(NamedTuple):
    frontend: Frontend
    memory: SharedMemory
    postcopy: Postcopy

    async def begin(self) -> None:
        """Has the guest begin to arrive."""
        await self.postcopy.advise()
        await self.postcopy.listen()
        await self.postcopy.share(self.memory)

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
        async with connected(device, OFFER) as frontend:
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
def test_a_ring_waits_for_its_page_and_nobody_else_does(
    *, missing: str, packed: bool, run_async: Run
) -> None:
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
def test_what_was_there_once_is_not_touched_again_by_a_thread(*, packed: bool, run_async: Run) -> None:
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
def test_a_ring_whose_own_pages_are_missing_starts_late(*, part: str, packed: bool, run_async: Run) -> None:
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
                await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
                assert await used(queue) == 5
                await held(fast, device)

    run_async(main)


def test_an_indirect_table_may_be_missing(run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo()) as machine:
            frontend, memory, incoming = machine
            table, text = machine.pages(PAGE), machine.pages(PAGE)
            memory.map.write(text, b"echo")
            with closing(await frontend.start(memory)) as queue:
                queue.driver.add([(text, 4, False), (text + 8, 4, True)], indirect=table)
                for addr in (table, text):
                    incoming.take(memory, addr, PAGE)
                queue.kick()
                assert await used(queue) == 4
                assert incoming.faults == [table, text]
                assert memory.map.read(text + 8, 4) == b"echo"

    run_async(main)


@formats
def test_a_chain_of_very_many_missing_pieces(*, packed: bool, run_async: Run) -> None:
    """They are more than one look tells of."""

    async def main() -> None:
        async with arriving(Echo(), packed=packed, size=4 << 20) as machine:
            frontend, memory, incoming = machine
            with closing(await frontend.start(memory, size=512)) as queue:
                pages = [machine.pages(PAGE) for _ in range(400)]
                text = os.urandom(200 * 4).replace(b"!", b".")
                for number, page in enumerate(pages):
                    memory.map.write(page + 100, text[4 * number : 4 * number + 4].ljust(4))
                queue.driver.add([(page + 100, 4, number >= 200) for number, page in enumerate(pages)])
                for page in pages:
                    incoming.take(memory, page, PAGE)
                queue.kick()
                assert await used(queue) == len(text)
                assert sorted(incoming.faults) == pages
                assert b"".join(memory.map.read(page + 100, 4) for page in pages[200:]) == text

    run_async(main)


@formats
def test_all_data_is_right_whatever_comes_late(*, packed: bool, run_async: Run) -> None:
    async def main() -> None:
        chance = random.Random(16)
        async with arriving(Echo(), packed=packed, size=8 << 20) as machine:
            frontend, memory, incoming = machine
            with closing(await frontend.start(memory)) as queue:
                for _ in range(100):
                    size = chance.randrange(1, 5 * PAGE)
                    source, target = machine.pages(size), machine.pages(size)
                    memory.map.write(source, text := chance.randbytes(size).replace(b"!", b"."))
                    for addr in (source, target):
                        for page in range(addr, addr + size, PAGE):
                            if chance.random() < 0.5:
                                incoming.take(memory, page, 1)
                    queue.driver.add([(source, size, False), (target, size, True)])
                    queue.kick()
                    assert await used(queue) == size
                    assert memory.map.read(target, size) == text

    run_async(main)


@formats
def test_a_ring_that_waits_can_be_stopped(*, packed: bool, run_async: Run) -> None:
    """When it starts again it waits for the same page."""

    async def main() -> None:
        async with arriving(Echo(), packed=packed) as machine:
            frontend, memory, incoming = machine
            page = machine.pages(PAGE)
            memory.map.write(page, b"echo")
            with closing(await frontend.start(memory)) as queue:
                incoming.take(memory, page, PAGE)
                incoming.brings = False
                queue.driver.add([(page, 4, False), (page + 8, 4, True)])
                queue.kick()
                await machine.faulted()
                base = await frontend.stop(queue)
                await frontend.set_up(queue, base)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                await machine.answers()
                incoming.bring()
                assert await used(queue) == 4
                assert incoming.faults == [page]  # one thread waits for it

    run_async(main)


def test_nothing_is_touched_before_the_front_end_has_acked(run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo(), ack=False) as machine:
            frontend, memory, incoming = machine
            with closing(await frontend.start(memory)) as queue:
                queue.add(b"echo", 4)
                queue.kick()
                incoming.take(memory, memory.guest_addr, 1)  # the ring's first page
                await machine.answers()
                assert incoming.faults == []
                assert machine.is_hole(memory.guest_addr)
                await incoming.ack()
                await machine.faulted()
                assert (await queue.used())[1] == b"echo"

    run_async(main)


def test_memory_may_come_and_go_meanwhile(run_async: Run) -> None:
    async def main() -> None:
        more = SharedMemory(1 << 16, guest_addr=0x9000_0000, user_addr=0x6F00_0000_0000)
        async with arriving(Echo()) as machine:
            frontend, memory, incoming = machine
            with closing(await frontend.start(memory)) as queue:
                assert await queue.request(b"here", 4) == b"here"
                await incoming.add(more)
                more.map.write(0x9000_0000, b"elsewhere")
                incoming.take(more, 0x9000_0000, PAGE)
                queue.driver.add([(0x9000_0000, 9, False), (0x9000_0100, 9, True)])
                queue.kick()
                assert await used(queue) == 9
                assert more.map.read(0x9000_0100, 9) == b"elsewhere"
                assert incoming.faults == [0x9000_0000]
                await frontend.remove(more)
                assert await queue.request(b"here", 4) == b"here"
                await incoming.share(memory)
                assert await queue.request(b"here", 4) == b"here"
        more.close()

    run_async(main)


def test_a_ring_waits_while_its_memory_is_mapped_anew(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with arriving(device) as machine:
            frontend, memory, incoming = machine
            page = machine.pages(PAGE)
            memory.map.write(page, b"echo")
            with (
                closing(await frontend.start(memory)) as queue,
                closing(await frontend.start(memory, 1)) as fast,
            ):
                fast.add(b"x", 4)
                fast.kick()
                await device.holding.wait()
                incoming.take(memory, page, PAGE)
                incoming.brings = False
                queue.driver.add([(page, 4, False), (page + 8, 4, True)])
                queue.kick()
                await machine.faulted()
                await incoming.share(memory)
                device.release()
                assert (await fast.used())[1] == b"held"
                await machine.faulted()
                assert incoming.faults == [page, page]
                incoming.bring()
                assert await used(queue) == 4

    run_async(main)


@formats
def test_with_its_end_all_pages_are_there(*, packed: bool, run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo(), packed=packed) as machine:
            frontend, memory, incoming = machine
            page = machine.pages(PAGE)
            memory.map.write(page, b"echo")
            with closing(await frontend.start(memory)) as queue:
                incoming.take(memory, page, PAGE)
                incoming.brings = False
                queue.driver.add([(page, 4, False), (page + 8, 4, True)])
                queue.kick()
                await machine.faulted()
                await incoming.end()
                assert await used(queue) == 4
                await frontend.share(memory)  # is acked as ever
                assert await queue.request(b"here", 4) == b"here"
                await frontend.call(POSTCOPY_END, Empty())

    run_async(main)


def test_a_page_that_never_came_is_zero_after_the_end(run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo()) as machine:
            frontend, memory, incoming = machine
            page = machine.pages(PAGE)
            with closing(await frontend.start(memory)) as queue:
                incoming.take(memory, page, PAGE)
                incoming.brings = False
                queue.driver.add([(page, 4, False), (page + 8, 4, True)])
                queue.kick()
                await machine.faulted()
                await frontend.call(POSTCOPY_END, Empty())
                assert await used(queue) == 4
                assert memory.map.read(page + 8, 4) == bytes(4)

    run_async(main)


@pytest.mark.parametrize("keeps", [True, False], ids=["keeps the userfaultfd", "closes it"])
def test_the_front_end_may_go_in_the_middle(*, keeps: bool, run_async: Run) -> None:
    """The session ends, and puts nothing where a page is missing: another program may serve the guest."""

    async def main() -> None:
        with closing(SharedMemory(1 << 20)) as memory:
            async with connected(Echo(), OFFER) as frontend:
                await frontend.negotiate()
                machine = Machine(frontend, memory, Postcopy(frontend))
                await machine.begin()
                page = machine.pages(2 * PAGE)
                with closing(await frontend.start(memory)) as queue:
                    machine.postcopy.take(memory, page, 2 * PAGE)
                    machine.postcopy.brings = False
                    queue.driver.add([(page, 2 * PAGE, False)])
                    queue.kick()
                    await machine.faulted()
                if not keeps:
                    machine.postcopy.close()
            while any(thread.name == "postcopy" for thread in threading.enumerate()):
                await asyncio.sleep(0)
            assert machine.is_hole(page)
            assert machine.is_hole(page + PAGE)
            machine.postcopy.close()

    run_async(main)


@formats
def test_a_driver_behind_an_iommu_waits_for_translations_and_for_pages(
    *, packed: bool, run_async: Run
) -> None:
    async def main() -> None:
        async with connected(Echo(), OFFER) as frontend:
            ring = mask(Feature.RING_PACKED) if packed else 0
            await frontend.negotiate(IOMMU | ring, packed=packed)
            with closing(SharedMemory(1 << 20)) as memory:
                machine = Machine(frontend, memory, Postcopy(frontend))
                iommu = Iommu(frontend)
                await iommu.connect()
                iommu.map(memory.guest_addr, memory.user_addr, memory.size)
                await machine.begin()
                page = machine.pages(2 * PAGE)
                memory.map.write(page, text := os.urandom(PAGE).replace(b"!", b"."))
                with closing(await frontend.start(memory)) as queue:
                    queue.driver.add([(page, PAGE, False), (page + PAGE, PAGE, True)])
                    machine.postcopy.take(memory, memory.guest_addr, page + 2 * PAGE - memory.guest_addr)
                    queue.kick()
                    while len(machine.postcopy.faults) < 2:
                        await machine.faulted()
                    assert await used(queue) == PAGE
                    assert memory.map.read(page + PAGE, PAGE) == text
                await iommu.close()
                machine.postcopy.close()

    run_async(main)


async def raw(frontend: Frontend, request: int, payload: bytes, *fds: Fd) -> None:
    """Sends a message as QEMU does here: without asking for an ack."""
    await frontend.send_raw(raw_message(request, payload), *fds)


@pytest.mark.parametrize("slots", [True, False], ids=["ADD_MEM_REG", "SET_MEM_TABLE"])
def test_the_conversation_of_qemu(*, slots: bool, run_async: Run) -> None:
    """Its ack has the number of the last message, and 8 zeros; there is none for it."""

    async def main() -> None:
        async with connected(Echo(), OFFER) as frontend:
            await frontend.negotiate()
            incoming, memory = Postcopy(frontend), SharedMemory(1 << 16)
            with closing(incoming), closing(memory):
                await incoming.advise()
                await incoming.listen()
                region = memory.region.pack()
                number = ADD_MEM_REG.request if slots else SET_MEM_TABLE.request
                sent = (bytes(8) if slots else struct.pack("=II", 1, 0)) + region
                await raw(frontend, number, sent, memory.fd)
                message = await frontend.channel.receive()
                assert message is not None
                assert message.request == number
                assert len(message.payload) == len(sent)
                assert message.payload[:24] == sent[:24]  # guest address and size
                assert message.payload[32:] == sent[32:]  # offset
                await raw(frontend, number, bytes(8))
                await raw(frontend, REM_MEM_REG.request, sent if slots else bytes(8))
                await raw(frontend, REM_MEM_REG.request, bytes(8))
                await raw(frontend, 0, bytes(8))  # if neither came or went any memory
                await frontend.call(GET_FEATURES, Empty())
                await frontend.call(POSTCOPY_END, Empty())

    run_async(main)


def test_messages_out_of_turn_are_refused(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo(), OFFER) as frontend:
            await frontend.negotiate()
            memory, incoming = SharedMemory(1 << 16), Postcopy(frontend)
            with closing(memory), closing(incoming):
                assert (await frontend.call(POSTCOPY_END, Empty())).value == 0
                await refused(incoming.listen())  # nobody has advised it
                await incoming.advise()
                incoming.close()
                await incoming.advise()  # once more
                await frontend.share(memory)
                await refused(incoming.listen())  # the pages may have been touched
                await frontend.call(SET_MEM_TABLE, MemoryTable(()))
                await incoming.listen()
                await refused(incoming.listen())
                await incoming.ack()  # of nothing
                assert (await frontend.call(POSTCOPY_END, Empty())).value == 0
                assert (await frontend.call(POSTCOPY_END, Empty())).value == 0
                await refused(incoming.listen())
                await frontend.share(memory)
                with closing(await frontend.start(memory)) as queue:
                    assert await queue.request(b"here", 4) == b"here"

    run_async(main)


@pytest.mark.parametrize("seed", range(20))
def test_messages_in_any_order_do_no_harm(
    seed: int, run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """A ring runs now and then. The session goes on, or is closed, but not for a fault of ours."""
    chance = random.Random(seed)

    async def main() -> None:
        with closing(SharedMemory(1 << 16)) as memory, closing(SharedMemory(1 << 16, **ELSEWHERE)) as more:
            async with connected(Echo(), OFFER) as frontend:
                await frontend.negotiate()
                with closing(Queue(memory, 0, 16, frontend.features)) as queue:
                    queue.add(b"echo", 4)
                    setting = [(SET_VRING_NUM, VringState(0, 16)), (SET_VRING_BASE, VringState(0, 0))]
                    table, region = MemoryTable((memory.region,)), bytes(8) + more.region.pack()
                    messages: list[tuple[int, bytes, tuple[Fd, ...]]] = [
                        *((row.request, payload.pack(), ()) for row, payload in setting),
                        (SET_VRING_ADDR.request, address(queue).pack(), ()),
                        (SET_VRING_KICK.request, bytes(8), (queue.kick_fd,)),
                        (SET_VRING_ENABLE.request, VringState(0, 1).pack(), ()),
                        (GET_VRING_BASE.request, bytes(8), ()),
                        (POSTCOPY_LISTEN.request, b"", ()),
                        (POSTCOPY_END.request, b"", ()),
                        (SET_MEM_TABLE.request, table.pack(), (memory.fd,)),
                        (SET_MEM_TABLE.request, bytes(8), ()),
                        (ADD_MEM_REG.request, region, (more.fd,)),
                        (REM_MEM_REG.request, region, ()),
                        (REM_MEM_REG.request, bytes(8), ()),
                    ]
                    with suppress(ConnectionError):
                        begin = [(each.request, b"", ()) for each in (POSTCOPY_ADVISE, POSTCOPY_LISTEN)]
                        for number, payload, fds in [*begin, *chance.choices(messages, k=60)]:
                            flags = VERSION | NEED_REPLY
                            await frontend.send_raw(raw_message(number, payload, flags=flags), *fds)
                            await asyncio.sleep(0)

    run_async(main)
    assert "fault of this program" not in caplog.text
    assert "Traceback" not in caplog.text


def address(queue: Queue) -> VringAddr:
    """Where the ring lies, as the front-end tells it."""
    memory, driver = queue.memory, queue.driver
    desc, used, avail = map(memory.user, (driver.desc_addr, driver.used_addr, driver.avail_addr))
    return VringAddr(queue.index, 0, desc, used, avail, 0)


def test_to_advise_it_in_its_middle_ends_the_connection(run_async: Run) -> None:
    """The message has no answer that says no."""

    async def main() -> None:
        async with arriving(Echo()) as machine:
            with pytest.raises(ConnectionResetError):
                await machine.frontend.call_for_fds(POSTCOPY_ADVISE, Empty())

    run_async(main)


@pytest.mark.parametrize("payload", [struct.pack("=Q", 1), bytes(7), bytes(9)], ids=["1", "7", "9"])
def test_an_ack_that_is_none_ends_the_connection(payload: bytes, run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo(), ack=False) as machine:
            await raw(machine.frontend, ADD_MEM_REG.request, payload)
            await closed(machine.frontend)

    run_async(main)


def test_without_postcopy_there_is_no_region_of_nothing(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo(), OFFER) as frontend:
            await frontend.negotiate()
            await raw(frontend, ADD_MEM_REG.request, bytes(8))
            await closed(frontend)

    run_async(main)


def test_memory_whose_pages_cannot_be_awaited_is_refused(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with arriving(Echo()) as machine:
            with (tmp_path / "memory").open("w+b") as file, Fd(os.dup(file.fileno())) as fd:
                file.truncate(PAGE)
                table = MemoryTable((MemoryRegion(0, PAGE, 0, 0),))
                await refused(machine.frontend.call(SET_MEM_TABLE, table, fd))
                await machine.answers()

    run_async(main)


def test_a_device_that_keeps_memory_does_not_offer_it(run_async: Run) -> None:
    class Keeper(Echo):
        keeps_memory = True

    async def main() -> None:
        async with connected(Keeper(), OFFER) as frontend:
            offered = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert not offered & mask(ProtocolFeature.PAGEFAULT)

    run_async(main)


def test_it_is_offered_where_the_kernel_allows_it(
    run_async: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> int:
        raise PermissionError(errno.EPERM, "userfaultfd: Operation not permitted")

    async def main() -> None:
        async with connected(Echo(), OFFER) as frontend:
            offered = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert offered & mask(ProtocolFeature.PAGEFAULT)
        monkeypatch.setattr(postcopy, "open_userfaultfd", refuse)
        async with connected(Echo(), OFFER) as frontend:
            offered = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert not offered & mask(ProtocolFeature.PAGEFAULT)

    run_async(main)
    assert "postcopy is not offered: userfaultfd: Operation not permitted" in caplog.text
