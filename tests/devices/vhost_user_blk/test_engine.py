"""The engines: each calls back on the event loop with bytes, or -errno, whatever it was asked."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_blk.guest import ENGINES, engine_of, noise, replaced
from tests.ring.machine import DATA, Machine, memfd
from vhost_user_blk import engine as engines
from vhost_user_blk.engine import Engine, Result, SyncEngine, ThreadEngine, UringEngine, make_engine
from vhostd import SetupError, Uring
from vhostd.fds import Fd

PAGE = 4096


class Answers:
    """What an engine has told."""

    def __init__(self) -> None:
        self.results: list[int] = []
        self.threads: set[int] = set()
        self._told = asyncio.Event()

    def then(self, result: Result) -> None:
        assert isinstance(result, int), result
        self.results.append(result)
        self.threads.add(threading.get_ident())
        self._told.set()

    async def next(self) -> int:
        """The next result."""
        while not self.results:
            self._told.clear()
            await self._told.wait()
        return self.results.pop(0)


@asynccontextmanager
async def running(name: str) -> AsyncIterator[tuple[Engine, Answers]]:
    engine = engine_of(name)
    try:
        yield engine, Answers()
    finally:
        engine.close()


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_engines_by_name() -> None:
    for name, kind in (("io_uring", UringEngine), ("threads", ThreadEngine), ("sync", SyncEngine)):
        engine = engine_of(name)
        assert isinstance(engine, kind)
        engine.close()


def test_the_best_engine_that_the_host_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(_: int) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(engines, "Uring", missing)
    engine = make_engine(None)
    assert isinstance(engine, ThreadEngine)
    engine.close()
    assert caplog.messages == ["no io_uring here (Operation not permitted): I/O is done by threads"]
    with pytest.raises(SetupError, match=r"^--aio=io_uring: Operation not permitted$"):
        make_engine("io_uring")


def test_transfers(run_async: Run, name: str) -> None:
    async def main() -> None:
        machine, file = Machine(), memfd(2 * PAGE)
        os.pwrite(file, noise(2 * PAGE), 0)
        with Fd(file):
            async with running(name) as (engine, answers):
                chain = machine.chain([(DATA, 64, False), (DATA + PAGE, PAGE, True)])
                engine.preadv(chain, file, 100, 200, 0, answers.then)
                assert await answers.next() == 200
                assert machine.memory.read(DATA + PAGE, 200) == noise(2 * PAGE)[100:300]
                assert chain.writable == PAGE - 200
                machine.memory.write(DATA, noise(64, 1))
                engine.pwritev(chain, file, 5, 60, 0, answers.then)
                assert await answers.next() == 60
                assert os.pread(file, 60, 5) == noise(64, 1)[:60]
                assert chain.readable == 4
                engine.preadv(chain, file, 2 * PAGE - 7, 100, 0, answers.then)
                assert await answers.next() == 7
                engine.preadv(chain, file, 2 * PAGE, 100, 0, answers.then)
                assert await answers.next() == 0
                assert answers.threads == {threading.get_ident()}

    run_async(main)


def test_errors_are_numbers(run_async: Run, name: str) -> None:
    async def main() -> None:
        machine = Machine()
        with Fd(memfd(PAGE)) as file:
            async with running(name) as (engine, answers):
                chain = machine.chain([(DATA, 64, False), (DATA + PAGE, PAGE, True)])
                with replaced(file.fileno(), "/dev/full"):
                    engine.pwritev(chain, file.fileno(), 0, 64, 0, answers.then)
                    assert await answers.next() == -errno.ENOSPC
                    engine.fdatasync(file.fileno(), answers.then)
                    assert await answers.next() == -errno.EINVAL
                with replaced(file.fileno(), "/proc/self/mem", os.O_RDONLY):
                    engine.preadv(chain, file.fileno(), 0, 64, 0, answers.then)
                    assert await answers.next() == -errno.EIO
                assert (chain.readable, chain.writable) == (64, PAGE)

    run_async(main)


@pytest.mark.parametrize("raised", [OSError(errno.ENXIO, "?"), OSError("no number")])
def test_work(run_async: Run, name: str, raised: OSError) -> None:
    def fail() -> int:
        raise raised

    async def main() -> None:
        async with running(name) as (engine, answers):
            engine.do(lambda: 42, answers.then)
            assert await answers.next() == 42
            engine.do(fail, answers.then)
            assert await answers.next() == -(raised.errno or errno.EIO)
            assert answers.threads == {threading.get_ident()}

    run_async(main)


def test_a_sync(run_async: Run, name: str) -> None:
    async def main() -> None:
        with Fd(memfd(PAGE)) as file:
            async with running(name) as (engine, answers):
                engine.fdatasync(file.fileno(), answers.then)
                assert await answers.next() == 0

    run_async(main)


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_what_takes_long_is_overtaken(run_async: Run, name: str) -> None:
    async def main() -> None:
        let_go = threading.Event()
        async with running(name) as (engine, answers):
            engine.do(lambda: let_go.wait() + 0, answers.then)
            engine.do(lambda: 2, answers.then)
            with Fd(memfd(PAGE)) as file:
                engine.fdatasync(file.fileno(), answers.then)
                assert sorted([await answers.next(), await answers.next()]) == [0, 2]
            let_go.set()
            assert await answers.next() == 1

    run_async(main)


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_an_engine_that_is_closed_completes_and_keeps_silent(name: str) -> None:
    """As when the program ends: the event loop has gone before."""
    done: list[int] = []
    told: list[Result] = []
    let_go = threading.Event()

    def work() -> int:
        let_go.wait()
        done.append(1)
        return 1

    async def main() -> Engine:
        engine = engine_of(name)
        engine.do(work, told.append)
        return engine

    engine = asyncio.run(main())
    let_go.set()
    engine.close()
    assert (done, told) == ([1], [])


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_the_end_does_not_wait_for_what_was_not_begun(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM: what waits for a thread in vain is given up, since nobody hears of its end."""
    begun: list[int] = []
    all_busy, let_go = threading.Barrier(engines.THREADS + 1), threading.Event()

    class Threads(ThreadPoolExecutor):
        """Threads that go on once they were told of the end."""

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            let_go.set()
            super().shutdown(wait=wait)

    def work() -> int:
        begun.append(1)
        if not let_go.is_set():
            all_busy.wait()
            let_go.wait()
        return 0

    async def main() -> Engine:
        engine = engine_of(name)
        for _ in range(3 * engines.THREADS):
            engine.do(work, lambda _: None)
        all_busy.wait()
        return engine

    monkeypatch.setattr(engines, "ThreadPoolExecutor", Threads)
    asyncio.run(main()).close()
    assert len(begun) == engines.THREADS


def test_a_batch_is_submitted_together_but_for_its_first(
    run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        submissions: list[int] = []

        class Counting:
            """A Uring that says how much each submission took."""

            def __init__(self, entries: int) -> None:
                self._uring = Uring(entries)

            def __getattr__(self, name: str) -> Callable[..., object]:
                found: Callable[..., object] = getattr(self._uring, name)
                return found

            def submit(self) -> None:
                submissions.append(self._uring.submit())

        monkeypatch.setattr(engines, "Uring", Counting)
        machine = Machine(128)
        with Fd(memfd(PAGE)) as file:
            async with running("io_uring") as (engine, answers):
                for i in range(60):
                    chain = machine.chain([(DATA + 64 * i, 64, True)])
                    engine.preadv(chain, file.fileno(), 0, 64, 0, answers.then)
                assert [await answers.next() for _ in range(60)] == [64] * 60
                assert submissions[0] == 1
                assert len(submissions) == 2

    run_async(main)
