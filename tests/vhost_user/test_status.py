"""The status byte, and what resets the device."""

import asyncio

from tests.conftest import Run
from tests.sessions import Echo, backend_requests, negotiated, refused
from vhostd.frontend import Frontend, Queue, signalled
from vhostd.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    GET_STATUS,
    RESET_DEVICE,
    SET_STATUS,
)
from vhostd.wire.rows import U64, Empty

READY = 0x0F  # ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK
NEEDS_RESET = 0x40


async def status(frontend: Frontend) -> int:
    return (await frontend.call(GET_STATUS, Empty())).value


async def broken(queue: Queue) -> None:
    """Has the driver break its ring, and waits until the device has noticed."""
    queue.driver.offer(queue.size)
    queue.driver.publish()
    queue.kick()
    await signalled(queue.err_fd)


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


def test_a_reset_stops_rings_that_run(run_async: Run) -> None:
    """And it is over when the status is 0 (2.4)."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            await frontend.call(SET_STATUS, U64(READY))
            queue.add(b"slow", 4)
            queue.kick()
            await device.holding.wait()
            resetting = asyncio.create_task(frontend.call(SET_STATUS, U64(0)))
            await device.ended.wait()
            assert not resetting.done()
            device.release()
            await resetting
            assert (device.resets, await status(frontend)) == (1, 0)
            assert await frontend.stop(queue) == 1
            queue.close()

    run_async(main)


def test_a_status_is_a_byte(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, _):
            await refused(frontend.call(SET_STATUS, U64(0x100)))

    run_async(main)


def test_a_broken_ring_asks_a_driver_that_is_ready_for_a_reset(run_async: Run) -> None:
    """The driver reads the status when it hears of a change of the config space (2.1.2)."""

    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory), backend_requests(frontend) as requests:
            queue = await frontend.start(memory)
            other = await frontend.start(memory, 1)
            await frontend.call(SET_STATUS, U64(READY))
            await broken(queue)
            message = await requests.receive()
            assert message is not None
            assert message.request == CONFIG_CHANGE_MSG.request
            assert await status(frontend) == READY | NEEDS_RESET
            await frontend.call(SET_STATUS, U64(READY))  # only a reset takes it back
            await frontend.stop(queue)
            assert await status(frontend) == READY | NEEDS_RESET
            await frontend.call(SET_STATUS, U64(0))
            assert await status(frontend) == 0
            assert device.generation == 1
            queue.close()
            other.close()

    run_async(main)


def test_a_driver_hears_of_what_broke_before_it_was_ready(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await frontend.call(SET_STATUS, U64(READY & ~0x04))
            await broken(queue)
            assert (await status(frontend), device.generation) == (READY & ~0x04 | NEEDS_RESET, 0)
            await frontend.call(SET_STATUS, U64(READY))
            assert (await status(frontend), device.generation) == (READY | NEEDS_RESET, 1)
            await frontend.call(SET_STATUS, U64(READY | NEEDS_RESET))  # as QEMU adds bits to what it reads
            assert device.generation == 1
            queue.close()

    run_async(main)


def test_nobody_is_told_without_a_status(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory)
            await broken(queue)
            assert device.generation == 0
            queue.close()

    run_async(main)
