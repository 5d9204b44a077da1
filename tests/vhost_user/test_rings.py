"""The messages about the inflight area."""

import asyncio
import os
import resource
import struct
from collections.abc import Sequence

import pytest

from tests.conftest import Run
from tests.sessions import Echo, closed, connected, negotiated, refused
from vhostd.frontend import Queue, SharedMemory
from vhostd.vhost_user.messages import (
    GET_INFLIGHT_FD,
    GET_QUEUE_NUM,
    RESET_DEVICE,
    SET_INFLIGHT_FD,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    Inflight,
    ProtocolFeature,
    VringFd,
    VringState,
)
from vhostd.virtio.device import Handler
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import mask
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty

ROOM = 1024  # descriptors, in a queue of an area that is made for fewer
FOOTPRINT = 16 + ROOM * 16 + 48  # of a queue's region
HEADS = range(16, 16 + ROOM * 16, 16)  # where the descriptors' states are in it


def in_flight(fd: Fd, index: int) -> list[int]:
    """The heads that are in flight in a queue, as the area's file says."""
    region = os.pread(fd.fileno(), FOOTPRINT, index * FOOTPRINT)
    return [head for head, at in enumerate(HEADS) if region[at]]


def test_an_inflight_area_is_made_and_kept(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(2, 64)
            assert area == Inflight(2 * FOOTPRINT, 0, 2, 64)
            assert os.fstat(fd.fileno()).st_size == 2 * FOOTPRINT
            with pytest.raises(PermissionError):
                os.ftruncate(fd.fileno(), 0)
            await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 1)
            head = queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            assert (in_flight(fd, 0), in_flight(fd, 1)) == ([], [head])
            device.release()
            assert (await queue.used())[1] == b"held"
            assert in_flight(fd, 1) == []
            queue.close()
            fd.close()

    run_async(main)


def test_a_ring_may_be_longer_than_the_area_was_asked_for(run_async: Run) -> None:
    """As QEMU's are from 10.0.13 on: it asks for an area for its queue-size, and offers the driver 1024."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(2, 128)
            await frontend.set_inflight(area, fd)
            queue = Queue(memory, 1, ROOM, frontend.features)
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_KICK, VringFd(1), queue.kick_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(1, 1))
            heads = [queue.add(b"x", 4) for _ in range(ROOM // 2)]
            queue.kick()
            while len(device.held) < len(heads):
                await asyncio.sleep(0)
            assert in_flight(fd, 1) == sorted(heads)
            device.release()
            assert (await queue.used())[1] == b"held"
            queue.close()
            fd.close()

    run_async(main)


def test_what_was_in_flight_is_done_again(run_async: Run) -> None:
    """Whoever served the ring before used the second request, began the first and the third, and died."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            area, fd = await frontend.get_inflight(1, 64)
            queue = Queue(memory, 0, 64, frontend.features)
            heads = [queue.add(data, 1) for data in (b"a", b"b", b"c", b"d")]
            os.pwrite(fd.fileno(), struct.pack("<QHHHH", 0, 1, ROOM, heads[1], 0), 0)
            for age, head in enumerate((heads[2], heads[1], heads[0])):
                os.pwrite(fd.fileno(), struct.pack("<B5xHQ", 1, 0, age), HEADS[head])
            memory.map.write(queue.driver.used_addr, struct.pack("<HHII", 0, 1, heads[1], 0))
            await frontend.set_inflight(area, fd)
            await frontend.set_up(queue, base=1)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            answers = [await queue.used() for _ in heads]
            assert answers == [(heads[1], b""), (heads[2], b"c"), (heads[0], b"a"), (heads[3], b"d")]
            assert (queue.poll(), in_flight(fd, 0)) == (None, [])
            assert await frontend.stop(queue) == 4
            queue.close()
            fd.close()

    run_async(main)


@pytest.mark.parametrize("base", [0, 3, 65535])
def test_a_ring_stops_where_the_area_says_even_if_it_served_nothing(base: int, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            area, fd = await frontend.get_inflight(1, 64)
            queue = Queue(memory, 0, 64, frontend.features)
            head = queue.add(b"a", 1)
            os.pwrite(fd.fileno(), struct.pack("<QHHHH", 0, 1, ROOM, 0, 0), 0)
            os.pwrite(fd.fileno(), b"\1", HEADS[head])
            await frontend.set_inflight(area, fd)
            await frontend.set_up(queue, base=base)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert await frontend.stop(queue) == 1
            assert in_flight(fd, 0) == [head]  # a disabled ring serves nothing, but it does not forget
            queue.close()
            fd.close()

    run_async(main)


@pytest.mark.parametrize(
    ("num_queues", "queue_size"), [(0, 64), (3, 64), (65535, 64), (2, 0), (2, 32769), (2, 65535)]
)
def test_an_inflight_area_that_is_no_use_is_refused(num_queues: int, queue_size: int, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await refused(frontend.get_inflight(num_queues, queue_size))
            description = Inflight(memory.size, 0, num_queues, queue_size)
            await refused(frontend.set_inflight(description, memory.fd))
            await frontend.call(GET_QUEUE_NUM, Empty())

    run_async(main)


@pytest.mark.parametrize(
    "area",
    [
        Inflight(2 * FOOTPRINT - 1, 0, 2, ROOM),
        Inflight(0, 0, 2, 64),
        Inflight(2 * FOOTPRINT, (1 << 20) - FOOTPRINT, 2, 64),
        Inflight(2 * FOOTPRINT, 1 << 20, 2, 64),
        Inflight(2 * FOOTPRINT, (1 << 64) - 8, 2, 64),
        Inflight(2 * FOOTPRINT, 4, 2, 64),
    ],
    ids=["short", "empty", "half in the file", "not in the file", "wraps", "not aligned"],
)
def test_an_inflight_area_that_cannot_be_mapped_is_refused(area: Inflight, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await refused(frontend.set_inflight(area, memory.fd))

    run_async(main)


def test_an_inflight_area_is_a_file(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            with Fd(os.eventfd(0, os.EFD_CLOEXEC)) as no_file:
                await refused(frontend.set_inflight(Inflight(2 * FOOTPRINT, 0, 2, 64), no_file))

    run_async(main)


def test_no_inflight_area_without_memory_for_it(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (FOOTPRINT, limits[1]))
            try:
                await refused(frontend.get_inflight(2, 64))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    run_async(main)


@pytest.mark.parametrize("count", [0, 2])
def test_an_inflight_area_needs_one_fd(count: int, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with pytest.raises(ConnectionError):
                await frontend.call(SET_INFLIGHT_FD, Inflight(4096, 0, 2, 64), *[memory.fd] * count)

    run_async(main)


def test_no_inflight_area_if_it_was_not_negotiated(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate(protocol_features=mask(ProtocolFeature.REPLY_ACK))
            await refused(frontend.call(GET_INFLIGHT_FD, Inflight(0, 0, 2, 64)))

    run_async(main)


@pytest.mark.parametrize("change", ["RESET_DEVICE", "SET_STATUS", "fewer queues"])
def test_an_inflight_area_ends_with_the_driver_or_the_next_one(change: str, run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(2, 64)
            await frontend.set_inflight(area, fd)
            if change == "RESET_DEVICE":
                await frontend.call(RESET_DEVICE, Empty())
            elif change == "SET_STATUS":
                await frontend.call(SET_STATUS, U64(0))
            else:
                smaller, other = await frontend.get_inflight(1, 64)
                await frontend.set_inflight(smaller, other)
                other.close()
            queue = await frontend.start(memory, 1)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            assert os.pread(fd.fileno(), 2 * FOOTPRINT, 0) == bytes(2 * FOOTPRINT)
            device.release()
            queue.close()
            fd.close()

    run_async(main)


def test_a_ring_keeps_the_inflight_area_that_it_began_with(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(2, 64)
            await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 1)
            later, other = await frontend.get_inflight(2, 64)
            await frontend.set_inflight(later, other)
            head = queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            assert (in_flight(fd, 1), in_flight(other, 1)) == ([head], [])
            device.release()
            queue.close()
            fd.close()
            other.close()

    run_async(main)


@pytest.mark.parametrize(("version", "size"), [(2, 64), (0, 2 * ROOM)], ids=["version 2", "small area"])
def test_an_inflight_area_of_another_ring_is_refused_when_it_starts(
    version: int, size: int, run_async: Run
) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            area, fd = await frontend.get_inflight(1, 64)
            os.pwrite(fd.fileno(), struct.pack("<H", version), 8)
            await frontend.set_inflight(area, fd)
            queue = Queue(memory, 0, size, frontend.features)
            await frontend.set_up(queue)
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            queue.close()
            fd.close()

    run_async(main)


def test_an_inflight_area_that_shrinks_costs_the_connection(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        area = SharedMemory(4096)
        async with negotiated(Echo()) as (frontend, memory):
            await frontend.set_inflight(Inflight(4096, 0, 2, 64), area.fd)
            queue = await frontend.start(memory)
            assert await queue.request(b"x", 1) == b"x"
            os.ftruncate(area.fd.fileno(), 0)
            queue.add(b"x", 1)
            os.eventfd_write(queue.kick_fd.fileno(), 1)
            await closed(frontend)
            queue.close()
        area.close()

    run_async(main)
    assert "shrank" in caplog.text


# --- GET_VRING_BASE_INFLIGHT ----------------------------------------------------------------------------


class Slow(Echo):
    """A third queue, whose handler waits with each chain in its hand."""

    @property
    def queues(self) -> Sequence[Handler]:
        return [*super().queues, self.slowq]

    async def slowq(self, queue: Virtqueue) -> None:
        async for chain in queue:
            self.holding.set()
            await asyncio.Event().wait()
            queue.push(chain)


def test_a_stopped_ring_leaves_what_is_in_flight_to_the_next(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(2, 64)
            await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 1)
            heads = [queue.add(b"x", 4) for _ in range(3)]
            queue.kick()
            while len(device.held) < 3:
                await asyncio.sleep(0)
            stopping = asyncio.create_task(frontend.stop(queue))
            while not device.held[0].given_up:
                await asyncio.sleep(0)
            for _ in range(9):
                await asyncio.sleep(0)
            assert not stopping.done(), "the device could still write to the guest"
            device.release()
            assert await stopping == 3
            assert (queue.poll(), in_flight(fd, 1)) == (None, heads)

            await frontend.set_inflight(area, fd)
            await frontend.set_up(queue, base=3)
            await frontend.call(SET_VRING_KICK, VringFd(1), queue.kick_fd)
            while len(device.held) < 3:
                await asyncio.sleep(0)
            device.release()
            assert [await queue.used() for _ in heads] == [(head, b"held") for head in heads]
            assert (await frontend.stop(queue), in_flight(fd, 1)) == (3, [])
            queue.close()
            fd.close()

    run_async(main)


def test_a_handler_that_waits_with_a_request_is_not_waited_for(run_async: Run) -> None:
    async def main() -> None:
        device = Slow()
        async with negotiated(device) as (frontend, memory):
            area, fd = await frontend.get_inflight(3, 64)
            await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 2)
            head = queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            assert await frontend.stop(queue) == 1
            assert (queue.poll(), in_flight(fd, 2)) == (None, [head])
            queue.close()
            fd.close()

    run_async(main)


@pytest.mark.parametrize("lacking", ["the feature", "the area"])
def test_otherwise_a_stopped_ring_has_completed_all(lacking: str, run_async: Run) -> None:
    async def main() -> None:
        device, memory = Echo(), SharedMemory(1 << 20)
        async with connected(device) as frontend:
            bit = mask(ProtocolFeature.GET_VRING_BASE_INFLIGHT)
            await frontend.negotiate(protocol_features=~bit if lacking == "the feature" else ~0)
            await frontend.share(memory)
            area, fd = await frontend.get_inflight(2, 64)
            if lacking == "the feature":
                await frontend.set_inflight(area, fd)
            queue = await frontend.start(memory, 1)
            head = queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            stopping = asyncio.create_task(frontend.stop(queue))
            await device.ended.wait()
            device.release()
            assert (await stopping, queue.poll()) == (1, (head, b"held"))
            queue.close()
            fd.close()
        memory.close()

    run_async(main)


def test_a_base_in_flight_needs_an_area(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            bits = (ProtocolFeature.REPLY_ACK, ProtocolFeature.GET_VRING_BASE_INFLIGHT)
            await frontend.call(SET_PROTOCOL_FEATURES, U64(mask(*bits)))
            await closed(frontend)

    run_async(main)
