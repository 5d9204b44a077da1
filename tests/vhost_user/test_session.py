"""One front-end's session, driven as a front-end does, in the same process."""

import asyncio
import os
import resource
import socket
import struct

import pytest

from tests.conftest import Run
from tests.sessions import Echo, backend_requests, closed, connected, negotiated, refused
from vhostd.frontend import Frontend, Queue, SharedMemory
from vhostd.frontend.queue import signalled
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    FRONT_END,
    GET_CONFIG,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_STATUS,
    GPU_SET_SOCKET,
    IOTLB_MSG,
    RESET_DEVICE,
    RESET_OWNER,
    SEND_RARP,
    SET_CONFIG,
    SET_FEATURES,
    SET_INFLIGHT_FD,
    SET_LOG_FD,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    BackendRequest,
    ConfigSpace,
    Inflight,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringFd,
    VringState,
)
from vhostd.vhost_user.session import DISCONNECT_PATIENCE, Session
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty, Row

# --- Negotiation -----------------------------------------------------------------------------------------


def test_offers_the_device_s_features_and_the_ring_s(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            features = (await frontend.call(GET_FEATURES, Empty())).value
            assert features == mask(5, 28, 29, 30, 32)
            protocol = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert protocol == mask(0, 3, 5, 9, 12, 13, 15, 16)

    run_async(main)


def test_refuses_features_never_offered_and_keeps_the_old(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with connected(device) as frontend:
            await frontend.negotiate()
            assert device.negotiated == mask(5)
            await refused(frontend.call(SET_FEATURES, U64(mask(6))))
            assert device.negotiated == mask(5)
            await refused(frontend.call(SET_PROTOCOL_FEATURES, U64(mask(ProtocolFeature.XEN_MMAP))))

    run_async(main)


def test_refuses_other_features_while_rings_run(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_FEATURES, U64(frontend.features))
            await refused(frontend.call(SET_FEATURES, U64(mask(Feature.VERSION_1))))
            assert await queue.request(b"still", 5) == b"still"
            queue.close()

    run_async(main)


def test_the_front_end_s_own_features_may_change_while_rings_run(run_async: Run) -> None:
    """QEMU turns the dirty log on and off like that, in the middle of the driver's work."""

    async def main() -> None:
        device = Echo()
        device.features |= mask(Feature.LOG_ALL)  # as a core that has a log will offer it
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            for features in (frontend.features & ~mask(Feature.LOG_ALL), frontend.features):
                await frontend.call(SET_FEATURES, U64(features))
                assert await queue.request(b"goes on", 7) == b"goes on"
            await refused(frontend.call(SET_FEATURES, U64(frontend.features & ~mask(Feature.EVENT_IDX))))
            queue.close()

    run_async(main)


def test_an_owner_may_say_so_again(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            await frontend.call(SET_OWNER, Empty())
            await frontend.call(RESET_OWNER, Empty())
            await frontend.call(SET_OWNER, Empty())

    run_async(main)


def test_rings_may_only_be_disabled_before_another_driver_comes(run_async: Run) -> None:
    """What libkrun sends at a reset and then: it asks for no acks, and stops no ring."""

    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 20)
        async with connected(device) as frontend:
            await frontend.negotiate(protocol_features=mask(ProtocolFeature.MQ, ProtocolFeature.CONFIG))
            for features in (frontend.features, mask(Feature.VERSION_1, Feature.PROTOCOL_FEATURES)):
                frontend.features = features
                await frontend.call(SET_OWNER, Empty())
                await frontend.share(memory)
                await frontend.call(SET_FEATURES, U64(features))
                queues = [await frontend.start(memory, index, size=8) for index in range(2)]
                for _ in range(3):
                    assert await queues[0].request(b"echo", 4) == b"echo"
                queues[1].add(b"slow", 4)
                queues[1].kick()
                await device.holding.wait()
                for queue in queues:
                    await frontend.call(SET_VRING_ENABLE, VringState(queue.index, 0))
                device.release()
                assert (await queues[1].used())[1] == b"held"
                for queue in queues:
                    queue.close()
        memory.close()

    run_async(main)


def test_features_of_another_driver_wait_for_the_requests_of_the_one_before(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"slow", 4)
            queue.kick()
            await device.holding.wait()
            await frontend.call(SET_VRING_ENABLE, VringState(1, 0))
            features = mask(Feature.VERSION_1, Feature.PROTOCOL_FEATURES)
            setting = asyncio.create_task(frontend.call(SET_FEATURES, U64(features)))
            await device.ended.wait()
            assert not setting.done()
            device.release()
            await setting
            assert (await frontend.stop(queue), queue.poll()) == (1, (0, b"held"))
            queue.close()

    run_async(main)


def test_refused_without_an_ack_closes_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.call(SET_FEATURES, U64(mask(6)))
            with pytest.raises(ConnectionResetError):
                await frontend.call(GET_FEATURES, Empty())

    run_async(main)


@pytest.mark.parametrize(
    "row", [GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, GET_STATUS], ids=lambda row: row.request.name
)
def test_a_feature_s_request_is_unknown_before_it_is_negotiated(row: Row[Empty, U64], run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            with pytest.raises(ConnectionResetError):
                await frontend.call(row, Empty())
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            await frontend.call(row, Empty())

    run_async(main)


def test_requests_without_a_handler_are_unknown_and_cost_nothing(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.call(SEND_RARP, U64(0))  # before acks are negotiated: ignored
            await frontend.negotiate()
            await refused(frontend.call(SEND_RARP, U64(0)))
            with Fd(os.eventfd(0)) as fd:
                await refused(frontend.call(SET_LOG_FD, Empty(), fd))
            assert (await frontend.call(GET_QUEUE_NUM, Empty())).value == 2
        assert IOTLB_MSG.reply is U64

    run_async(main)


# --- Memory ----------------------------------------------------------------------------------------------


async def used(queue: Queue) -> tuple[int, int]:
    """The head and the length of the next used element."""
    while (element := queue.driver.used()) is None:
        await signalled(queue.call_fd)
    return element


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


# --- Inflight area ---------------------------------------------------------------------------------------


FOOTPRINT = 16 + 64 * 16 + 48  # of the region of a queue of 64 descriptors
HEADS = range(16, 16 + 64 * 16, 16)  # where the descriptors' states are in it


def in_flight(fd: Fd, index: int) -> list[int]:
    """The heads that are in flight in a queue of 64 descriptors, as the area's file says."""
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


def test_what_was_in_flight_is_done_again(run_async: Run) -> None:
    """Whoever served the ring before used the second request, began the first and the third, and died."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            area, fd = await frontend.get_inflight(1, 64)
            queue = Queue(memory, 0, 64, frontend.features)
            heads = [queue.add(data, 1) for data in (b"a", b"b", b"c", b"d")]
            os.pwrite(fd.fileno(), struct.pack("<QHHHH", 0, 1, 64, heads[1], 0), 0)
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
            os.pwrite(fd.fileno(), struct.pack("<QHHHH", 0, 1, 64, 0, 0), 0)
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
        Inflight(2 * FOOTPRINT - 1, 0, 2, 64),
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


@pytest.mark.parametrize(("version", "size"), [(2, 64), (0, 128)], ids=["version 2", "small area"])
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


# --- Device ----------------------------------------------------------------------------------------------


def test_behind_the_config_space_s_fields_are_zeroes(run_async: Run) -> None:
    """SPDK asks for all that there may be."""

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            for offset, size in ((0, 256), (8, 6), (12, 244)):
                read = (await frontend.call(GET_CONFIG, ConfigSpace(offset, bytes(size)))).data
                assert read == b"configuration"[offset:].ljust(size, b"\0")

    run_async(main)


def test_config_is_read_from_its_offset_and_never_beyond_its_end(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            assert (await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(13)))).data == b"configuration"
            assert (await frontend.call(GET_CONFIG, ConfigSpace(3, bytes(3)))).data == b"fig"
            await refused(frontend.call(GET_CONFIG, ConfigSpace(13, bytes(1))))
            await refused(frontend.call(GET_CONFIG, ConfigSpace(1, bytes(256))))
            await refused(frontend.call(GET_CONFIG, ConfigSpace(0xFFFF_FFFF, bytes(1))))

    run_async(main)


def test_config_is_written_where_the_device_allows_it(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, _):
            await frontend.call(SET_CONFIG, ConfigSpace(6, b"URE"))
            assert device.read_config() == b"configURETION".lower().replace(b"ure", b"URE")
            await refused(frontend.call(SET_CONFIG, ConfigSpace(0, b"x")))
            await refused(frontend.call(SET_CONFIG, ConfigSpace(12, b"xx")))

    run_async(main)


@pytest.mark.parametrize("write", [ConfigSpace(0, b"x"), ConfigSpace(12, b"xx")], ids=str)
def test_a_config_write_of_the_driver_s_costs_no_connection(
    write: ConfigSpace, run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """crosvm and libkrun pass on whatever the guest writes, and ask for no ack."""

    async def main() -> None:
        device = Echo()
        async with connected(device) as frontend:
            await frontend.negotiate(protocol_features=mask(ProtocolFeature.CONFIG))
            await frontend.call(SET_CONFIG, write)
            answer = await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(13)))
            assert answer.data == b"configuration"

    run_async(main)
    assert "refused: " in caplog.text


def test_reset_device_stops_all_rings_and_keeps_the_rest(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await queue.request(b"x", 1)
            await frontend.call(RESET_DEVICE, Empty())
            assert device.resets == 1
            assert await frontend.stop(queue) == 1
            fresh = await frontend.start(memory)
            assert await fresh.request(b"anew", 4) == b"anew"
            queue.close()
            fresh.close()

    run_async(main)


@pytest.mark.parametrize("bit", [Feature.RING_RESET, 41])
def test_of_the_bits_that_were_not_offered_a_ring_reset_is_tolerated(bit: int, run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            call = frontend.call(SET_FEATURES, U64(frontend.features | 1 << bit))
            await (call if bit == Feature.RING_RESET else refused(call))

    run_async(main)


def test_a_device_that_shows_nothing_takes_no_gpu_socket(run_async: Run) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        async with negotiated(Echo()) as (frontend, _):
            with ours, Fd(theirs.detach()) as fd:
                await refused(frontend.call(GPU_SET_SOCKET, Empty(), fd))
                fd.close()
                assert ours.recv(1) == b""

    run_async(main)


def test_a_gpu_socket_must_be_a_connected_one(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            with socket.socket(socket.AF_UNIX) as unconnected, Fd(os.dup(unconnected.fileno())) as fd:
                await refused(frontend.call(GPU_SET_SOCKET, Empty(), fd))

    run_async(main)


def test_status_is_kept_and_zero_resets(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, _):
            await frontend.call(SET_STATUS, U64(0x0F))
            assert (await frontend.call(GET_STATUS, Empty())).value == 0x0F
            resets = [device.resets]
            await frontend.call(SET_STATUS, U64(0))
            assert [*resets, device.resets] == [0, 1]

    run_async(main)


def test_a_config_change_is_announced_while_rings_run(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory), backend_requests(frontend) as requests:
            device.config_changed()
            device.config_changed()  # suspended: both wait, as one
            queue = await frontend.start(memory)
            for _ in range(3):  # without a word of the front-end, which may never have one
                message = await requests.receive()
                assert message is not None
                assert (message.request, message.payload) == (BackendRequest.CONFIG_CHANGE_MSG, b"")
                assert not message.needs_reply
                device.config_changed()
            queue.close()

    run_async(main)


def test_a_driver_that_was_set_up_before_is_told_of_the_config(run_async: Run) -> None:
    """Its front-end has not read it on this connection, and what it knows may be another program's."""

    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        async with connected(device) as frontend:
            await frontend.negotiate(resume=True)
            await frontend.share(memory)
            async with backend_requests(frontend) as requests:
                queues = [await frontend.start(memory, index) for index in range(2)]
                message = await requests.receive()
                assert message is not None
                assert message.request == BackendRequest.CONFIG_CHANGE_MSG
                for queue in queues:
                    await frontend.stop(queue)
                    queue.close()
                again = await frontend.start(memory)
                assert device.resumes == 1
                again.close()
        memory.close()

    run_async(main)


def test_a_driver_that_is_set_up_here_is_not(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await queue.request(b"x", 1)
            assert device.resumes == 0
            queue.close()

    run_async(main)


def test_nothing_is_announced_while_all_rings_are_stopped(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory), backend_requests(frontend) as requests:
            queue = await frontend.start(memory)
            await frontend.stop(queue)
            device.config_changed()
            receiving = asyncio.create_task(requests.receive())
            for _ in range(3):
                await frontend.call(GET_QUEUE_NUM, Empty())
            assert not receiving.done()
            frontend.close()
            assert await receiving is None
            queue.close()

    run_async(main)


def test_the_socket_for_requests_may_be_replaced_or_close(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            async with backend_requests(frontend) as first, backend_requests(frontend) as second:
                assert await first.receive() is None
                device.config_changed()
                assert await second.receive() is not None
            assert await queue.request(b"lives on", 8) == b"lives on"
            queue.close()

    run_async(main)


def test_the_program_s_end_cuts_the_wait_for_requests_in_flight_short(run_async: Run) -> None:
    """It comes while the session waits for them because the front-end has gone; all is closed even so."""

    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(Session(device, Channel(theirs, FRONT_END)).run())
        frontend = Frontend(ours)
        await frontend.negotiate()
        await frontend.share(memory)
        queue = await frontend.start(memory, 1)
        queue.add(b"x", 4)
        queue.kick()
        await device.holding.wait()
        frontend.close()
        await device.ended.wait()
        serving.cancel()
        await asyncio.wait([serving])
        assert serving.cancelled()
        assert theirs.fileno() == -1
        assert device.resets == 1
        device.release()  # too late: nobody hears of it
        assert queue.poll() is None
        queue.close()
        memory.close()

    run_async(main)


@pytest.mark.parametrize("early", [True, False], ids=["before the end", "during it"])
def test_who_wants_to_be_served_next_need_not_wait_for_requests_that_hang(
    run_async: Run, *, early: bool
) -> None:
    """They are left behind, and their ring stops, long before a session's patience with its device ends."""

    async def main() -> None:
        device, leftovers = Echo(), Leftovers()
        memory = SharedMemory(1 << 16)
        ours, theirs = socket.socketpair()
        session = Session(device, Channel(theirs, FRONT_END), leftovers=leftovers)
        serving = asyncio.create_task(session.run())
        frontend = Frontend(ours)
        await frontend.negotiate()
        await frontend.share(memory)
        queue = await frontend.start(memory, 1)
        queue.add(b"x", 4)
        queue.kick()
        await device.holding.wait()
        if early:
            session.hurry()
            await frontend.call(GET_FEATURES, Empty())  # it is served on
            assert not device.held[0].given_up
        frontend.close()
        await device.ended.wait()
        if not early:
            session.hurry()
        async with asyncio.timeout(DISCONNECT_PATIENCE / 2):
            await serving
        assert device.held[0].given_up
        assert leftovers.requests == 1
        device.release()
        await leftovers.gone()
        assert queue.poll() is None
        queue.close()
        memory.close()

    run_async(main)
