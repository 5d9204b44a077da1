"""Alarms, with real time: they ring soon, once for each time, and not when they are closed."""

import asyncio
import os
import time
from pathlib import Path

from tests.conftest import Run
from vhostd.host.alarm import Alarm

SOON = 200e-6
NEVER = 3600.0


def test_it_rings_after_its_time(run_async: Run) -> None:
    async def main() -> None:
        rung = asyncio.Event()
        alarm = Alarm(SOON, rung.set)
        before = time.monotonic()
        alarm.set()
        await rung.wait()
        assert time.monotonic() - before >= SOON
        alarm.close()

    run_async(main)


def test_it_rings_once_for_each_time(run_async: Run) -> None:
    async def main() -> None:
        rings: asyncio.Queue[float] = asyncio.Queue()
        alarm = Alarm(SOON, lambda: rings.put_nowait(time.monotonic()))
        for _ in range(3):
            alarm.set()
            alarm.set()  # which changes nothing
            await rings.get()
        other = Alarm(10 * SOON, lambda: rings.put_nowait(0.0))
        other.set()
        assert await rings.get() == 0, "the first rang once more"
        alarm.close()
        other.close()

    run_async(main)


def test_it_may_be_set_when_it_rings(run_async: Run) -> None:
    async def main() -> None:
        rung = asyncio.Event()
        left = 3

        def again() -> None:
            nonlocal left
            left -= 1
            if left:
                alarm.set()
            else:
                rung.set()

        alarm = Alarm(SOON, again)
        alarm.set()
        await rung.wait()
        alarm.close()

    run_async(main)


def test_one_that_is_closed_leaves_nothing(run_async: Run) -> None:
    async def main() -> None:
        def fds() -> int:
            return len(os.listdir(Path("/proc/self/fd")))

        first = fds()
        alarm = Alarm(NEVER, lambda: None)
        alarm.set()
        alarm.close()
        await asyncio.sleep(0)
        assert fds() == first

    run_async(main)
