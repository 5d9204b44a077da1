"""Whoever waits for an answer hears that there will be none."""

import asyncio
import os
from contextlib import closing

import pytest

from tests.conftest import Run
from tests.sessions import Echo, connected, negotiated
from vhostd.errors import DeviceError, GuestError
from vhostd.frontend import Queue, SharedMemory

PATIENCE = 20.0  # seconds for what takes milliseconds


def test_a_ring_that_breaks_is_not_waited_for(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                assert await queue.request(b"good", room=4) == b"good"
                queue.add(b"bad", room=3)
                queue.driver.set_avail_index(1000)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                with pytest.raises(GuestError, match="the device has stopped ring 0, since it is broken"):
                    await asyncio.wait_for(queue.used(), PATIENCE)

    run_async(main)


def test_a_request_ends_with_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with (
                closing(await frontend.start(memory)) as queue,
                pytest.raises(ConnectionResetError, match="closed the connection"),
            ):
                await asyncio.wait_for(queue.request(b"!", room=1), PATIENCE)

    run_async(main)


def test_the_last_answers_come_before_the_end_of_the_connection(run_async: Run) -> None:
    async def main() -> None:
        device = Echo()
        async with negotiated(device) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                queue.driver.disarm()
                queue.add(b"good", room=4)
                queue.add(b"!", room=1)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                await frontend.hang_up()
                assert (await queue.used())[1] == b"good"
                with pytest.raises(ConnectionResetError):
                    await queue.used()

    run_async(main)


@pytest.mark.parametrize("packed", [False, True])
def test_any_buffers_and_descriptors_in_a_table(packed: bool, run_async: Run) -> None:  # noqa: FBT001
    async def main() -> None:
        async with connected(Echo()) as frontend:
            await frontend.negotiate(packed=packed)
            memory = SharedMemory(1 << 20)
            await frontend.share(memory)
            with closing(memory), closing(await frontend.start(memory)) as queue:
                places = [memory.allocate(4) for _ in range(4)]
                memory.map.write(places[0], b"abcd")
                memory.map.write(places[1], b"efgh")
                table = memory.allocate(64)
                buffers = [(place, 4, at > 1) for at, place in enumerate(places)]
                for where in (None, table):
                    head = queue.offer(buffers, indirect=where)
                    queue.kick()
                    assert await queue.used() == (head, b"abcdefgh")
                for _ in range(3):
                    queue.add(b"xyz", room=3, indirect=True)
                    queue.kick()
                    assert (await queue.used())[1] == b"xyz"

    run_async(main)


def test_a_device_that_returns_what_it_never_had(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                queue.driver.add([(memory.allocate(4), 4, True)])  # which `queue` knows nothing of
                queue.kick()
                with pytest.raises(DeviceError, match="has returned 0, which it did not have"):
                    await queue.used()

    run_async(main)


def test_a_device_that_has_written_more_than_there_was_room(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (_, memory):
            with closing(Queue(memory, 0, 4, 0)) as queue:
                queue.add(room=8)
                used = queue.driver.used_addr
                memory.map.write(used + 4, (0).to_bytes(4, "little") + (9).to_bytes(4, "little"))
                memory.map.write(used + 2, b"\1\0")
                assert queue.poll() == (0, bytes(8))
                assert queue.surplus == 1

    run_async(main)


def test_patience_with_a_device_ends(run_async: Run) -> None:
    device = Echo()

    async def main() -> None:
        async with negotiated(device) as (frontend, memory):
            with closing(await frontend.start(memory, 1)) as queue:
                queue.add(b"held for ever", room=4)
                queue.kick()
                await device.holding.wait()
                queue.patience = 0.01
                with pytest.raises(TimeoutError):
                    await queue.used()
                device.release()

    run_async(main)


def test_a_queue_notices_the_end_of_the_connection_on_which_it_started_again(run_async: Run) -> None:
    async def main() -> None:
        with closing(SharedMemory(1 << 20)) as memory:
            async with connected(Echo()) as first:
                await first.negotiate()
                await first.share(memory)
                queue = await first.start(memory)
                assert await queue.request(b"one", room=3) == b"one"
                base = await first.stop(queue)
            async with connected(Echo()) as second:
                await second.negotiate()
                await second.share(memory)
                await second.start_again(queue, base)
                assert await queue.request(b"two", room=3) == b"two"
                with closing(queue), pytest.raises(ConnectionResetError):
                    await queue.request(b"!", room=1)

    run_async(main)
