"""I/O virtual addresses: a device behind an IOMMU, which a scripted front-end has."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import NamedTuple

import pytest

from tests.conftest import Run
from tests.sessions import Echo, refused
from tests.vhost_user.test_migration import SharedLog, written_by
from vhostd.errors import GuestError
from vhostd.frontend import Frontend, Iommu, Queue, SharedMemory
from vhostd.vhost_user import translation
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    FRONT_END,
    GET_FEATURES,
    IOTLB_MSG,
    SET_FEATURES,
    SET_LOG_BASE,
    SET_MEM_TABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    Iotlb,
    IotlbType,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringFd,
    VringState,
)
from vhostd.vhost_user.offer import CHOICES, Offer
from vhostd.vhost_user.session import Session
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.channel import Channel
from vhostd.wire.rows import U64, Empty

PAGE = 4096
OFFER = Offer([*(choice.name for choice in CHOICES.values() if choice.by_default), "access-platform"])
READ, WRITE, BOTH = 1, 2, 3
ALL = (1 << 64) - 1
PHYSICAL = 0x5000_0000  # where the guest has its memory; its driver uses the addresses of SharedMemory
FEATURES = mask(Feature.VERSION_1, Feature.INDIRECT_DESC, Feature.PROTOCOL_FEATURES, Feature.ACCESS_PLATFORM)

formats = pytest.mark.parametrize(
    "features", [FEATURES, FEATURES | mask(Feature.RING_PACKED)], ids=["split", "packed"]
)


class Machine(NamedTuple):
    frontend: Frontend
    memory: SharedMemory
    iommu: Iommu

    def map_all(self, permission: int = BOTH) -> None:
        """Lets the device at all memory."""
        self.iommu.map(self.memory.guest_addr, self.memory.user_addr, self.memory.size, permission)

    def unmap_now(self, addr: int, size: int = PAGE) -> None:
        """Has no translation of these any more, without a word to the back-end."""
        for page in range(addr // PAGE, (addr + size - 1) // PAGE + 1):
            self.iommu.pages.pop(page, None)


@asynccontextmanager
async def translated(device: Device, features: int = FEATURES) -> AsyncIterator[Machine]:
    """A front-end with an IOMMU, connected to the device; the page table is empty."""
    ours, theirs = socket.socketpair()
    serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END), offer=OFFER).run())
    frontend, memory = Frontend(ours), SharedMemory(1 << 20)
    iommu = Iommu(frontend)
    try:
        await frontend.negotiate(features)
        await iommu.connect()
        region = MemoryRegion(PHYSICAL, memory.size, memory.user_addr, 0)
        await frontend.call(SET_MEM_TABLE, MemoryTable((region,)), memory.fd)
        yield Machine(frontend, memory, iommu)
    finally:
        await iommu.close()
        frontend.close()
        await serving
        memory.close()


async def echoed(queue: Queue, size: int = 100) -> None:
    text = b"e" + os.urandom(size - 1)
    assert await queue.request(text, size) == text


@formats
def test_what_is_needed_is_asked_for_and_no_more(features: int, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo(), features) as machine:
            machine.map_all()
            with closing(await machine.frontend.start(machine.memory)) as queue:
                await echoed(queue)
                ring = queue.driver.desc_addr // PAGE
                pages = {iova // PAGE for iova, _ in machine.iommu.misses}
                assert ring in pages
                assert len(pages) <= 3  # the ring, and the buffers, which lie in one or two pages
                before = len(machine.iommu.misses)
                for _ in range(100):
                    await echoed(queue)
                assert len(machine.iommu.misses) == before
                await echoed(queue, 5 * PAGE)
                assert {access for _, access in machine.iommu.misses[before:]} == {READ, WRITE}
                assert machine.iommu.failures == []

    run_async(main)


def test_a_ring_waits_for_its_translation_and_others_do_not(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with translated(device) as machine:
            machine.map_all()
            frontend, memory, iommu = machine
            with (
                closing(await frontend.start(memory)) as slow,
                closing(await frontend.start(memory, 1)) as fast,
            ):
                fast.add(b"x", 4)
                fast.kick()
                await echoed(slow)
                iommu.answers.clear()
                before, text = len(iommu.misses), b"e" * 2 * PAGE
                slow.add(text, len(text))
                slow.kick()
                while len(iommu.misses) == before:
                    await asyncio.sleep(0)
                fast.kick()
                await device.holding.wait()
                device.release()
                assert (await fast.used())[1] == b"held"
                assert slow.poll() is None
                iommu.answers.set()
                assert (await slow.used())[1] == text

    run_async(main)


@formats
def test_a_ring_starts_when_it_is_found(features: int, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo(), features) as machine:
            machine.map_all()
            frontend, memory, iommu = machine
            iommu.answers.clear()
            with closing(await frontend.start(memory)) as queue:
                queue.add(b"echo", 4)  # nobody kicks: a ring that starts is looked at
                await refused(frontend.call(SET_VRING_NUM, VringState(0, 8)))
                assert queue.poll() is None
                iommu.answers.set()
                assert (await queue.used())[1] == b"echo"

    run_async(main)


def test_a_ring_that_is_not_found_yet_can_be_stopped(run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            machine.map_all()
            frontend, memory, iommu = machine
            iommu.answers.clear()
            with closing(await frontend.start(memory)) as queue:
                assert await frontend.stop(queue) == 0
            iommu.answers.set()
            with closing(await frontend.start(memory)) as queue:
                await echoed(queue)

    run_async(main)


@pytest.mark.parametrize("which", ["desc_addr", "avail_addr", "used_addr"])
def test_a_ring_without_a_translation_is_broken(
    which: str, run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, _ = machine
            machine.map_all()
            with closing(Queue(memory, 0, 256, frontend.features)) as probe:
                machine.unmap_now(getattr(probe.driver, which))
            memory._next = memory.guest_addr
            with closing(await frontend.start(memory, size=256)) as queue:
                with pytest.raises(GuestError):
                    await queue.request(b"echo", 4)
                assert await frontend.stop(queue) == 0
                machine.map_all()  # the driver has seen to it, and begins anew
            memory._next = memory.guest_addr
            with closing(await frontend.start(memory, size=256)) as queue:
                await echoed(queue)

    run_async(main)
    assert "vring 0 is broken: no access to it" in caplog.text


@pytest.mark.parametrize("part", ["readable", "writable"])
def test_a_buffer_without_a_translation_breaks_the_ring(part: str, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with (
                closing(await frontend.start(memory, 1)) as queue,
                closing(await frontend.start(memory)) as other,
            ):
                at = {name: memory.allocate(PAGE, PAGE) for name in ("readable", "writable")}
                machine.unmap_now(at[part])
                queue.driver.add([(at["readable"], 8, False), (at["writable"], 8, True)])
                queue.kick()
                with pytest.raises(GuestError):
                    await queue.used()
                assert iommu.failures == []
                await echoed(other)

    run_async(main)


@pytest.mark.parametrize(
    ("permission", "part", "access"), [(WRITE, "readable", READ), (READ, "writable", WRITE)]
)
def test_a_forbidden_access_is_told(permission: int, part: str, access: int, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                at = {name: memory.allocate(PAGE, PAGE) for name in ("readable", "writable")}
                iommu.map(at[part], memory.user(at[part]), PAGE, permission)
                queue.driver.add([(at["readable"], 8, False), (at["writable"], 8, True)])
                queue.kick()
                with pytest.raises(GuestError):
                    await queue.used()
                while not iommu.failures:
                    await asyncio.sleep(0)
                assert iommu.failures == [(at[part], access)]

    run_async(main)


def test_a_permission_that_was_not_sent_may_still_be_there(run_async: Run) -> None:
    """A front-end may have sent a translation for what it was asked for only: to read."""

    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                page = memory.allocate(PAGE, PAGE)
                await iommu.update(page, PAGE, memory.user(page), READ)
                memory.map.write(page, b"echo")
                queue.driver.add([(page, 4, False), (page + 8, 4, True)])
                queue.kick()
                while queue.driver.used() is None:
                    await asyncio.sleep(0)
                assert memory.map.read(page + 8, 4) == b"echo"
                assert iommu.misses[-1] == (page + 8, WRITE)

    run_async(main)


@pytest.mark.parametrize("part", ["ring", "buffer"])
@formats
def test_an_invalidation_waits_for_what_is_in_flight(part: str, features: int, run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with translated(device, features) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory, 1)) as queue:
                memory.allocate(1, PAGE)
                head = queue.add(b"x", 4)
                queue.kick()
                await device.holding.wait()
                buffer = queue._held[head][0][0] // PAGE * PAGE
                apart = buffer + 4 * PAGE
                await iommu.invalidate(apart, PAGE)  # nothing is in flight there
                at = buffer if part == "buffer" else queue.driver.used_addr // PAGE * PAGE
                taking_back = asyncio.create_task(iommu.unmap(at, PAGE))
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not taking_back.done()
                device.release()
                await taking_back
                assert queue.poll() == (0, b"held")
                machine.map_all()
                queue.add(b"y", 4)
                queue.kick()
                await device.holding.wait()
                device.release()
                assert (await queue.used())[1] == b"held"

    run_async(main)


@formats
def test_everything_is_taken_back_again_and_again(features: int, run_async: Run) -> None:
    """As Linux does by default: it collects what it unmaps, and then has the IOMMU forget everything."""

    async def main() -> None:
        async with translated(Echo(), features) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                for round_ in range(50):
                    await echoed(queue, 1 + 97 * round_)
                    await iommu.invalidate(0, 0 if round_ % 2 else ALL)
                assert len({iova for iova, _ in iommu.misses if iova >= queue.driver.desc_addr}) > 2
                before = len(iommu.misses)
                await iommu.invalidate(0, 0)
                await frontend.call(GET_FEATURES, Empty())
                assert len(iommu.misses) == before  # nobody waits for chains: nothing is asked for

    run_async(main)


def test_an_invalidation_does_not_wait_for_ever(
    run_async: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(translation, "PATIENCE", 0.05)

    async def main() -> None:
        device = Echo()
        async with translated(device) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory, 1)) as queue:
                queue.add(b"x", 4)
                queue.kick()
                await device.holding.wait()
                await refused(iommu.invalidate(0, 0))
                device.release()
                assert (await queue.used())[1] == b"held"
                await iommu.invalidate(0, 0)
                queue.add(b"x", 4)
                queue.kick()
                await device.holding.wait()
                device.release()
                assert (await queue.used())[1] == b"held"

    run_async(main)
    assert "requests still use I/O virtual addresses from 0x0 to 0xffffffffffffffff after" in caplog.text


def test_a_front_end_may_go_while_it_waits_for_an_invalidation(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with translated(device) as machine:
            frontend, memory, _ = machine
            machine.map_all()
            with closing(await frontend.start(memory, 1)) as queue:
                queue.add(b"x", 4)
                queue.kick()
                await device.holding.wait()
                message = Iotlb(0, 0, 0, 0, IotlbType.INVALIDATE)
                await frontend.channel.send(FRONT_END.encode(IOTLB_MSG.request, message))
                frontend.close()
                await device.ended.wait()
                device.release()

    run_async(main)


@formats
def test_a_ring_that_waits_can_be_stopped(features: int, run_async: Run) -> None:
    """When it starts again it asks anew."""

    async def main() -> None:
        async with translated(Echo(), features) as machine:
            machine.map_all()
            frontend, memory, iommu = machine
            with closing(await frontend.start(memory)) as queue:
                await echoed(queue)
                iommu.answers.clear()
                text = b"e" * 2 * PAGE
                queue.add(text, len(text))
                queue.kick()
                while iommu.misses[-1][1] == BOTH:
                    await asyncio.sleep(0)
                base = await frontend.stop(queue)
                iommu.answers.set()
                await frontend.set_up(queue, base)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                assert (await queue.used())[1] == text

    run_async(main)


def test_the_memory_may_be_another_while_a_ring_runs(run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                await echoed(queue)
                region = MemoryRegion(PHYSICAL * 2, memory.size, memory.user_addr, 0)
                await frontend.call(SET_MEM_TABLE, MemoryTable((region,)), memory.fd)
                await echoed(queue)
                await iommu.invalidate(0, 0)
                await frontend.call(SET_MEM_TABLE, MemoryTable((region,)), memory.fd)
                await echoed(queue)

    run_async(main)


def test_a_translation_to_memory_that_is_not_shared_is_a_hole(run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            frontend, memory, iommu = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                at = memory.allocate(PAGE, PAGE)
                iommu.map(at, memory.user_addr - PAGE, PAGE)
                queue.driver.add([(at, 8, False)])
                queue.kick()
                with pytest.raises(GuestError):
                    await queue.used()

    run_async(main)


@formats
def test_a_ring_whose_pages_lie_apart(features: int, run_async: Run) -> None:
    """Linux allocates a long ring page by page; and what is written to it is logged where it is."""

    async def main() -> None:
        async with translated(Echo(), features) as machine:
            frontend, memory, iommu = machine
            await frontend.call(SET_MEM_TABLE, MemoryTable(()))
            pages = [memory.guest_addr + at for at in range(0, memory.size, PAGE)][:64]
            apart = {page: 2 * PAGE * (i * 37 % 64) for i, page in enumerate(pages)}
            for page, at in apart.items():
                offset = page - memory.guest_addr
                region = SingleRegion(0, PHYSICAL + at, PAGE, memory.user_addr + at, offset)
                await frontend.call(ADD_MEM_REG, region, memory.fd)
                iommu.map(page, memory.user_addr + at, PAGE)
            with closing(await frontend.start(memory, size=1024)) as queue:
                await echoed(queue)
                await iommu.invalidate(0, 0)
                place = SharedMemory(1, guest_addr=PHYSICAL + 2 * PAGE * len(pages))
                log = SharedLog(place)
                with log.fd, place.fd:
                    await frontend.call(SET_LOG_BASE, log.place, log.fd)
                    await frontend.call(SET_FEATURES, U64(features | mask(Feature.LOG_ALL)))
                    changed = await written_by(queue, memory, 100)
                    assert {PHYSICAL + apart[page] for page in changed} == log.pages()

    run_async(main)


@formats
def test_the_dirty_log_has_guest_physical_addresses(features: int, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo(), features) as machine:
            frontend, memory, _ = machine
            machine.map_all()
            with closing(await frontend.start(memory)) as queue:
                await echoed(queue, 3 * PAGE)
                place = SharedMemory(memory.size, guest_addr=PHYSICAL)
                log = SharedLog(place)
                with log.fd, place.fd:
                    await frontend.call(SET_LOG_BASE, log.place, log.fd)
                    await frontend.call(SET_FEATURES, U64(features | mask(Feature.LOG_ALL)))
                    await echoed(queue, 3 * PAGE)
                    pages = log.pages()
                ring = (queue.driver.used_addr - memory.guest_addr + PHYSICAL) // PAGE * PAGE
                assert ring in pages
                assert all(PHYSICAL <= page < PHYSICAL + memory.size for page in pages)

    run_async(main)


@pytest.mark.parametrize(
    "message",
    [
        Iotlb(0, 0, 0, BOTH, IotlbType.UPDATE),
        Iotlb(ALL, 2, 0, BOTH, IotlbType.UPDATE),
        Iotlb(0, PAGE, 0, 0, IotlbType.UPDATE),
        Iotlb(0, PAGE, 0, 7, IotlbType.UPDATE),
        Iotlb(0, PAGE, 0, BOTH, IotlbType.MISS),
        Iotlb(0, PAGE, 0, BOTH, IotlbType.ACCESS_FAIL),
        Iotlb(0, PAGE, 0, BOTH, 0),
        Iotlb(0, PAGE, 0, BOTH, 5),
    ],
    ids=str,
)
def test_messages_that_are_refused(message: Iotlb, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            await refused(machine.frontend.call(IOTLB_MSG, message))
            machine.map_all()
            with closing(await machine.frontend.start(machine.memory)) as queue:
                await echoed(queue)

    run_async(main)


@pytest.mark.parametrize("size", [1, PAGE, ALL, 0])
def test_invalidations_of_what_was_never_there(size: int, run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            for first in (0, PAGE, ALL):
                await machine.iommu.invalidate(first, size)

    run_async(main)


def test_without_the_feature_the_messages_are_refused(run_async: Run) -> None:
    async def main() -> None:
        async with translated(Echo()) as machine:
            await machine.frontend.call(SET_FEATURES, U64(FEATURES & ~mask(Feature.ACCESS_PLATFORM)))
            await refused(machine.iommu.invalidate(0, 0))

    run_async(main)


def test_a_device_that_keeps_memory_does_not_offer_it(run_async: Run) -> None:
    class Keeper(Echo):
        keeps_memory = True

    async def main() -> None:
        async with translated(Keeper()) as machine:
            offered = (await machine.frontend.call(GET_FEATURES, Empty())).value
            assert not offered & mask(Feature.ACCESS_PLATFORM)

    run_async(main)
