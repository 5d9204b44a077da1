"""Threads: work beside the event loop, which nothing that hangs there keeps from ending."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import Run
from vhostd.host.threads import CLOSE_PATIENCE, Threads


def test_work_is_done_in_another_thread_and_told_on_the_event_loop(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads()
        told: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        threads.do(threading.get_ident, told.set_result)
        assert threads.under_way == 1
        assert await told not in (None, threading.get_ident())
        assert threads.under_way == 0
        threads.close()

    run_async(main)


def test_an_exception_is_told(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads()
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        threads.close()

    run_async(main)


def test_as_many_at_a_time_as_there_may_be_threads(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads(3)
        barrier = threading.Barrier(3, timeout=20)
        assert sorted(await asyncio.gather(*(threads.run(barrier.wait) for _ in range(3)))) == [0, 1, 2]
        threads.close()

    run_async(main)


def test_work_waits_for_a_free_thread(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads(1)
        go_on, order = threading.Event(), list[bool]()
        told = asyncio.Event()
        threads.do(lambda: order.append(go_on.wait(20)), lambda _: None)
        threads.do(lambda: order.append(False), lambda _: told.set())
        go_on.set()
        await told.wait()
        assert order == [True, False]
        threads.close()

    run_async(main)


def test_who_is_cancelled_waits_no_more(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads()
        go_on = threading.Event()
        waiting = asyncio.create_task(threads.run(lambda: go_on.wait(20)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await threads.run(lambda: "still there") == "still there"
        threads.close()

    run_async(main)


def test_close_begins_nothing_that_waits(run_async: Run) -> None:
    async def main() -> None:
        threads = Threads(1)
        under_way, go_on, begun = threading.Event(), threading.Event(), list[int]()
        threads.do(lambda: under_way.set() or go_on.wait(20), lambda _: None)  # type: ignore[func-returns-value]
        threads.do(lambda: begun.append(1), lambda _: None)
        assert under_way.wait(20)
        before = time.monotonic()
        threads.close()
        assert time.monotonic() - before >= CLOSE_PATIENCE / 2  # it waited for the first
        go_on.set()
        assert begun == []

    run_async(main)


def test_a_thread_that_hangs_keeps_no_process_from_ending() -> None:
    program = """
import asyncio, os
from vhostd.host.threads import Threads
async def main():
    threads = Threads()
    ours, theirs = os.pipe()
    threads.do(lambda: os.read(ours, 1), print)  # from whom nobody ever hears
    await threads_started(threads)
    threads.close()
async def threads_started(threads):
    while not threads._waiting.empty():
        await asyncio.sleep(0)
asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=20, check=False).returncode == 0


def test_fewer_threads_than_wanted(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has no more for us: those that are there do all the work; without any, none of it is done."""

    async def main() -> None:
        threads = Threads(2)
        refused = "can't start new thread"

        def start(_: threading.Thread) -> None:
            raise RuntimeError(refused)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(OSError, match="no thread"):
                await threads.run(lambda: 1)
        assert threads.under_way == 0
        assert await threads.run(lambda: 2) == 2
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            assert await asyncio.gather(*(threads.run(lambda: 3) for _ in range(4))) == [3] * 4
        assert threads.under_way == 0
        threads.close()

    run_async(main)
