"""Features, and parts of the protocol, as a front-end agrees on them."""

import asyncio
import os

import pytest

from tests.conftest import Run
from tests.sessions import Echo, connected, negotiated, refused
from vhostd.frontend import SharedMemory
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_MAX_MEM_SLOTS,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_STATUS,
    GPU_SET_SOCKET,
    IOTLB_MSG,
    RESET_OWNER,
    SEND_RARP,
    SET_FEATURES,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ENABLE,
    ProtocolFeature,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty, Row


def test_offers_the_device_s_features_and_the_ring_s(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            features = (await frontend.call(GET_FEATURES, Empty())).value
            assert features == mask(5, 26, 28, 29, 30, 32, 34)
            protocol = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert protocol == mask(0, 1, 3, 5, 9, 12, 13, 15, 16, 19, 20)

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


@pytest.mark.parametrize("row", [GET_QUEUE_NUM, GET_MAX_MEM_SLOTS, GET_STATUS], ids=lambda row: row.name)
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
                await refused(frontend.call(GPU_SET_SOCKET, Empty(), fd))
            assert (await frontend.call(GET_QUEUE_NUM, Empty())).value == 2
        assert IOTLB_MSG.reply is U64

    run_async(main)


@pytest.mark.parametrize("bit", [Feature.RING_RESET, 41])
def test_of_the_bits_that_were_not_offered_a_ring_reset_is_tolerated(bit: int, run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate()
            call = frontend.call(SET_FEATURES, U64(frontend.features | 1 << bit))
            await (call if bit == Feature.RING_RESET else refused(call))

    run_async(main)
