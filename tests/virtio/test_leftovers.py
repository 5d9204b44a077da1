"""Leftovers: chains that were given up are waited for until each is back, or forgotten."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.conftest import Run
from tests.virtio.test_virtqueue import Bench
from vhostd.frontend import SharedMemory
from vhostd.ring import Chain
from vhostd.virtio.leftovers import Leftovers


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(1 << 17)
    yield memory
    memory.close()


def taken(bench: Bench, count: int) -> list[Chain]:
    """Chains of a queue that stopped then, and gave them up."""
    bench.offer(count)
    chains = [chain for _ in range(count) if (chain := bench.queue.pop()) is not None]
    bench.queue.stop()
    bench.queue.give_up()
    return chains


def test_without_chains_nothing_is_left(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers = Leftovers()
        await leftovers.gone()
        bench = Bench(memory)
        taken(bench, 0)
        leftovers.add(bench.queue)
        assert leftovers.requests == 0
        await leftovers.gone()

    run_async(main)


def test_those_of_all_queues_are_waited_for(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers = Leftovers()
        first, second = Bench(memory), Bench(memory)
        ours, theirs = taken(first, 2), taken(second, 1)
        for bench in (first, second):
            leftovers.add(bench.queue)
        assert leftovers.requests == 3
        waiting = [asyncio.create_task(leftovers.gone()) for _ in range(2)]  # each ring that starts does
        second.queue.push(theirs.pop())
        first.queue.push(ours.pop())
        await turns()
        assert leftovers.requests == 1
        assert not any(each.done() for each in waiting)
        first.queue.push(ours.pop())
        await asyncio.gather(*waiting)
        assert leftovers.requests == 0
        assert first.used() == second.used() == 0

    run_async(main)


def test_what_is_added_meanwhile_is_waited_for_as_well(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers = Leftovers()
        first, second = Bench(memory), Bench(memory)
        ours, theirs = taken(first, 1), taken(second, 1)
        leftovers.add(first.queue)
        waiting = asyncio.create_task(leftovers.gone())
        await turns()
        leftovers.add(second.queue)
        first.queue.push(ours.pop())
        await turns()
        assert not waiting.done()
        second.queue.push(theirs.pop())
        await waiting

    run_async(main)


def test_a_queue_is_forgotten_with_its_last_request(memory: SharedMemory, run_async: Run) -> None:
    """It keeps a guest's memory mapped; and no ring need ever start for that."""

    async def main() -> None:
        leftovers, bench = Leftovers(), Bench(memory)
        chains = taken(bench, 2)
        queue = weakref.ref(bench.queue)
        leftovers.add(bench.queue)
        del bench
        assert leftovers.requests == 2
        chains.pop()
        await asyncio.sleep(0)
        assert queue() is not None
        chains.pop()
        await asyncio.sleep(0)
        gc.collect()  # the bench and its queue know each other
        assert queue() is None
        assert leftovers.requests == 0

    run_async(main)


def test_what_only_a_reference_cycle_holds_is_gone(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers = Leftovers()
        bench = Bench(memory)
        cycle: list[object] = [*taken(bench, 1)]
        cycle.append(cycle)
        del cycle
        leftovers.add(bench.queue)
        assert leftovers.requests == 1
        await leftovers.gone()
        assert leftovers.requests == 0

    run_async(main)


async def turns() -> None:
    """Lets everybody go on who can."""
    for _ in range(5):
        await asyncio.sleep(0)
