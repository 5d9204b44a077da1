import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.devices.vhost_user_input.fakes import SYN, FakeChain, FakeEventq, pack
from vhost_user_input.backlog import Backlog
from vhost_user_input.description import keyboard
from vhost_user_input.feed import Feed
from vhost_user_input.state import State
from vhostd import BadRequest

PRESS, RELEASE = (1, 30, 1), (1, 30, 0)
MOVE = (2, 0, 1)


def make(capacity: int = 16384) -> Feed:
    return Feed(Backlog(slots=False, capacity=capacity), keyboard())


@asynccontextmanager
async def served(feed: Feed, queue: FakeEventq) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.serve(queue.virtqueue))
    try:
        yield
    finally:
        queue.stop()
        task.cancel()
        await asyncio.wait([task])


def test_a_report_above_the_rings_size_arrives_whole() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=4)
        report = [(2, code, 1) for code in range(12)]
        async with served(feed, queue):
            await feed.room()
            feed.deliver(pack(*report, SYN))
            assert await queue.received(13) == [*report, SYN]

    asyncio.run(main())


def test_a_slow_guest_gets_the_rest_as_it_gives_buffers() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=2)
        queue.eager = False
        async with served(feed, queue):
            await feed.room()
            feed.deliver(pack(PRESS, (1, 31, 1), SYN))
            feed.deliver(pack(RELEASE, SYN))
            assert await queue.received(2) == [PRESS, (1, 31, 1)]
            for count in (3, 4, 5):
                queue.add(FakeChain(writable=8))
                await queue.received(count)
            assert queue.events == [PRESS, (1, 31, 1), SYN, RELEASE, SYN]

    asyncio.run(main())


def test_there_is_no_room_until_the_driver_gives_buffers() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=0)
        async with served(feed, queue):
            room = asyncio.create_task(feed.room())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not room.done()
            feed.deliver(pack(PRESS, SYN))  # nobody listens: it is only remembered
            feed.deliver(pack(MOVE, SYN))
            queue.add(FakeChain(writable=8))
            await room
            assert await queue.received(2) == [PRESS, SYN]

    asyncio.run(main())


def test_no_room_while_half_of_the_backlog_is_taken() -> None:
    async def main() -> None:
        feed, queue = make(capacity=8), FakeEventq(size=1)
        queue.eager = False
        async with served(feed, queue):
            await feed.room()
            feed.deliver(pack(*[MOVE] * 5, SYN))
            room = asyncio.create_task(feed.room())
            await queue.received(1)
            assert not room.done()
            queue.add(FakeChain(writable=8))
            await room

    asyncio.run(main())


def test_after_a_stop_the_next_start_brings_the_state() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq()
        async with served(feed, queue):
            await feed.room()
            feed.deliver(pack(PRESS, SYN))
            await queue.received(2)
        feed.deliver(pack(MOVE, (1, 31, 1), SYN))
        again = FakeEventq()
        async with served(feed, again):
            assert await again.received(3) == [PRESS, (1, 31, 1), SYN]

    asyncio.run(main())


def test_the_handler_ends_with_the_ring() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=0)
        task = asyncio.create_task(feed.serve(queue.virtqueue))
        await asyncio.sleep(0)
        queue.stop()
        await task

    asyncio.run(main())


def test_a_state_that_was_read_anew() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq()
        async with served(feed, queue):
            await feed.room()
            state = State()
            state.set(1, 30, 1)
            feed.replace(state)
            assert await queue.received(4) == [(0, 3, 0), SYN, PRESS, SYN]

    asyncio.run(main())


def test_a_buffer_without_room_for_an_event_breaks_the_ring() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=1)
        queue.add(FakeChain(writable=7))
        task = asyncio.create_task(feed.serve(queue.virtqueue))
        await feed.room()
        feed.deliver(pack(PRESS, SYN))
        with pytest.raises(BadRequest):
            await task
        assert queue.events == [PRESS]

    asyncio.run(main())


def test_ten_thousand_events_at_once() -> None:
    async def main() -> float:
        feed, queue = make(), FakeEventq(size=4)
        async with served(feed, queue):
            await feed.room()
            began = time.process_time()
            for _ in range(5000):
                feed.deliver(pack(MOVE, SYN))
            await queue.received(10_000)
            assert queue.events == [MOVE, SYN] * 5000
            return time.process_time() - began

    assert asyncio.run(main()) < 2.0  # seconds of the processor, which a busy machine leaves as they are


def test_whoever_watches_knows_when_the_driver_listens() -> None:
    async def main() -> None:
        feed, queue, heard = make(), FakeEventq(size=0), list[bool]()
        feed.watch(heard.append)
        async with served(feed, queue):
            await asyncio.sleep(0)
            assert heard == [False]
            queue.add(FakeChain(writable=8))
            await feed.room()
            assert heard == [False, True]
            feed.watch(heard.append)
            assert heard == [False, True, True]
        assert heard == [False, True, True, False, False]

    asyncio.run(main())


def test_at_the_end_nothing_stays_pressed() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq(size=2)
        queue.eager = False
        origin = feed.origin()
        async with served(feed, queue):
            await feed.room()
            origin.deliver(pack(PRESS, SYN))
            await queue.received(2)
            end = asyncio.create_task(feed.end())
            await asyncio.sleep(0)
            origin.deliver(pack((1, 31, 1), SYN))
            origin.replace(State())
            assert not end.done()
            queue.add(FakeChain(writable=8))
            queue.add(FakeChain(writable=8))
            await end
            assert queue.events == [PRESS, SYN, RELEASE, SYN]
            origin.leave()

    asyncio.run(main())


def test_the_end_without_a_guest() -> None:
    async def main() -> None:
        feed = make()
        feed.origin().deliver(pack(PRESS, SYN))
        await feed.end()

    asyncio.run(main())


def test_a_driver_that_another_program_served_hears_of_all_keys() -> None:
    async def main() -> None:
        feed, queue = make(), FakeEventq()
        feed.doubt()
        async with served(feed, queue):
            await queue.received(len(keyboard().codes[1]) + 1)
            assert {event[2] for event in queue.events} == {0}

    asyncio.run(main())
