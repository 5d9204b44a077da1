"""The status byte, and what resets the device."""

from tests.conftest import Run
from tests.sessions import Echo, negotiated
from vhostd.vhost_user.messages import (
    GET_STATUS,
    RESET_DEVICE,
    SET_STATUS,
)
from vhostd.wire.rows import U64, Empty


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
            resets = [device.resets]
            await frontend.call(SET_STATUS, U64(0))
            assert [*resets, device.resets] == [0, 1]

    run_async(main)
