"""What earlier rings have left behind: waited for, and then forgotten."""

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from tests.conftest import Run
from tests.test_virtqueue import Bench
from vhostd.frontend import SharedMemory
from vhostd.leftovers import Leftovers


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(1 << 16)
    yield memory
    memory.close()


def left_behind(bench: Bench, count: int) -> list[object]:
    """Chains that are out when their ring has stopped."""
    bench.offer(count)
    chains: list[object] = [bench.queue.pop() for _ in range(count)]
    bench.queue.stop()
    bench.queue.give_up()
    return chains


def test_a_queue_is_forgotten_with_its_last_request(memory: SharedMemory, run_async: Run) -> None:
    """It keeps a guest's memory mapped; and no ring need ever start for that."""

    async def main() -> None:
        leftovers, bench = Leftovers(), Bench(memory)
        chains = left_behind(bench, 2)
        queue = weakref.ref(bench.queue)
        leftovers.add(bench.queue)
        del bench
        assert leftovers.requests == 2
        chains.pop()
        await asyncio.sleep(0)
        assert queue() is not None
        chains.pop()
        await asyncio.sleep(0)
        gc.collect()
        assert queue() is None
        assert leftovers.requests == 0

    run_async(main)


def test_all_who_wait_go_on_when_the_last_one_is_gone(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers, benches = Leftovers(), [Bench(memory) for _ in range(3)]
        chains = [left_behind(bench, 1) for bench in benches]
        for bench in benches:
            leftovers.add(bench.queue)
        waiting = [asyncio.create_task(leftovers.gone()) for _ in range(3)]
        for number in (1, 0, 2):
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            chains[number].clear()
        async with asyncio.timeout(1):
            await asyncio.gather(*waiting)

    run_async(main)


def test_garbage_is_not_waited_for(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        leftovers, bench = Leftovers(), Bench(memory)
        chains = left_behind(bench, 1)
        chains.append(chains)
        leftovers.add(bench.queue)
        del chains
        assert leftovers.requests == 0

    run_async(main)
