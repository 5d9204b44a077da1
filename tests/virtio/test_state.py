"""What a driver and a device agree on, without any transport."""

import asyncio

import pytest

from tests.conftest import Run
from tests.sessions import Echo
from tests.virtio.transports import OneByOne
from vhostd.errors import RefusedRequest
from vhostd.frontend import SharedMemory
from vhostd.virtio.state import RING_FEATURES, VirtioState


def make(device: Echo) -> VirtioState:
    return VirtioState(device, failed=lambda _: None)


def test_the_device_is_told_of_its_own_features_only(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        state = make(device)
        assert state.offered == RING_FEATURES | device.features
        state.accept(state.offered | 1 << 63)
        assert (state.features, device.negotiated) == (state.offered | 1 << 63, device.features)
        state.leave()
        assert (device.negotiated, device.resets) == (0, 1)

    run_async(main)


def test_behind_the_config_space_s_fields_are_zeroes(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        state, size = make(device), len(device.space)
        assert state.read_config(size - 1, 3) == bytes(device.space[-1:]) + bytes(2)
        with pytest.raises(RefusedRequest, match=f"GET_CONFIG of bytes {size} to"):
            state.read_config(size, 1)
        state.write_config(size - 2, b"ab")
        assert state.read_config(size - 2, 2) == b"ab"
        for offset, data in ((size - 1, b"ab"), (0, b"a")):
            with pytest.raises(RefusedRequest):
                state.write_config(offset, data)

    run_async(main)


@pytest.mark.parametrize("early", [True, False], ids=["before the end", "during it"])
def test_who_is_in_a_hurry_waits_for_no_request(early: bool, run_async: Run) -> None:  # noqa: FBT001
    async def main() -> None:
        device, memory = Echo(), SharedMemory(1 << 20)
        transport = OneByOne(device, memory)
        transport.negotiate()
        driver = transport.start(1)
        driver.queue.add(b"held", 4)
        queue = transport.state.queues[1].queue
        assert queue is not None
        queue.kicked()
        await device.holding.wait()
        if early:
            transport.state.hurry(0.01)
        ending = asyncio.create_task(transport.state.end(patience=3600.0))
        await device.ended.wait()
        transport.state.hurry(0.01)
        await ending
        assert not transport.state.is_running
        assert device.held[0].given_up
        device.release()
        driver.queue.close()
        memory.close()

    run_async(main)


def test_a_status_is_forgotten_with_the_reset(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        state = make(device)
        state.status = 15
        state.reset()
        assert (state.status, device.resets) == (0, 1)

    run_async(main)
