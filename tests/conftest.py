"""What holds for every test: nothing leaks, and log lines of all levels are formatted."""

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from vhostd.ring import notify

Run = Callable[[Callable[[], Awaitable[None]]], None]  # what `run_async` gives

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PATIENCE = 60.0  # seconds that a test may wait for what never comes
JUDGED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    for category in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
        config.addinivalue_line("filterwarnings", f"error::{category}")
    logging.getLogger().setLevel(logging.DEBUG)
    # A busy machine is no fault of a test.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("quick", settings.get_profile("busy"), max_examples=10)
    settings.load_profile("busy")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs behind it
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup(1), which means us, and not our children
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Ctrl-C leaves a test without a report of its call.
    item.stash[JUDGED] = not report.failed and (report.when == "call" or report.skipped)
    return report


@pytest.fixture(scope="session", autouse=True)
def _settled() -> None:
    """Lets libuv, and what signals eventfds, have what they keep for the process, before it is counted."""
    uvloop.new_event_loop().close()
    notify.has_aio()
    gc.freeze()  # modules and tests: to look at them again after each test would take most of the time


@pytest.fixture(autouse=True)
def _no_leaks(
    _settled: None, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fails a test that leaves an fd open or a shared mapping behind.

    What fixtures of a wider scope hold was there before. A test that failed in another way, or that Ctrl-C
    ended, is not judged: its traceback holds on to what was open.
    """
    before = held()
    yield
    if held() - before and request.node.stash.get(JUDGED, False):
        # What only pytest or a reference cycle holds is no leak; an `Fd` in one says so itself.
        request.node.funcargs.clear()
        for phase in ("setup", "call"):
            caplog.get_records(phase).clear()
        gc.collect()
        gc.collect()  # what the first has freed may have held a circle together, unseen, as a ring can
        left = held() - before
        assert not left, f"left behind: {', '.join(sorted(left))}"


def held() -> set[str]:
    """The open fds, by number and target, and the shared mappings of this process."""
    fds = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that listed them
            continue
        fds.add(f"fd {number} -> {target.removesuffix(' (deleted)')}")
    lines = Path("/proc/self/maps").read_text().splitlines()
    return fds | {line for line in lines if line.split()[1] == "rw-s"}


@pytest.fixture(params=LOOPS)
def run_async(request: pytest.FixtureRequest) -> Run:
    """Runs a test's coroutine function on a fresh loop in debug mode; each such test runs on both loops.

    Fails when tasks are left pending, or when anything went wrong unseen: an exception in a callback, or one
    of a task that nobody asked for. A test that hangs is ended.
    """

    def run(main: Callable[[], Awaitable[None]]) -> None:
        unseen: list[dict[str, Any]] = []

        async def watched() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _loop, context: unseen.append(context))
            loop.slow_callback_duration = inf  # or a busy machine has warnings of it in the log
            async with asyncio.timeout(PATIENCE):
                await main()
            await asyncio.sleep(0)  # tasks that were cancelled come to their end
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"left pending: {left}"

        with asyncio.Runner(debug=True, loop_factory=LOOPS[request.param]) as runner:
            runner.run(watched())
            gc.collect()  # tasks complain of an exception that nobody asked for when they are freed
        assert not unseen, unseen

    return run
