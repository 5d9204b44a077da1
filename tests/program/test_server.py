"""What a server reports of its session and its rings, state by state."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.sessions import NO_FD, Echo
from vhostd.frontend import Frontend, SharedMemory, signalled
from vhostd.frontend.queue import Queue
from vhostd.program.activation import Notifier
from vhostd.program.endpoint import listen
from vhostd.program.log import REPORTS
from vhostd.program.server import Server, serve
from vhostd.vhost_user.messages import SET_VRING_ENABLE, SET_VRING_KICK, VringFd, VringState
from vhostd.virtio.device import Signals
from vhostd.virtio.vocabulary import Feature, mask


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vhost.sock"


@asynccontextmanager
async def serving(device: Echo, path: Path) -> AsyncIterator[Server]:
    with closing(listen(str(path))) as endpoint:
        server = Server(device, endpoint)
        running = asyncio.create_task(server.run())
        try:
            yield server
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


@asynccontextmanager
async def negotiated(path: Path, features: int | None = None) -> AsyncIterator[tuple[Frontend, SharedMemory]]:
    frontend = await Frontend.connect(str(path))
    with closing(SharedMemory(1 << 18)) as memory, closing(frontend):
        await frontend.negotiate(features)
        await frontend.share(memory)
        yield frontend, memory


@pytest.fixture
def reported(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The lines of reports, as they come."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            assert record.levelno == logging.INFO
            lines.append(record.getMessage())

    handler = Lines()
    logging.getLogger(REPORTS).addHandler(handler)
    caplog.set_level(logging.INFO, REPORTS)
    yield lines
    logging.getLogger(REPORTS).removeHandler(handler)


def test_without_a_front_end(run_async: Run, path: Path, reported: list[str]) -> None:
    async def main() -> None:
        async with serving(Echo(), path) as server:
            server.report()
            assert reported == ["no front-end is connected; 0 were before"]

    run_async(main)


def test_a_front_end_that_has_said_nothing(run_async: Run, path: Path, reported: list[str]) -> None:
    async def main() -> None:
        async with serving(Echo(), path) as server:
            frontend = await Frontend.connect(str(path))
            while server.session is None:
                await asyncio.sleep(0)
            server.report()
            frontend.close()
            while server.session is not None:
                await asyncio.sleep(0)
            server.report()
        assert reported == [
            "a front-end is connected, features=0x0 protocol_features=0x0 status=0x0 regions=0 memory=0",
            "rings that were not set up: 2",
            "no front-end is connected; 1 were before",
        ]

    run_async(main)


def test_a_ring_with_requests_in_flight(run_async: Run, path: Path, reported: list[str]) -> None:
    async def main() -> None:
        device = Echo()
        async with serving(device, path) as server, negotiated(path) as (frontend, memory):
            with closing(await frontend.start(memory, index=1, size=16)) as queue:
                for _ in range(3):
                    queue.add(room=4)
                queue.kick()
                while len(device.held) < 3:
                    await asyncio.sleep(0)
                server.report()
                device.release()
                server.report()
                await frontend.call(SET_VRING_ENABLE, VringState(1, 0))
                queue.add(room=4)  # which nobody takes
                server.report()
                await frontend.stop(queue)
                server.report()
        ends = "event_idx=1 indirect=1 packed=0"
        fds = "fds=kick+call+err"
        assert [line for line in reported if line.startswith("vring 1")] == [
            f"vring 1: started, enabled, size=16 base=3 avail=3 used=0 in_flight=3 {fds} {ends}",
            f"vring 1: started, enabled, size=16 base=3 avail=3 used=3 in_flight=0 {fds} {ends}",
            f"vring 1: started, disabled, size=16 base=3 avail=4 used=3 in_flight=0 {fds} {ends}",
            f"vring 1: stopped, disabled, size=16 base=3 avail=4 used=3 in_flight=0 fds=call+err {ends}",
        ]

    run_async(main)


def test_a_broken_ring(run_async: Run, path: Path, reported: list[str]) -> None:
    async def main() -> None:
        async with (
            serving(Echo(), path) as server,
            negotiated(path, mask(Feature.VERSION_1)) as (
                frontend,
                memory,
            ),
        ):
            with closing(await frontend.start(memory, size=16)) as queue:
                queue.driver.set_avail_index(1000)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                await signalled(queue.err_fd)
                server.report()
                await frontend.stop(queue)
                server.report()
                queue.driver.set_avail_index(0)
                await frontend.call(SET_VRING_KICK, VringFd(0), queue.kick_fd)
                server.report()
        states = [line.split(",")[0] for line in reported if line.startswith("vring 0")]
        assert states == ["vring 0: broken", "vring 0: stopped", "vring 0: started"]
        assert "avail=1000 used=0" in reported[1]
        assert reported[1].endswith("event_idx=0 indirect=0 packed=0")

    run_async(main)


def test_a_ring_that_is_polled_and_one_in_memory_that_went(
    run_async: Run, path: Path, reported: list[str]
) -> None:
    async def main() -> None:
        async with serving(Echo(), path) as server, negotiated(path) as (frontend, memory):
            with closing(Queue(memory, 0, 16, frontend.features)) as queue:
                await frontend.set_up(queue)
                await frontend.call(SET_VRING_KICK, VringFd(NO_FD))
                server.report()
                await frontend.stop(queue)
                await frontend.share()
                server.report()
        assert "fds=poll " in reported[1]
        assert "avail=None used=None" in reported[4]

    run_async(main)


class Asked(Echo):
    """A device that wants one of the signals."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    def signals(self) -> Signals:
        return {"SIGUSR1": self.asked.set}


class Finishing(Echo):
    """A device that has last words for the driver of its ring 1, once it may say them."""

    def __init__(self) -> None:
        super().__init__()
        self.words = asyncio.Event()

    async def finish(self) -> None:
        await self.words.wait()
        self.release()


@pytest.fixture
def _signals() -> Iterator[None]:
    """Signals as they were: a program that ends leaves them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    taken = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, taken)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.usefixtures("_signals")
def test_a_device_has_the_signals_that_it_wants(run_async: Run, path: Path) -> None:
    async def main() -> None:
        device = Asked()
        with closing(listen(str(path))) as endpoint, closing(Notifier()) as notifier:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            running = asyncio.create_task(serve(device, endpoint, notifier))
            async with negotiated(path):
                os.kill(os.getpid(), signal.SIGHUP)  # of no use to it
                os.kill(os.getpid(), signal.SIGUSR1)
                await device.asked.wait()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait([running])

    run_async(main)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("has_words", [True, False])
def test_a_device_has_a_moment_for_its_last_words(
    run_async: Run,
    path: Path,
    caplog: pytest.LogCaptureFixture,
    has_words: bool,  # noqa: FBT001
) -> None:
    async def main() -> None:
        device = Finishing()
        with closing(listen(str(path))) as endpoint, closing(Notifier()) as notifier:
            running = asyncio.create_task(serve(device, endpoint, notifier))
            async with negotiated(path) as (frontend, memory):
                with closing(await frontend.start(memory, index=1, size=16)) as queue:
                    if has_words:
                        device.words.set()
                        queue.add(room=4)
                        queue.kick()
                        await device.holding.wait()
                    os.kill(os.getpid(), signal.SIGTERM)
                    if has_words:
                        assert (await queue.used())[1] == b"held"
                    await asyncio.wait([running])
                    device.held_queue = None

    run_async(main)
    assert ("the program ends before the driver was told" in caplog.text) != has_words
