"""Guest memory that comes, goes, moves and is wrong, while rings run."""

import os

import pytest

from tests.conftest import Run
from tests.sessions import Echo, closed, negotiated, refused
from vhostd.frontend import Queue, SharedMemory, signalled
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    SET_MEM_TABLE,
    SET_VRING_ADDR,
    SET_VRING_KICK,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddr,
    VringFd,
)
from vhostd.vhost_user.offer import CHOICES, Offer


async def used(queue: Queue) -> tuple[int, int]:
    """The head and the length of the next used element."""
    while (element := queue.driver.used()) is None:
        await signalled(queue.call_fd)
    head, written = element
    return head, written


def test_memory_is_added_and_removed_while_rings_run(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        more = SharedMemory(1 << 16, guest_addr=0x9000_0000, user_addr=0x6F00_0000_0000)
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.add(more)
            more.map.write(0x9000_0000, b"elsewhere")
            head = queue.driver.add([(0x9000_0000, 9, False), (0x9000_0100, 9, True)])
            queue.kick()
            assert await used(queue) == (head, 9)
            assert more.map.read(0x9000_0100, 9) == b"elsewhere"
            await frontend.remove(more)
            await refused(frontend.remove(more))
            queue.driver.add([(0x9000_0000, 9, False)])
            queue.kick()
            assert await signalled(queue.err_fd) == 1
            queue.close()
        more.close()

    run_async(main)


def test_a_memory_table_may_have_more_regions_than_the_specification_says(run_async: Run) -> None:
    """Cloud Hypervisor sends its whole memory in one, after each hot-plug."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            more = [SharedMemory(4096, guest_addr=at << 12, user_addr=at << 12) for at in range(31)]
            await frontend.share(memory, *more)
            queue = await frontend.start(memory)
            assert await queue.request(b"here", 4) == b"here"
            queue.close()
            for other in more:
                other.close()

    run_async(main)


def test_memory_with_a_running_ring_in_it_stays(run_async: Run) -> None:
    async def main() -> None:
        other = SharedMemory(1 << 16, guest_addr=0x9000_0000, user_addr=0x6F00_0000_0000)
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            await refused(frontend.remove(memory))
            await refused(frontend.share(other))
            await refused(frontend.share())
            assert await queue.request(b"unmoved", 7) == b"unmoved"
            queue.close()
        other.close()

    run_async(main)


def test_a_request_in_flight_outlives_its_memory_map(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            more = SharedMemory(1 << 16, guest_addr=0x9000_0000, user_addr=0x6F00_0000_0000)
            queue = await frontend.start(memory, 1)
            await frontend.add(more)
            head = queue.driver.add([(0x9000_0000, 4, True)])
            queue.kick()
            await device.holding.wait()
            await frontend.remove(more)
            device.release()
            assert await used(queue) == (head, 4)
            assert more.map.read(0x9000_0000, 4) == b"held"
            more.close()
            queue.close()

    run_async(main)


@pytest.mark.parametrize("fds", [0, 2], ids=["too few", "too many"])
def test_a_memory_table_needs_an_fd_per_region(
    fds: int, run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            table = MemoryTable((memory.region,))
            await refused(frontend.call(SET_MEM_TABLE, table, *[memory.fd] * fds))
            queue = await frontend.start(memory)
            assert await queue.request(b"kept", 4) == b"kept"
            queue.close()

    run_async(main)
    assert ("share=on" in caplog.text) == (fds == 0)


@pytest.mark.parametrize(
    "region",
    [
        SingleRegion(0, 0x9000_0000, 0, 0x6F00_0000_0000, 0),
        SingleRegion(0, 0x9000_0000, 1 << 20, 0x6F00_0000_0000, 4096),
        SingleRegion(0, 0xFFFF_FFFF_FFFF_F000, 1 << 20, 0x6F00_0000_0000, 0),
        SingleRegion(0, 0x9000_0000, 1 << 20, 0xFFFF_FFFF_FFFF_F000, 0),
        SingleRegion(0, 0x9000_0000, 1 << 20, 0x6F00_0000_0000, 0xFFFF_FFFF_FFFF_F000),
        SingleRegion(0, 0x1000_0000, 1 << 20, 0x6F00_0000_0000, 0),
        SingleRegion(0, 0x9000_0000, 1 << 20, 0x7F00_0000_0000, 0),
    ],
    ids=["empty", "short file", "guest wraps", "user wraps", "offset wraps", "guest overlap", "user overlap"],
)
def test_refuses_a_region_that_cannot_be(region: SingleRegion, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await refused(frontend.call(ADD_MEM_REG, region, memory.fd))

    run_async(main)


def test_memory_that_shrinks_costs_the_connection_and_not_the_program(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.add(b"x", 1)
            os.ftruncate(memory.fd.fileno(), 0)
            os.eventfd_write(queue.kick_fd.fileno(), 1)
            await closed(frontend)
            queue.close()

    run_async(main)
    assert "shrank" in caplog.text


# --- GPA_ADDRESSES --------------------------------------------------------------------------------------


def test_a_front_end_may_tell_guest_addresses_only(run_async: Run) -> None:
    async def main() -> None:
        more = SharedMemory(1 << 16, guest_addr=0x9000_0000)
        async with negotiated(Echo(), offer=Offer(CHOICES)) as (frontend, memory):
            assert frontend.protocol_features >> ProtocolFeature.GPA_ADDRESSES & 1
            await frontend.add(more)
            for place in (memory, more):  # a ring in each
                queue = await frontend.start(place)
                assert await queue.request(b"guest's", 7) == b"guest's"
                await frontend.stop(queue)
                queue.close()
            await frontend.remove(more)
            await refused(frontend.remove(more))
        more.close()

    run_async(main)


def test_user_addresses_do_not_count_then(run_async: Run) -> None:
    """They are to be the guest's once more; nothing depends on it."""

    async def main() -> None:
        async with negotiated(Echo(), offer=Offer(CHOICES)) as (frontend, memory):
            await frontend.call(SET_MEM_TABLE, MemoryTable((memory.region,)), memory.fd)
            assert memory.user_addr != memory.guest_addr
            queue = await frontend.start(memory)
            assert await queue.request(b"found", 5) == b"found"
            await frontend.stop(queue)
            addr = memory.user_addr
            await frontend.call(SET_VRING_ADDR, VringAddr(0, 0, addr, addr, addr, 0))
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            queue.close()

    run_async(main)
