"""The engines: each calls back on the event loop with bytes, or -errno, whatever it was asked."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from tests.conftest import Run
from tests.ring.machine import DATA, Machine, memfd
from tests.storage.images import (
    ENGINES,
    PATIENCE,
    engine_of,
    noise,
    replaced,
)
from vhostd import Chain, SetupError
from vhostd.ring.uring import Uring
from vhostd.storage import engine as engines
from vhostd.storage.engine import Engine, Result, SyncEngine, ThreadEngine, UringEngine, make_engine
from vhostd.wire.fds import Fd

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


def a_chain() -> Chain:
    """A chain in whose name something is done."""
    return Machine().chain([(DATA, 64, True)])


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
    def missing(_: int, *, in_threads: bool) -> None:
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
                    engine.fdatasync(a_chain(), file.fileno(), answers.then)
                    assert await answers.next() == -errno.EINVAL
                with replaced(file.fileno(), "/proc/self/mem", os.O_RDONLY):
                    engine.preadv(chain, file.fileno(), 0, 64, 0, answers.then)
                    assert await answers.next() == -errno.EIO
                assert (chain.readable, chain.writable) == (64, PAGE)

    run_async(main)


@pytest.mark.parametrize("raised", [OSError(errno.ENXIO, "?"), OSError("no number")])
def test_work(run_async: Run, name: str, raised: OSError) -> None:
    def fail() -> int:
        raise OSError(*raised.args)  # a new one, whose traceback goes with it

    async def main() -> None:
        async with running(name) as (engine, answers):
            engine.do(a_chain(), lambda: 42, answers.then)
            assert await answers.next() == 42
            engine.do(a_chain(), fail, answers.then)
            assert await answers.next() == -(raised.errno or errno.EIO)
            assert answers.threads == {threading.get_ident()}

    run_async(main)


def test_a_sync(run_async: Run, name: str) -> None:
    async def main() -> None:
        with Fd(memfd(PAGE)) as file:
            async with running(name) as (engine, answers):
                engine.fdatasync(a_chain(), file.fileno(), answers.then)
                assert await answers.next() == 0

    run_async(main)


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_what_takes_long_is_overtaken(run_async: Run, name: str) -> None:
    async def main() -> None:
        let_go = threading.Event()
        async with running(name) as (engine, answers):
            engine.do(a_chain(), lambda: let_go.wait() + 0, answers.then)
            engine.do(a_chain(), lambda: 2, answers.then)
            with Fd(memfd(PAGE)) as file:
                engine.fdatasync(a_chain(), file.fileno(), answers.then)
                assert sorted([await answers.next(), await answers.next()]) == [0, 2]
            let_go.set()
            assert await answers.next() == 1

    run_async(main)


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_an_engine_that_is_closed_keeps_silent_and_waits_for_nothing_that_hangs(name: str) -> None:
    """As when the program ends: the event loop has gone before."""
    told: list[Result] = []
    begun, let_go = threading.Event(), threading.Event()

    def work() -> int:
        begun.set()
        let_go.wait()
        return 1

    async def main() -> Engine:
        engine = engine_of(name)
        engine.do(a_chain(), work, told.append)
        begun.wait(PATIENCE)
        return engine

    engine = asyncio.run(main())
    engine.close()
    let_go.set()
    assert told == []


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_the_end_begins_nothing_that_waits_for_a_thread(name: str) -> None:
    """SIGTERM: what waits for a thread in vain is given up, since nobody hears of its end."""
    begun: list[int] = []
    all_busy, let_go = threading.Barrier(engines.THREADS + 1), threading.Event()

    def work() -> int:
        begun.append(1)
        all_busy.wait(PATIENCE)
        let_go.wait(PATIENCE)
        return 0

    async def main() -> Engine:
        engine = engine_of(name)
        for _ in range(3 * engines.THREADS):
            engine.do(a_chain(), work, lambda _: None)
        all_busy.wait(PATIENCE)
        return engine

    asyncio.run(main()).close()
    let_go.set()
    assert len(begun) == engines.THREADS


@pytest.mark.parametrize("name", ["io_uring", "threads"])
def test_what_was_given_up_meanwhile_is_not_begun(run_async: Run, name: str) -> None:
    begun: list[int] = []

    def begin() -> int:
        begun.append(1)
        return 0

    async def main() -> None:
        let_go, machine = threading.Event(), Machine()
        chain = machine.chain([(DATA, 64, True)])

        def begin() -> int:
            begun.append(1)
            return 0

        async with running(name) as (engine, answers):
            for _ in range(engines.THREADS):
                engine.do(a_chain(), lambda: let_go.wait(PATIENCE) + 0, answers.then)
            engine.do(chain, begin, answers.then)
            machine.ring.give_up()
            let_go.set()
            results = [await answers.next() for _ in range(engines.THREADS + 1)]
        assert (sorted(results)[0], begun) == (-errno.ECANCELED, [])

    run_async(main)


def test_steps_end_when_the_chain_is_given_up() -> None:
    machine = Machine()
    chain = machine.chain([(DATA, 64, True)])
    done: list[int] = []

    def steps() -> Iterator[None]:
        for i in range(10):
            done.append(i)
            if i == 3:
                machine.ring.give_up()
            yield

    assert engines.do_steps(chain, iter(range(5))) == 0
    assert engines.do_steps(chain, steps()) == -errno.ECANCELED
    assert done == [0, 1, 2, 3]


def test_a_batch_is_submitted_together_but_for_its_first(
    run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        submissions: list[int] = []

        class Counting:
            """A Uring that says how much each submission took."""

            def __init__(self, entries: int, *, in_threads: bool) -> None:
                self._uring = Uring(entries, in_threads=in_threads)

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
