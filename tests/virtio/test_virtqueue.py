"""The device's end of a ring: batching of interrupts, turns for the event loop, and the stop rule."""

import asyncio
import errno
import gc
import itertools
import socket
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from unittest.mock import Mock

import pytest

from tests.conftest import PATIENCE, Run
from vhostd.errors import BadRing, MemoryLost
from vhostd.frontend import SharedMemory
from vhostd.program.metrics.meter import Meters
from vhostd.ring import Chain, Outcome, Shortcut
from vhostd.ring.driver import SplitDriver
from vhostd.ring.split import SplitRing
from vhostd.virtio import virtqueue
from vhostd.virtio.virtqueue import POP_BURST, MakeQueue, Virtqueue

SIZE = 256
INDIRECT_DESC = 1 << 28
IN_ORDER = 1 << 35
PIECES_OF_EFFORT = 128  # of a chain that takes twice as long as the shortest
LATE = 0.5  # seconds
PUSH_BATCH = 32  # what interrupts are batched to at most


class Bench:
    """A virtqueue over a ring, with its driver and a count of its interrupts; made on the running loop."""

    def __init__(
        self,
        memory: SharedMemory,
        size: int = SIZE,
        make_queue: MakeQueue = Virtqueue,
        *,
        pieces: int = 1,
        features: int = 0,
    ) -> None:
        """Its chains have so many pieces."""
        footprint = SplitRing.footprint(size)
        self.driver = SplitDriver(
            memory.map, memory.allocate(sum(footprint) + 8, 4096), size, features=features
        )
        addresses = (self.driver.desc_addr, self.driver.avail_addr, self.driver.used_addr)
        windows = [memory.map.guest(addr, size) for addr, size in zip(addresses, footprint, strict=True)]
        desc, avail, used = windows
        self.ring = SplitRing(size, desc, avail, used, memory.map, features=INDIRECT_DESC | features, base=0)
        self.interrupts = 0
        self.failures: list[Exception] = []
        self.queue = make_queue(0, self.ring, self._interrupt, self.failures.append)
        self.queue.enable(on=True)
        self._buffers = [(memory.allocate(16), 16, True)] * pieces
        self._table = memory.allocate(16 * pieces) if pieces > 1 else None

    def offer(self, count: int = 1) -> None:
        for _ in range(count):
            self.driver.add(self._buffers, indirect=self._table)
        self.queue.kicked()

    def offer_pieces(self, *chains: int) -> None:
        """Offers chains of so many pieces each, without a kick."""
        for pieces in chains:
            self.driver.add([(*self._buffers[0][:1], 1, True)] * pieces)

    def used(self) -> int:
        """How many chains the driver gets back now."""
        count = 0
        while self.driver.used() is not None:
            count += 1
        return count

    def _interrupt(self) -> None:
        self.interrupts += 1


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(1 << 16)
    yield memory
    memory.close()


def interrupts_at(bench: Bench, chains: int) -> list[int]:
    """After which of so many chains, pushed in one turn of the event loop, the driver was interrupted."""
    found = []
    bench.offer(chains)
    for count in range(1, chains + 1):
        before = bench.interrupts
        chain = bench.queue.pop()
        assert chain is not None
        bench.queue.push(chain)
        if bench.interrupts > before:
            found.append(count)
    return found


def test_interrupts_grow_rarer_in_a_batch(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        for _ in range(2):  # each turn begins anew
            before = bench.interrupts
            assert interrupts_at(bench, 12) == [1, 3, 6, 10]
            assert bench.used() == 12
            await asyncio.sleep(0)
            assert bench.interrupts - before == 5, "one for the rest"

    run_async(main)


def test_a_long_batch_gets_its_interrupts_before_it_ends(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        found: list[int] = []
        for part in range(16):  # that the ring has room for
            found += [SIZE // 2 * part + count for count in interrupts_at(bench, SIZE // 2)]
            bench.used()
        gaps = [later - earlier for earlier, later in pairwise([0, *found])]
        assert gaps[:PUSH_BATCH] == list(range(1, PUSH_BATCH + 1))
        assert set(gaps[PUSH_BATCH:]) == {PUSH_BATCH}

    run_async(main)


def test_the_event_loop_gets_a_turn_under_load(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer(POP_BURST + 1)
        served = 0
        seen = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(served))
        async for chain in bench.queue:
            served += 1
            bench.queue.push(chain)
            if served > POP_BURST:
                break
        assert seen
        assert seen[0] <= POP_BURST

    run_async(main)


def test_the_event_loop_gets_turns_whichever_way_a_queue_is_read(
    memory: SharedMemory, run_async: Run
) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer(SIZE)
        turns = served = 0
        over = False

        async def others() -> None:
            nonlocal turns
            while not over:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        while served < 20 * POP_BURST and await bench.queue.ready():
            while (chain := bench.queue.pop()) is not None:
                served += 1
                bench.queue.push(chain)
                bench.used()
                bench.offer()
                if not served % 8:
                    break
        over = True
        await task
        assert turns >= 20 - 1, "one after each burst but the last"

    run_async(main)


def test_chains_that_take_longer_make_a_shorter_burst(memory: SharedMemory, run_async: Run) -> None:
    """Each of these has the ring walk as many descriptors as many chains of an ordinary guest."""

    async def main() -> None:
        bench = Bench(memory, pieces=SIZE)
        for _ in range(POP_BURST):
            bench.offer()
        served = 0
        seen = []
        asyncio.get_running_loop().call_soon(lambda: seen.append(served))
        async for chain in bench.queue:
            served += 1
            bench.queue.push(chain)
            if served == POP_BURST:
                break
        assert seen
        assert seen[0] <= POP_BURST // (1 + SIZE // PIECES_OF_EFFORT) + 1

    run_async(main)


def test_a_chain_whose_shortcut_fails_is_not_kept(memory: SharedMemory, run_async: Run) -> None:
    """Not in the frames of the exception either: the next ring would wait for it for ever."""

    class Failing(Virtqueue):
        def _serve(self, shortcut: Shortcut, most: int) -> Chain | None:
            chain = self.ring.pop()
            if chain is not None:
                raise MemoryLost("in the middle of it")
            return chain

    async def main() -> None:
        bench = Bench(memory, make_queue=Failing)
        bench.queue.use_shortcut(Shortcut())

        async def serve() -> None:
            with suppress(MemoryLost):
                async for _ in bench.queue:
                    pass

        task = asyncio.create_task(serve())
        await asyncio.sleep(0)
        bench.offer()
        await task
        gc.collect()
        assert bench.queue.in_flight == 0

    run_async(main)


def test_all_queues_together_poll_as_long_as_one(
    memory: SharedMemory, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one turn; in the next one they poll again."""
    clock = itertools.count(step=1e-4)

    async def main() -> None:
        benches = [Bench(memory) for _ in range(4)]
        for _ in range(2):
            for bench in benches:
                bench.queue.poll(1e-3)
                bench.offer()
                chain = await anext(bench.queue)
                bench.queue.push(chain)
            begin = next(clock)
            waiting = [asyncio.create_task(bench.queue.ready()) for bench in benches]
            await asyncio.sleep(0)
            assert 1e-3 < next(clock) - begin < 3e-3
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)

    with monkeypatch.context() as patched:
        patched.setattr("vhostd.virtio.virtqueue.time.perf_counter", lambda: next(clock))
        run_async(main)


def test_the_loop_waits_for_a_kick_and_ends_with_the_ring(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        served = asyncio.Semaphore(0)

        async def serve() -> None:
            async for chain in bench.queue:
                bench.queue.push(chain)
                served.release()

        serving = asyncio.create_task(serve())
        for _ in range(3):
            bench.offer()
            await served.acquire()
        bench.queue.stop()
        await serving
        bench.offer()
        assert bench.queue.pop() is None
        assert not await bench.queue.ready()

    run_async(main)


def test_a_disabled_queue_gives_nothing_and_takes_back(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer(2)
        chain = bench.queue.pop()
        assert chain is not None
        bench.queue.enable(on=False)
        assert bench.queue.pop() is None
        bench.queue.push(chain)
        assert bench.used() == 1
        bench.queue.enable(on=True)
        assert await bench.queue.ready()

    run_async(main)


def test_quiesce_waits_for_every_chain_in_any_order(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer(2)
        first, second = bench.queue.pop(), bench.queue.pop()
        assert first is not None
        assert second is not None
        bench.queue.stop()
        quiescing = asyncio.create_task(bench.queue.quiesce())
        await asyncio.sleep(0)
        bench.queue.push(second)
        await asyncio.sleep(0)
        assert not quiescing.done()
        bench.queue.push(first)
        await quiescing
        assert bench.used() == 2
        assert bench.interrupts

    run_async(main)


def test_quiesce_under_in_order_waits_for_nothing_that_was_dropped(
    memory: SharedMemory, run_async: Run
) -> None:
    async def main() -> None:
        bench = Bench(memory, features=IN_ORDER)
        bench.offer(3)
        first, second, third = (bench.queue.pop() for _ in range(3))
        assert first is not None
        assert second is not None
        assert third is not None
        bench.queue.push(second)
        bench.queue.push(third)
        bench.queue.stop()
        quiescing = asyncio.create_task(bench.queue.quiesce())
        await turns()
        assert not quiescing.done()
        del first
        async with asyncio.timeout(PATIENCE):
            await quiescing
        assert bench.used() == 2
        assert bench.interrupts

    run_async(main)


def test_chains_that_were_given_up_never_reach_the_driver(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer()
        chain = bench.queue.pop()
        assert chain is not None
        bench.queue.stop()
        bench.queue.give_up()
        await bench.queue.quiesce()
        bench.queue.push(chain)
        assert not bench.used()

    run_async(main)


def test_a_chain_is_pushed_once(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.offer()
        chain = bench.queue.pop()
        assert chain is not None
        bench.queue.push(chain)
        with pytest.raises(ValueError, match="not in flight"):
            bench.queue.push(chain)

    run_async(main)


def test_a_broken_ring_is_the_handler_s_exception(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.driver.set_avail_index(SIZE + 1)
        with pytest.raises(BadRing):
            await anext(bench.queue)

    run_async(main)


# --- Chains that are given up, or forgotten ---------------------------------------------------------------


async def turns() -> None:
    """Lets everybody go on who can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def emptied(queue: Virtqueue) -> None:
    """Waits until no chain of the queue is out."""
    event = asyncio.Event()
    queue.when_emptied(event.set)
    await event.wait()


def taken(bench: Bench, count: int = 1) -> list[Chain]:
    """Chains that the device has now."""
    bench.offer(count)
    return [chain for _ in range(count) if (chain := bench.queue.pop()) is not None]


def test_what_is_given_up_is_waited_for_by_who_needs_it_empty(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        chains = taken(bench, 2)
        bench.queue.stop()
        quiescing = asyncio.create_task(bench.queue.quiesce())
        empty = asyncio.create_task(emptied(bench.queue))
        await turns()
        assert not quiescing.done()
        bench.queue.give_up()
        await quiescing
        await turns()
        assert not empty.done()
        for chain in chains:
            assert chain.given_up
            bench.queue.push(chain)
        await empty
        assert not bench.used()
        assert not bench.interrupts

    run_async(main)


@pytest.mark.parametrize("wait", [Virtqueue.quiesce, emptied])
def test_a_chain_that_is_forgotten_keeps_nobody_waiting(
    memory: SharedMemory, run_async: Run, wait: Callable[[Virtqueue], Coroutine[None, None, None]]
) -> None:
    async def main() -> None:
        bench = Bench(memory)
        chains = taken(bench)
        bench.queue.stop()
        waiting = asyncio.create_task(wait(bench.queue))
        await turns()
        assert not waiting.done()
        thread = threading.Thread(target=chains.clear)  # whoever lets go of it
        thread.start()
        await waiting
        thread.join()
        assert not bench.used()

    run_async(main)


def test_a_failure_gives_up_and_is_told(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        [chain] = taken(bench)
        error = ZeroDivisionError()
        bench.queue.fail(error)
        assert bench.failures == [error]
        assert chain.given_up
        assert bench.queue.pop() is None
        await bench.queue.quiesce()
        bench.queue.push(chain)
        await emptied(bench.queue)

    run_async(main)


def test_a_chain_may_be_forgotten_after_the_event_loop(memory: SharedMemory) -> None:
    async def main() -> list[Chain]:
        bench = Bench(memory)
        chains = taken(bench)
        bench.queue.stop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await emptied(bench.queue)
        return chains

    chains = asyncio.run(main())
    chains.clear()


# --- More pieces than there may be -------------------------------------------------------------------------


class Holding(Shortcut):
    """Leaves each chain: what derives from it in Python is not asked."""


def serving(bench: Bench, held: list[Chain], *, short: bool) -> asyncio.Task[None]:
    """A handler that holds what it gets."""

    async def serve() -> None:
        if short:
            bench.queue.use_shortcut(Holding())
        async for chain in bench.queue:
            held.append(chain)
            del chain

    return asyncio.create_task(serve())


@pytest.mark.parametrize("short", [False, True], ids=["plain", "shortcut"])
@pytest.mark.parametrize("make_queue", [Virtqueue, Meters().make_queue], ids=["unmetered", "metered"])
@pytest.mark.parametrize("forgets", [False, True], ids=["push", "forget"])
def test_a_queue_full_of_pieces_goes_on_by_itself(
    make_queue: MakeQueue, run_async: Run, *, short: bool, forgets: bool
) -> None:
    """No kick comes: the driver has told of all its chains already."""
    memory = SharedMemory(2 << 20)

    async def main() -> None:
        bench = Bench(memory, 32768, make_queue)
        held: list[Chain] = []
        task = serving(bench, held, short=short)
        await turns()
        bench.offer_pieces(8000, 9000, 100, 200)
        bench.queue.kicked()
        await turns()
        assert [chain.writable for chain in held] == [8000, 9000]
        bench.queue.kicked()  # which changes nothing
        await turns()
        assert len(held) == 2
        give_back(bench, held, 8000, forgets=forgets)
        await turns()
        assert [chain.writable for chain in held] == [9000]  # more than half are out still
        give_back(bench, held, 9000, forgets=forgets)
        await turns()
        assert [chain.writable for chain in held] == [100, 200]
        for chain in held:
            bench.queue.push(chain)
        bench.offer_pieces(5)
        bench.queue.kicked()
        await turns()
        assert held.pop().writable == 5
        held.clear()
        bench.queue.stop()
        await task

    run_async(main)
    memory.close()


def give_back(bench: Bench, held: list[Chain], pieces: int, *, forgets: bool) -> None:
    """Pushes a chain, or lets go of it in another thread."""
    [at] = [i for i, chain in enumerate(held) if chain.writable == pieces]
    if not forgets:
        bench.queue.push(held.pop(at))
        return
    thread = threading.Thread(target=held.pop, args=(at,))
    thread.start()
    thread.join()


def test_a_full_queue_that_stops_gives_nothing_more(run_async: Run) -> None:
    memory = SharedMemory(2 << 20)

    async def main() -> None:
        bench = Bench(memory, 32768)
        held: list[Chain] = []
        task = serving(bench, held, short=False)
        await turns()
        bench.offer_pieces(20000, 1)
        bench.queue.kicked()
        await turns()
        bench.queue.stop()
        await task
        bench.queue.push(held.pop())
        await turns()
        assert not held
        await bench.queue.quiesce()
        assert bench.used() == 1

    run_async(main)
    memory.close()


# --- Chains that are not used after all, and those that are seen at once -----------------------------------


def test_what_is_put_back_is_given_again(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        first, second = taken(bench, 2)
        with pytest.raises(ValueError, match="popped last"):
            bench.queue.put_back(first)
        bench.queue.put_back(second)
        assert bench.queue.in_flight == 1
        assert await bench.queue.ready()
        again = bench.queue.pop()
        assert again is not None
        assert again.head == second.head
        bench.queue.push_all([again, first])
        assert [bench.driver.used(), bench.driver.used()] == [(again.head, 0), (first.head, 0)]
        await turns()
        assert bench.interrupts

    run_async(main)


@pytest.mark.parametrize("how", ["put_back", "push_all"])
def test_what_was_given_up_is_only_dropped(memory: SharedMemory, run_async: Run, how: str) -> None:
    async def main() -> None:
        bench = Bench(memory)
        first, second = taken(bench, 2)
        bench.queue.stop()
        bench.queue.give_up()
        if how == "push_all":
            bench.queue.push_all([first, second])
        else:
            bench.queue.put_back(first)
            bench.queue.put_back(second)
        await emptied(bench.queue)
        assert not bench.used()

    run_async(main)


def test_a_batch_is_paced_as_its_chains_are(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        chains = taken(bench, 3)
        bench.queue.push_all(chains)
        assert bench.interrupts == 1
        bench.queue.push_all(taken(bench))
        assert bench.interrupts == 1
        await turns()
        assert bench.interrupts == 2

    run_async(main)


# --- Ready ------------------------------------------------------------------------------------------------


class Leaving(Shortcut):
    """Leaves every second chain, and ends the others."""

    def __init__(self) -> None:
        self.served = 0

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        return Outcome.DONE if self.served % 2 else Outcome.LEFT


@pytest.mark.parametrize("make_queue", [Virtqueue, Meters().make_queue], ids=["unmetered", "metered"])
def test_ready_is_true_of_what_a_shortcut_left(
    memory: SharedMemory, run_async: Run, make_queue: MakeQueue
) -> None:
    async def main() -> None:
        bench = Bench(memory, make_queue=make_queue)
        bench.queue.use_shortcut(Leaving())
        waiting = asyncio.create_task(bench.queue.ready())
        await turns()
        bench.offer(2)
        assert await waiting
        assert await bench.queue.ready()
        chain = bench.queue.pop()
        assert chain is not None
        assert chain.head == 1
        bench.queue.push(chain)
        assert bench.used() == 2

    run_async(main)


def test_ready_is_true_also_of_what_the_driver_takes_back(memory: SharedMemory, run_async: Run) -> None:
    """It must not: an index that has been seen counts."""

    async def main() -> None:
        bench = Bench(memory)
        bench.offer()
        assert await bench.queue.ready()
        bench.driver.set_avail_index(0)
        chain = bench.queue.pop()
        assert chain is not None
        bench.queue.push(chain)

    run_async(main)


def test_a_broken_ring_is_not_ready(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        bench.driver.set_avail_index(SIZE + 1)
        with pytest.raises(BadRing):
            await bench.queue.ready()

    run_async(main)


@pytest.mark.parametrize("features", [0, 1 << 29])
def test_a_driver_that_was_armed_kicks_once(memory: SharedMemory, run_async: Run, features: int) -> None:
    """Kicks are asked for while the queue waits, and not while it is served."""

    async def main() -> None:
        bench = Bench(memory, features=features)
        waiting = asyncio.create_task(bench.queue.ready())
        await turns()
        bench.driver.add([(0, 1, True)])
        assert bench.driver.must_kick()
        bench.queue.kicked()
        assert await waiting
        bench.driver.add([(0, 1, True)])
        assert not bench.driver.must_kick()

    run_async(main)


class Ending(Shortcut):
    """Ends every chain."""

    def serve(self, queue: object, chain: Chain) -> int:
        return Outcome.DONE


def test_a_shortcut_may_spend_more_than_a_burst_while_the_handler_sleeps(
    memory: SharedMemory, run_async: Run
) -> None:
    """The last chain of a burst may take long."""

    async def main() -> None:
        bench = Bench(memory, pieces=2 * PIECES_OF_EFFORT)  # 3 each, of which no whole number is a burst
        bench.queue.use_shortcut(Ending())

        async def handle() -> None:
            async for _ in bench.queue:
                pass

        handler = asyncio.create_task(handle())
        await turns()
        bench.offer(SIZE)
        used = 0
        while used < SIZE:
            await turns()
            used += bench.used()
        bench.queue.stop()
        await handler
        assert not bench.failures

    run_async(main)


# --- Interrupts that may be late --------------------------------------------------------------------------


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stands in for the class of alarms, of which there is one. It rings when its `call` is called."""
    alarms = Mock()
    monkeypatch.setattr(virtqueue, "Alarm", alarms)
    return alarms


@contextmanager
def coalescing(bench: Bench) -> Iterator[asyncio.Task[None]]:
    """The handler of a queue the shortcut of which ends all chains, and whose interrupts may be late."""

    async def handle() -> None:
        bench.queue.use_shortcut(Ending())
        bench.queue.coalesce(LATE)
        async for _ in bench.queue:
            pass

    handler = asyncio.create_task(handle())
    yield handler
    bench.queue.stop()
    assert not bench.failures


def test_interrupts_may_be_late(memory: SharedMemory, run_async: Run, alarms: Mock) -> None:
    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            await turns()
            for _ in range(3):
                bench.offer()
                await turns()
            assert bench.used() == 3, "the chains are back at once"
            assert bench.interrupts == 0
            seconds, ring = alarms.call_args.args
            assert seconds == LATE
            assert alarms.return_value.set.called
            ring()
            ring()
            assert bench.interrupts == 1
        await handler
        assert alarms.return_value.close.call_count == 1

    run_async(main)


def test_interrupts_are_not_late_when_a_quarter_of_the_queue_waits(
    memory: SharedMemory, run_async: Run, alarms: Mock
) -> None:
    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            await turns()
            bench.offer(SIZE // 4 - 1)
            await turns()
            assert bench.interrupts == 0
            bench.offer()
            await turns()
            assert bench.interrupts == 1
        await handler

    run_async(main)


def test_interrupts_that_are_late_are_not_lost_when_the_ring_stops(
    memory: SharedMemory, run_async: Run, alarms: Mock
) -> None:
    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            await turns()
            bench.offer()
            assert bench.interrupts == 0
        await handler
        await bench.queue.quiesce()
        assert bench.interrupts == 1
        assert alarms.return_value.close.call_count == 1

    run_async(main)


@pytest.mark.parametrize("asleep", [True, False], ids=["asleep", "awake"])
def test_interrupts_that_are_late_are_not_lost_when_the_driver_breaks_the_ring(
    memory: SharedMemory,
    run_async: Run,
    alarms: Mock,
    asleep: bool,  # noqa: FBT001
) -> None:
    """As `QueueRunner` does it: who waits for the handler fails the queue."""

    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            if asleep:
                await turns()
            bench.driver.add(bench._buffers)
            bench.driver.offer(SIZE)
            bench.driver.publish()
            bench.queue.kicked()
            with pytest.raises(BadRing) as raised:
                await handler
            bench.queue.fail(raised.value)
            assert bench.failures.pop() is raised.value
            assert (bench.used(), bench.interrupts) == (1, 1)
            assert alarms.return_value.close.call_count == 1

    run_async(main)


def test_without_an_fd_interrupts_are_not_late(memory: SharedMemory, run_async: Run, alarms: Mock) -> None:
    alarms.configure_mock(side_effect=OSError(errno.EMFILE, "no fds"))

    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            await turns()
            bench.offer()
            assert bench.interrupts == 1
        await handler

    run_async(main)


def test_a_queue_that_has_stopped_takes_no_alarm(memory: SharedMemory, run_async: Run, alarms: Mock) -> None:
    """Its ring may break before its handler begins."""

    async def main() -> None:
        bench = Bench(memory)
        bench.queue.stop()
        bench.queue.coalesce(LATE)
        assert not alarms.called

    run_async(main)


def test_interrupts_may_be_late_by_another_time(memory: SharedMemory, run_async: Run, alarms: Mock) -> None:
    """The alarm of the time before is not left behind."""

    async def main() -> None:
        bench = Bench(memory)
        with coalescing(bench) as handler:
            await turns()
            bench.queue.coalesce(2 * LATE)
            assert alarms.call_args.args[0] == 2 * LATE
            assert alarms.return_value.close.call_count == 1
        await handler
        assert alarms.return_value.close.call_count == 2

    run_async(main)


# --- Pumps ------------------------------------------------------------------------------------------------


class Receiver(Shortcut):
    """A toy network card: a datagram of a socket into each chain."""

    def __init__(self, source: socket.socket) -> None:
        self.source = source
        self.served = 0

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        try:
            chain.recvmsg(self.source.fileno(), chain.writable, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return Outcome.LEFT
        return Outcome.DONE


class Wire:
    """A bench with a pump on one end of a pair of sockets."""

    def __init__(
        self, memory: SharedMemory, make_queue: MakeQueue = Virtqueue, pump: type[Receiver] = Receiver
    ) -> None:
        self.bench = Bench(memory, make_queue=make_queue)
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.pump = pump(self.near)
        self.task = asyncio.create_task(self.bench.queue.pump(self.pump, self.near.fileno()))

    def send(self, count: int) -> None:
        for i in range(count):
            self.far.send(bytes(1 + i % 16))

    def lengths(self) -> list[int]:
        """How much is in the chains that the driver gets back now."""
        return [length for _, length in iter(self.bench.driver.used, None)]

    async def close(self) -> None:
        """Stops the ring, as a transport does."""
        self.bench.queue.stop()
        await self.bench.queue.quiesce()
        await self.task
        for end in (self.near, self.far):
            end.close()


async def until(true: Callable[[], bool]) -> None:
    """Lets the event loop go on until this is true."""
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0)


@pytest.mark.parametrize("make_queue", [Virtqueue, Meters().make_queue], ids=["unmetered", "metered"])
def test_a_pump_fills_chains_when_the_host_has_something(
    memory: SharedMemory, run_async: Run, make_queue: MakeQueue
) -> None:
    async def main() -> None:
        wire = Wire(memory, make_queue)
        wire.bench.offer(10)
        await turns()
        assert not wire.pump.served
        wire.send(3)
        await until(lambda: wire.pump.served >= 4)
        assert wire.lengths() == [1, 2, 3]
        assert wire.bench.interrupts
        assert wire.bench.queue.in_flight == 0
        wire.send(1)
        await until(lambda: wire.pump.served >= 6)
        assert wire.lengths() == [1]
        await wire.close()

    run_async(main)


def test_a_pump_may_be_had_at_once(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory)
        wire.bench.queue.pump_now()  # there are no chains
        wire.bench.offer(3)
        await turns()
        wire.send(2)
        wire.bench.queue.pump_now()
        assert wire.lengths() == [1, 2]
        assert wire.bench.interrupts
        wire.send(2)
        wire.bench.queue.pump_now()
        await turns()
        wire.bench.queue.pump_now()
        assert wire.lengths() == [1]
        wire.bench.offer(1)
        await until(lambda: wire.lengths() == [2])
        await wire.close()

    run_async(main)


def test_a_pump_waits_for_chains_and_leaves_the_fd_alone_meanwhile(
    memory: SharedMemory, run_async: Run
) -> None:
    async def main() -> None:
        wire = Wire(memory)
        wire.send(5)
        await turns()
        wire.bench.offer(2)
        await until(lambda: wire.bench.driver.used_index == 2)
        await turns()
        served = wire.pump.served
        await turns()
        assert wire.pump.served == served == 2
        assert wire.bench.driver.must_kick() or wire.bench.ring.arm() is False
        wire.bench.offer(10)
        await until(lambda: wire.bench.driver.used_index == 5)
        assert wire.lengths() == [1, 2, 3, 4, 5]
        await wire.close()

    run_async(main)


def test_a_kick_has_a_pump_tried_that_waits_for_chains(memory: SharedMemory, run_async: Run) -> None:
    """What the host has goes to the driver before the handler is woken up."""

    async def main() -> None:
        wire = Wire(memory)
        wire.send(4)
        await turns()
        wire.bench.offer(2)
        assert wire.lengths() == [1, 2]
        assert wire.bench.interrupts
        wire.bench.offer(3)
        assert wire.lengths() == [3, 4]
        assert wire.bench.queue.in_flight == 0  # the third is put back: the fd is looked at now
        await turns()
        wire.send(1)
        await until(lambda: wire.lengths() == [1])
        await wire.close()

    run_async(main)


class Watchful(Receiver):
    """Notes how many interrupts the driver has had at each look."""

    bench: Bench

    def __init__(self, source: socket.socket) -> None:
        super().__init__(source)
        self.interrupts: list[int] = []

    def serve(self, queue: object, chain: Chain) -> int:
        self.interrupts.append(self.bench.interrupts)
        return super().serve(queue, chain)


def test_the_driver_hears_of_a_pump_s_first_chain_at_once(memory: SharedMemory, run_async: Run) -> None:
    """Also after a burst, in which it hears of more and more chains at a time."""

    async def main() -> None:
        wire = Wire(memory, pump=Watchful)
        assert isinstance(wire.pump, Watchful)
        wire.pump.bench = wire.bench
        wire.bench.offer(SIZE)
        await turns()
        for count in (6, 1):
            before = wire.bench.interrupts
            wire.pump.interrupts.clear()
            wire.send(count)
            while len(wire.pump.interrupts) <= count:
                await asyncio.sleep(0)
            assert wire.pump.interrupts[:2] == [before, before + 1]
        await wire.close()

    run_async(main)


class Endless(Receiver):
    """Has something for every chain, and leaves its fd readable."""

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        return Outcome.DONE


def test_a_pump_leaves_turns_to_others(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory, pump=Endless)
        wire.bench.offer(SIZE)
        wire.send(1)
        per_turn = []
        async with asyncio.timeout(PATIENCE):
            while wire.pump.served < 10 * POP_BURST:
                before = wire.pump.served
                await asyncio.sleep(0)
                per_turn.append(wire.pump.served - before)
                wire.bench.offer(wire.bench.used())
        assert max(per_turn) == POP_BURST
        await wire.close()

    run_async(main)


def test_a_pump_of_a_disabled_queue_is_still(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory)
        wire.bench.offer(4)
        await turns()
        wire.bench.queue.enable(on=False)
        wire.send(1)
        await turns()
        assert not wire.pump.served
        wire.bench.queue.enable(on=True)
        await until(lambda: wire.bench.driver.used_index == 1)
        await wire.close()

    run_async(main)


class Merging(Receiver):
    """A datagram goes into as many chains as it needs, behind a header that says how many, or is dropped."""

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        try:
            data = self.source.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return Outcome.LEFT
        assert isinstance(queue, Virtqueue)
        self.source.recv(100)
        chains = [chain]
        while sum(each.writable for each in chains) < 1 + len(data):
            if (another := queue.pop()) is None:
                for each in reversed(chains[1:]):
                    queue.put_back(each)
                return Outcome.LEFT
            chains.append(another)
        count = chain.reserve(1)
        for each in chains:
            part, data = data[: each.writable], data[each.writable :]
            each.write(part)
        count.fill(bytes([len(chains)]))
        queue.push_all(chains)
        return Outcome.BEGUN


def test_a_datagram_may_take_several_chains(memory: SharedMemory, run_async: Run) -> None:
    """Each has room for 16 bytes."""

    async def main() -> None:
        wire = Wire(memory, pump=Merging)
        wire.bench.offer(5)
        wire.far.send(b"x" * 40)
        wire.far.send(b"y" * 40)
        await until(lambda: wire.bench.driver.used_index == 3)
        await turns()
        assert wire.bench.queue.in_flight == 0
        assert wire.bench.ring.base == 3
        assert wire.lengths() == [16, 16, 9]
        await wire.close()

    run_async(main)


class Needy(Receiver):
    """Needs several chains for each datagram, which it keeps until there are as many."""

    wanted = 4
    patience = PATIENCE

    def serve(self, queue: object, chain: Chain) -> int:
        self.served += 1
        assert isinstance(queue, Virtqueue)
        if not self.keeps:
            try:
                self.source.recv(100, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return Outcome.LEFT
        chains = [chain]
        while len(chains) < self.wanted:
            if (another := queue.pop()) is not None:
                chains.append(another)
            elif not queue.ring.arm():
                for each in reversed(chains[1:]):
                    queue.put_back(each)
                self.keeps = True
                queue.starve(self.patience)
                return Outcome.LEFT
        self.keeps = False
        queue.push_all(chains)
        return Outcome.BEGUN


def test_a_pump_that_needs_more_chains_is_left_alone_until_there_are(
    memory: SharedMemory, run_async: Run
) -> None:
    """And then it is asked, though its fd has nothing."""

    async def main() -> None:
        wire = Wire(memory, pump=Needy)
        wire.bench.offer(3)
        wire.send(1)
        await until(lambda: wire.pump.served >= 1)
        await turns()
        assert wire.pump.served == 1
        assert wire.bench.queue.in_flight == 0
        wire.bench.offer(1)
        await until(lambda: wire.bench.driver.used_index == 4)
        await wire.close()

    run_async(main)


def test_a_pump_that_needs_more_is_asked_again_after_a_while(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory, pump=Needy)
        wire.pump.patience = 0.0  # type: ignore[attr-defined]
        wire.bench.offer(3)
        wire.send(1)
        await until(lambda: wire.pump.served >= 3)
        await wire.close()

    run_async(main)


def test_a_pump_that_needs_more_again_and_again_has_one_timer(memory: SharedMemory, run_async: Run) -> None:
    """So a driver that kicks, and gives too few chains, makes nothing grow."""

    async def main() -> None:
        wire = Wire(memory, pump=Needy)
        queue = wire.bench.queue
        queue._loop = loop = Mock(wraps=asyncio.get_running_loop())
        wire.bench.offer(3)
        wire.send(1)
        for served in range(1, 20):
            await until(lambda: wire.pump.served >= served)  # noqa: B023
            queue.kicked()
        assert loop.call_at.call_count + loop.call_later.call_count == 1
        await wire.close()

    run_async(main)


def test_a_pump_that_needs_more_waits_as_long_as_it_said_last(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory, pump=Needy)
        queue = wire.bench.queue
        queue._loop = loop = Mock(wraps=asyncio.get_running_loop())
        wire.bench.offer(3)
        wire.send(1)
        for served in (1, 2):
            await until(lambda: wire.pump.served >= served)  # noqa: B023
            queue.kicked()
        await until(lambda: wire.pump.served >= 3)
        loop.call_at.call_args.args[1]()  # the time of the first is up, that of the last is not
        assert loop.call_at.call_count == 2
        assert loop.call_at.call_args.args[0] == queue._starves_until
        await turns()
        assert wire.pump.served == 3
        await wire.close()

    run_async(main)


class Full(Endless):
    """Has something for every chain, and its fd has nothing to tell of."""

    keeps = True


def test_what_a_pump_keeps_needs_no_fd(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        wire = Wire(memory, pump=Full)
        wire.bench.offer(SIZE)
        await until(lambda: wire.bench.driver.used_index == SIZE)
        assert wire.bench.queue.in_flight == 0
        await wire.close()

    run_async(main)


def test_who_asks_is_told_whether_a_queue_gives_chains(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        told: list[bool] = []
        bench.queue.when_enabled(told.append)
        bench.queue.enable(on=False)
        bench.queue.enable(on=True)
        bench.queue.stop()
        bench.queue.enable(on=True)
        assert told == [True, False, True, False, False]

    run_async(main)


@pytest.mark.parametrize("error", [BadRing, ZeroDivisionError])
def test_what_a_pump_raises_is_the_handler_s(
    memory: SharedMemory, run_async: Run, error: type[Exception]
) -> None:
    async def main() -> None:
        wire = Wire(memory)
        wire.bench.offer(1)
        await turns()
        if error is BadRing:
            wire.bench.driver.set_avail_index(SIZE + 7)
            wire.send(2)
        else:
            wire.pump.serve = lambda *_: 1 // 0  # type: ignore[method-assign]
            wire.send(1)
        with pytest.raises(error):
            await wire.task
        assert not asyncio.get_running_loop().remove_reader(wire.near.fileno())
        wire.near.close()
        wire.far.close()

    run_async(main)


@pytest.mark.parametrize("make_queue", [Virtqueue, Meters().make_queue], ids=["unmetered", "metered"])
def test_a_queue_that_is_dropped_is_freed(
    memory: SharedMemory, run_async: Run, make_queue: MakeQueue
) -> None:
    """And its guest's memory with it."""

    async def main() -> None:
        bench = Bench(memory, make_queue=make_queue)
        bench.queue.push(taken(bench)[0])
        await turns()
        freed = weakref.ref(bench.queue)
        del bench
        gc.collect()
        assert freed() is None

    run_async(main)


# --- Settling -------------------------------------------------------------------------------------------


async def echo(queue: Virtqueue, then: Callable[[], object] = int) -> None:
    """A handler that gives each chain back, after a call."""
    async for chain in queue:
        then()
        queue.push(chain)


async def ended(task: asyncio.Task[None], queue: Virtqueue) -> None:
    queue.stop()
    await task


def test_a_settled_queue_has_taken_all_and_interrupted(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)
        task = asyncio.create_task(echo(bench.queue))
        for count in (1, SIZE, 0, POP_BURST + 1):
            bench.offer(count)
            before = bench.interrupts
            await bench.queue.settle(PATIENCE)
            assert bench.used() == count
            assert bool(count) == (bench.interrupts > before)
            assert not bench.ring.must_call()
        await ended(task, bench.queue)

    run_async(main)


def test_a_queue_settles_although_its_driver_never_pauses(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench = Bench(memory)

        def again() -> None:
            bench.used()
            bench.driver.add(bench._buffers)

        task = asyncio.create_task(echo(bench.queue, again))
        bench.offer()
        before = bench.ring.effort
        await bench.queue.settle(PATIENCE)
        assert SIZE <= bench.ring.effort - before <= SIZE + POP_BURST * 2
        await ended(task, bench.queue)

    run_async(main)


async def slow(queue: Virtqueue, gate: asyncio.Event) -> None:
    """A handler that gives chains back when the gate is open."""
    async for chain in queue:
        await gate.wait()
        queue.push(chain)


def test_a_queue_settles_when_its_device_has_done_all(memory: SharedMemory, run_async: Run) -> None:
    async def main() -> None:
        bench, gate = Bench(memory), asyncio.Event()
        task = asyncio.create_task(slow(bench.queue, gate))
        bench.offer(2)
        settling = asyncio.create_task(bench.queue.settle(PATIENCE))
        while not bench.queue.in_flight:
            await asyncio.sleep(0)
        for _ in range(9):
            await asyncio.sleep(0)
        assert not settling.done()
        gate.set()
        await settling
        assert bench.used() == 2
        assert bench.interrupts
        assert not bench.ring.must_call()
        await ended(task, bench.queue)

    run_async(main)


@pytest.mark.parametrize("how", ["disabled", "impatient", "given up"])
def test_a_queue_settles_although_its_device_waits(memory: SharedMemory, run_async: Run, how: str) -> None:
    async def main() -> None:
        bench, gate = Bench(memory), asyncio.Event()
        task = asyncio.create_task(slow(bench.queue, gate))
        bench.queue.enable(on=how != "disabled")
        bench.offer(2)
        settling = asyncio.create_task(bench.queue.settle(0.01 if how == "impatient" else PATIENCE))
        if how == "given up":
            while not bench.queue.in_flight:
                await asyncio.sleep(0)
            bench.queue.give_up()
        await settling
        assert bench.queue.in_flight == int(how != "disabled")
        gate.set()
        await ended(task, bench.queue)

    run_async(main)
