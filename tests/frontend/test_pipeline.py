"""Many requests on one queue, and what becomes of them when there will be no answers."""

import asyncio
import os
from contextlib import closing

import pytest

from tests.conftest import Run
from tests.sessions import Echo, negotiated
from vhostd.errors import GuestError
from vhostd.frontend import Pipeline


def test_more_requests_than_there_is_room_for(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with closing(Pipeline(await frontend.start(memory, size=8))) as line:
                data = [b"%04d" % number for number in range(100)]
                assert await asyncio.gather(*(line.request(each, 4) for each in data)) == data

    run_async(main)


def test_what_is_posted_is_done_at_a_kick(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with closing(Pipeline(await frontend.start(memory, size=8))) as line:
                answers = [line.post(b"%d" % number, 1) for number in range(4)]
                with pytest.raises(IndexError):
                    line.post(b"5", 1)
                line.kick()
                assert await asyncio.gather(*answers) == [b"0", b"1", b"2", b"3"]

    run_async(main)


def test_answers_come_in_any_order(run_async: Run) -> None:
    device = Echo()

    async def main() -> None:
        async with negotiated(device) as (frontend, memory):
            with closing(Pipeline(await frontend.start(memory, 1))) as line:
                requests = [asyncio.ensure_future(line.request(b"%d" % number, 4)) for number in range(2)]
                while len(device.held) < 2:
                    device.holding.clear()
                    await device.holding.wait()
                device.held.reverse()
                device.release()
                assert await asyncio.gather(*requests) == [b"held", b"held"]

    run_async(main)


@pytest.mark.parametrize("lasting", [False, True])
def test_a_broken_ring(lasting: bool, run_async: Run) -> None:  # noqa: FBT001
    device = Echo()

    async def main() -> None:
        async with negotiated(device) as (frontend, memory):
            queue = await frontend.start(memory, 1)
            with closing(Pipeline(queue, lasting=lasting)) as line:
                waiting = asyncio.ensure_future(line.request(b"one", 4))
                await device.holding.wait()
                queue.driver.set_avail_index(1000)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                if lasting:
                    queue.patience = 0.01
                    with pytest.raises(TimeoutError):
                        await line.request(b"two", 4)
                    assert not waiting.done()
                else:
                    with pytest.raises(GuestError):
                        await waiting
                    with pytest.raises(GuestError):
                        line.post(b"two", 4)
        device.held.clear()

    run_async(main)


def test_the_end_of_the_connection(run_async: Run) -> None:
    async def main() -> None:
        async with negotiated(Echo()) as (frontend, memory):
            with (
                closing(Pipeline(await frontend.start(memory))) as line,
                pytest.raises(ConnectionResetError),
            ):
                await line.request(b"!", 1)

    run_async(main)


def test_who_waits_when_it_is_closed_is_cancelled(run_async: Run) -> None:
    device = Echo()

    async def main() -> None:
        async with negotiated(device) as (frontend, memory):
            line = Pipeline(await frontend.start(memory, 1))
            waiting = asyncio.ensure_future(line.request(b"one", 4))
            await device.holding.wait()
            line.close()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            line.close()
            device.release()

    run_async(main)
