"""One front-end's session, driven as a front-end does, in the same process."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

import pytest

from tests.sessions import Echo, connected, negotiated
from vhostd.errors import RefusedRequest
from vhostd.fds import Fd
from vhostd.frontend import SharedMemory
from vhostd.frontend.queue import Queue, signalled
from vhostd.messages import (
    ADD_MEM_REG,
    GET_CONFIG,
    GET_FEATURES,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_STATUS,
    GET_VRING_BASE,
    IOTLB_MSG,
    RESET_DEVICE,
    RESET_OWNER,
    SEND_RARP,
    SET_CONFIG,
    SET_FEATURES,
    SET_LOG_FD,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_STATUS,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    U64,
    ConfigSpace,
    Empty,
    MemoryTable,
    ProtocolFeature,
    Row,
    SingleRegion,
    VringFd,
    VringState,
)
from vhostd.virtio import Feature, mask

Run = Callable[[Callable[[], Awaitable[None]]], None]
NO_FD = 0x100
ALL_BUT_EVENT_IDX = ~mask(Feature.EVENT_IDX)


async def refused(request: Awaitable[object]) -> None:
    with pytest.raises(RefusedRequest):
        await request


# --- Negotiation ----------------------------------------------------------------------------------------


def test_offers_the_device_s_features_and_the_ring_s(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            features = (await frontend.call(GET_FEATURES, Empty())).value
            assert features == mask(5, 28, 29, 30, 32)
            protocol = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert protocol == mask(0, 3, 5, 9, 13, 15, 16)

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


def test_a_second_owner_is_refused_until_the_first_is_reset(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            await refused(frontend.call(SET_OWNER, Empty()))
            await frontend.call(RESET_OWNER, Empty())
            await frontend.call(SET_OWNER, Empty())

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


# --- Rings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [None, ALL_BUT_EVENT_IDX], ids=["event_idx", "flags"])
def test_requests_pass_through_a_ring_that_wraps(features: int | None, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo(), features) as (frontend, memory):
            queue = await frontend.start(memory, size=4)
            for number in range(50):
                data = b"request %d" % number
                assert await queue.request(data, len(data)) == data
            queue.close()

    run_async(main)


def test_buffers_offered_before_the_start_need_no_kick(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = Queue(memory, 0, 8, frontend.features)
            queue.add(b"early", 5)
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert (await queue.used())[1] == b"early"
            queue.close()

    run_async(main)


def test_a_ring_without_kick_fd_is_polled(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_KICK, VringFd(NO_FD))
            assert await queue.request(b"polled", 6) == b"polled"
            queue.close()

    run_async(main)


def test_a_call_fd_that_comes_late_is_signalled_at_once(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_CALL, VringFd(NO_FD))
            queue.add(b"quiet", 5)
            queue.kick()
            while not device.served:
                await frontend.call(GET_QUEUE_NUM, Empty())
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await signalled(queue.call_fd) == 1
            queue.close()

    run_async(main)


def test_a_disabled_ring_is_left_alone_until_it_is_enabled(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_VRING_ENABLE, VringState(0, 0))
            queue.add(b"later", 5)
            queue.kick()
            other = await frontend.start(memory, 1)
            other.add(b"x", 4)
            other.kick()
            await device.holding.wait()  # so the first ring's kick has been seen as well
            assert not device.served
            await frontend.call(SET_VRING_ENABLE, VringState(0, 1))
            assert (await queue.used())[1] == b"later"
            device.release()
            queue.close()
            other.close()

    run_async(main)


def test_without_protocol_features_accepted_rings_start_enabled(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await frontend.call(SET_FEATURES, U64(mask(Feature.VERSION_1)))
            queue = Queue(memory, 0, 8, mask(Feature.VERSION_1))
            await frontend.set_up(queue)
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert await queue.request(b"enabled", 7) == b"enabled"
            queue.close()

    run_async(main)


def test_stop_waits_for_what_is_in_flight_and_goes_on_where_it_stopped(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"slow", 4)
            queue.kick()
            await device.holding.wait()
            stopping = asyncio.create_task(frontend.stop(queue))
            await device.ended.wait()
            queue.add(b"too late", 4)
            queue.kick()
            assert not stopping.done()
            device.release()
            assert await stopping == 1
            assert queue.poll() == (0, b"held")
            await frontend.set_up(queue, base=1)
            await frontend.call(SET_VRING_KICK, VringFd(1), queue.kick_fd)
            await device.holding.wait()
            device.release()
            assert (await queue.used())[1] == b"held"
            assert await frontend.stop(queue) == 2
            assert await frontend.stop(queue) == 2
            queue.close()

    run_async(main)


def test_a_broken_ring_signals_its_error_and_stops_alone(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.driver.offer(77)  # there are 64 descriptors
            queue.driver.publish()
            os.eventfd_write(queue.kick_fd.fileno(), 1)
            assert await signalled(queue.err_fd) == 1
            assert await frontend.stop(queue) == 0
            queue.close()
            fresh = await frontend.start(memory)
            assert await fresh.request(b"again", 5) == b"again"
            fresh.close()

    run_async(main)


def test_a_request_that_the_device_cannot_read_breaks_the_ring(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.driver.add([(0xDEAD_0000_0000, 16, False)])
            queue.kick()
            assert await signalled(queue.err_fd) == 1
            queue.close()

    run_async(main)


@pytest.mark.parametrize(
    ("row", "payload"),
    [
        (SET_VRING_NUM, VringState(2, 8)),
        (SET_VRING_BASE, VringState(2, 0)),
        (SET_VRING_ENABLE, VringState(2, 1)),
        (SET_VRING_KICK, VringFd(2 | NO_FD)),
        (SET_VRING_CALL, VringFd(2 | NO_FD)),
        (SET_VRING_ERR, VringFd(255 | NO_FD)),
        (SET_VRING_NUM, VringState(0, 0)),
        (SET_VRING_NUM, VringState(0, 12)),
        (SET_VRING_NUM, VringState(0, 65536)),
        (SET_VRING_BASE, VringState(0, 65536)),
        (SET_VRING_ENABLE, VringState(0, 2)),
        (SET_VRING_KICK, VringFd(0)),  # promises an fd that did not come
        (SET_VRING_KICK, VringFd(0 | NO_FD)),  # before SET_VRING_NUM
        (SET_STATUS, U64(256)),
    ],
    ids=lambda value: value.request.name if isinstance(value, Row) else str(value),
)
def test_refuses_what_cannot_be(row: Row[VringState, None], payload: VringState, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await refused(frontend.call(row, payload))
            queue = await frontend.start(memory)
            assert await queue.request(b"fine", 4) == b"fine"
            queue.close()

    run_async(main)


def test_get_vring_base_of_no_ring_closes_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            with pytest.raises(ConnectionResetError):
                await frontend.call(GET_VRING_BASE, VringState(9, 0))

    run_async(main)


def test_a_kick_needs_size_addresses_and_memory_first(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        memory = SharedMemory(1 << 16)
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            queue = Queue(memory, 0, 8, frontend.features)
            kick = frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await refused(kick)
            assert "before SET_VRING_NUM" in caplog.text
            await frontend.call(SET_VRING_NUM, VringState(0, 8))
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            assert "before SET_VRING_ADDR" in caplog.text
            await frontend.set_up(queue)
            await refused(frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd))
            assert "share=on" in caplog.text
            await frontend.share(memory)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            await refused(frontend.call(SET_VRING_NUM, VringState(0, 16)))
            await refused(frontend.call(SET_VRING_BASE, VringState(0, 16)))
            queue.close()
        memory.close()

    run_async(main)


def test_files_are_no_eventfds(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            for path in ("/", "/etc/passwd", "/dev/null"):
                with Fd(os.open(path, os.O_RDONLY)) as fd:
                    await refused(frontend.call(SET_VRING_KICK, VringFd(0), fd))
            with Fd(os.open("/etc/passwd", os.O_RDONLY)) as fd:
                await refused(frontend.call(SET_VRING_CALL, VringFd(0), fd))
            assert await queue.request(b"unharmed", 8) == b"unharmed"
            queue.close()

    run_async(main)


def test_a_kick_pipe_may_close_and_a_call_fd_be_full(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            read, write = os.pipe()
            with Fd(read) as kick:
                await frontend.call(SET_VRING_KICK, VringFd(0), kick)
            os.close(write)
            with Fd(os.eventfd((1 << 64) - 2 & 0xFFFFFFFF)) as full:
                os.eventfd_write(full.fileno(), (1 << 64) - 2 - 0xFFFFFFFE)
                await frontend.call(SET_VRING_CALL, VringFd(0), full)
                queue.add(b"x", 1)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                await frontend.call(GET_QUEUE_NUM, Empty())
            await frontend.call(SET_VRING_CALL, VringFd(0), queue.call_fd)
            assert await queue.request(b"alive", 5) in (b"alive", b"x")
            queue.close()

    run_async(main)


def test_a_storm_of_kicks_is_harmless(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            queue = await frontend.start(memory)
            for number in range(1000):
                os.eventfd_write(queue.kick_fd.fileno(), 1 + number)
                if not number % 100:
                    assert await queue.request(b"calm", 4) == b"calm"
            queue.close()

    run_async(main)


def test_a_fault_of_the_device_closes_the_connection_with_its_traceback(
    run_async: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            queue.add(b"!", 1)
            queue.kick()
            with pytest.raises(ConnectionResetError):
                while True:
                    await frontend.call(GET_QUEUE_NUM, Empty())
            queue.close()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            assert await queue.request(b"next", 4) == b"next"
            queue.close()

    run_async(main)
    faults = [record for record in caplog.records if record.exc_info]
    assert len(faults) == 1
    assert faults[0].levelno == logging.ERROR


def test_requests_in_flight_are_completed_when_the_front_end_goes(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            queue.add(b"x", 4)
            queue.kick()
            await device.holding.wait()
            frontend.close()
            asyncio.get_running_loop().call_soon(device.release)
        assert queue.poll() == (0, b"held")
        queue.close()

    run_async(main)


# --- Memory ---------------------------------------------------------------------------------------------


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
            await signalled(queue.call_fd)
            assert queue.driver.used() == (head, 9)
            assert more.map.read(0x9000_0100, 9) == b"elsewhere"
            await frontend.remove(more)
            await refused(frontend.remove(more))
            queue.driver.add([(0x9000_0000, 9, False)])
            queue.kick()
            assert await signalled(queue.err_fd) == 1
            queue.close()
        more.close()

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
            await signalled(queue.call_fd)
            assert queue.driver.used() == (head, 4)
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
            with pytest.raises(ConnectionResetError):
                while True:
                    await frontend.call(GET_QUEUE_NUM, Empty())
            queue.close()

    run_async(main)
    assert "shrank" in caplog.text


# --- Device ---------------------------------------------------------------------------------------------


def test_config_is_read_from_its_offset_and_never_beyond_its_end(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            assert (await frontend.call(GET_CONFIG, ConfigSpace(0, bytes(13)))).data == b"configuration"
            assert (await frontend.call(GET_CONFIG, ConfigSpace(3, bytes(3)))).data == b"fig"
            await refused(frontend.call(GET_CONFIG, ConfigSpace(8, bytes(6))))
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


def test_status_is_kept_and_zero_resets(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, _):
            await frontend.call(SET_STATUS, U64(0x0F))
            assert (await frontend.call(GET_STATUS, Empty())).value == 0x0F
            assert not device.resets
            await frontend.call(SET_STATUS, U64(0))
            assert device.resets == 1

    run_async(main)
