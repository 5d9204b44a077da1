"""The config space, as the front-end passes it on."""

import pytest

from tests.conftest import Run
from tests.sessions import Echo, backend_requests, connected, negotiated, refused
from vhostd.frontend import Queue, SharedMemory
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    GET_CONFIG,
    SET_CONFIG,
    SET_VRING_KICK,
    ConfigSpace,
    ProtocolFeature,
    VringFd,
)
from vhostd.virtio.vocabulary import mask


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
                assert message.request == CONFIG_CHANGE_MSG.request
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


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_driver_that_was_set_up_on_another_host_is_one_of_before(packed: bool, run_async: Run) -> None:  # noqa: FBT001
    """A front-end that a guest migrates to has read the config space for itself, before the guest comes."""

    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        async with connected(device) as frontend:
            await frontend.negotiate(packed=packed)
            await frontend.share(memory)
            queue = Queue(memory, 0, 8, frontend.features)
            await frontend.set_up(queue, 0x8005_8005 if packed else 5)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert (device.resumes, device.generation) == (1, 1)
            await frontend.stop(queue)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert device.resumes == 1
            queue.close()
        memory.close()

    run_async(main)


@pytest.mark.parametrize("base", [0, 0x8000, 0x8000_8000])
def test_whatever_a_front_end_calls_the_beginning_is_no_driver_of_before(base: int, run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        memory = SharedMemory(1 << 16)
        async with connected(device) as frontend:
            await frontend.negotiate(packed=True)
            await frontend.share(memory)
            queue = Queue(memory, 0, 8, frontend.features)
            await frontend.set_up(queue, base)
            await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
            assert device.resumes == 0
            queue.close()
        memory.close()

    run_async(main)
