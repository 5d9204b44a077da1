"""What a front-end says, and does not say, to a back-end that it does not know."""

import os
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.frontend.modest import modest
from tests.sessions import Echo, connected, negotiated
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, SharedMemory, raw_message
from vhostd.frontend.raw import NEED_REPLY, REPLY
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.framing import HEADER, VERSION
from vhostd.wire.rows import U64, Empty

LITTLE = mask(Feature.VERSION_1, Feature.LOG_ALL, Feature.RING_PACKED) | 1
SOME = mask(
    *(ProtocolFeature.MQ, ProtocolFeature.XEN_MMAP, ProtocolFeature.INBAND_NOTIFICATIONS),
    *(ProtocolFeature.INFLIGHT_SHMFD, ProtocolFeature.GET_VRING_BASE_INFLIGHT, 63),
)


def test_a_back_end_without_protocol_features(run_async: Run) -> None:
    """It closes the connection for every message that has to do with them."""

    async def main() -> None:
        async with modest(LITTLE) as (backend, frontend):
            await frontend.negotiate()
            assert frontend.features == mask(Feature.VERSION_1) | 1
            assert frontend.protocol_features == 0
            assert await frontend.queue_num() == 1
            with pytest.raises(RefusedRequest, match="CONFIG was not negotiated"):
                await frontend.read_config(0, 8)
            with pytest.raises(RefusedRequest, match="BACKEND_REQ was not negotiated"):
                await frontend.take_requests()
            with closing(SharedMemory(1 << 20)) as memory:
                await frontend.share(memory)
                with closing(await frontend.start(memory)) as queue:
                    await frontend.call(GET_FEATURES, Empty())
                    os.eventfd_write(queue.kick_fd.fileno(), 7)
                    assert os.eventfd_read(backend.fds[SET_VRING_KICK.request].fileno()) == 7
            heard = [number for number, _, _ in backend.heard]
            assert not {GET_PROTOCOL_FEATURES.request, SET_VRING_ENABLE.request} & {*heard}
            assert all(flags == VERSION for _, flags, _ in backend.heard)

    run_async(main)


def test_nothing_is_accepted_that_was_not_offered_or_is_not_known(run_async: Run) -> None:
    offer = LITTLE | mask(Feature.PROTOCOL_FEATURES)

    async def main() -> None:
        async with modest(offer, {GET_PROTOCOL_FEATURES.request: SOME}) as (backend, frontend):
            with suppress(ConnectionError):  # SET_PROTOCOL_FEATURES is not known to it
                await frontend.negotiate()
            await frontend.hang_up()
            accepted = {number: payload for number, _, payload in backend.heard}
            assert U64.unpack(accepted[SET_PROTOCOL_FEATURES.request]).value == mask(ProtocolFeature.MQ)

    run_async(main)


def test_what_is_wanted_is_taken_of_what_is_offered(run_async: Run) -> None:
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate(mask(Feature.VERSION_1, 23), mask(ProtocolFeature.MQ, 50))
            assert frontend.features == mask(Feature.VERSION_1)
            assert frontend.has(ProtocolFeature.MQ)
            assert not frontend.has(ProtocolFeature.CONFIG)
            assert await frontend.queue_num() == 2
            memory = SharedMemory(1 << 20)
            await frontend.share(memory)
            with closing(memory), closing(await frontend.start(memory)) as queue:
                assert await queue.request(b"enabled", room=7) == b"enabled"

    run_async(main)


def test_the_config_space(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await frontend.write_config(6, b"IN")
            assert await frontend.read_config(4, 6) == b"igINat"

    run_async(main)


def test_a_message_without_an_ack(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await frontend.tell(SET_VRING_NUM, VringState(0, 128))
            assert (await frontend.call(GET_FEATURES, Empty())).value
            await frontend.tell(SET_VRING_NUM, VringState(0, 3))  # a refusal without an ack
            await frontend.hang_up()

    run_async(main)


def test_patience_ends_and_a_late_reply_is_dropped(run_async: Run) -> None:
    async def main() -> None:
        async with modest(7, {GET_QUEUE_NUM.request: 9}) as (backend, frontend):
            frontend.patience = 0.05
            backend.replies.clear()
            with pytest.raises(TimeoutError):
                await frontend.call(GET_QUEUE_NUM, Empty())
            frontend.patience = 20
            backend.replies.set()
            assert (await frontend.call(GET_FEATURES, Empty())).value == 7

    run_async(main)


def test_nobody_listens(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await Frontend.connect(tmp_path / "none")

    run_async(main)


# --- Nonsense -------------------------------------------------------------------------------------------


def test_a_message_by_hand(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await frontend.send_raw(raw_message(SET_VRING_NUM.request, bytes(8), flags=VERSION | NEED_REPLY))
            data, fds = await frontend.receive_raw()
            assert not fds
            assert HEADER.unpack_from(data) == (SET_VRING_NUM.request, VERSION | REPLY, 8)
            assert U64.unpack(data[HEADER.size :]).value == 1
            assert (await frontend.call(GET_FEATURES, Empty())).value

    run_async(main)


def test_a_front_end_that_hears_no_more(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            frontend.hear_no_more()
            await frontend.send_raw(raw_message(GET_FEATURES.request))
            assert await frontend.receive_raw() == (b"", [])
            await frontend.hang_up()

    run_async(main)


MALFORMED = {
    "version": raw_message(GET_FEATURES.request, flags=2),
    "reply": raw_message(GET_FEATURES.request, flags=VERSION | REPLY),
    "too long": raw_message(GET_FEATURES.request, size=1 << 31),
    "too short": raw_message(SET_FEATURES.request, bytes(7)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_messages(data: bytes, run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await frontend.send_raw(data)
            await frontend.hang_up()
            assert (await frontend.receive_raw()).data == b""

    run_async(main)


def test_an_fd_that_no_message_has(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            await frontend.send_raw(raw_message(GET_FEATURES.request), memory.fd)
            await frontend.hang_up()

    run_async(main)


def test_memory_that_is_not_there(run_async: Run) -> None:
    made_up = MemoryTable((MemoryRegion(0, 1 << 60, 0, 1 << 50), MemoryRegion(1, 1, 1, 1)))

    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with pytest.raises(RefusedRequest):
                await frontend.call(SET_MEM_TABLE, made_up, memory.fd, memory.fd)

    run_async(main)
