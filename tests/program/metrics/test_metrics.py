"""A device's work, and what the page says of it: to the last request."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families

from tests.conftest import Run
from tests.program.metrics.scraping import GET, Place, Response, ask, place_of
from tests.sessions import Echo
from vhost_user_rng.device import Rng
from vhostd.errors import SetupError
from vhostd.frontend import Frontend, SharedMemory, signalled
from vhostd.host.budget import Budget
from vhostd.program.endpoint import listen as listen_at
from vhostd.program.metrics import metrics as module
from vhostd.program.metrics.address import Address, listen
from vhostd.program.metrics.metrics import PROC, Metrics, open_metrics
from vhostd.program.server import Server
from vhostd.virtio.device import Device
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.wire.fds import Fd

ABOUT = {"program": "vhost-user-echo", "device": "console", "version": "1.2"}
ECHO = {"ring": "0"}
HOLD = {"ring": "1"}


@asynccontextmanager
async def served(device: Device, path: Path, address: Address) -> AsyncIterator[Place]:
    """A server with metrics on the running loop; yields where they are."""
    endpoint = listen(address)
    proc = Fd(os.open(PROC, os.O_PATH))
    with closing(Metrics(endpoint, proc, ABOUT)) as metrics, closing(listen_at(str(path))) as sockets:
        server = Server(device, sockets, metrics.meters.make_queue)
        running = [asyncio.create_task(server.run()), asyncio.create_task(metrics.run(server))]
        try:
            yield place_of(endpoint.socket)
        finally:
            for task in running:
                task.cancel()
            for task in running:
                with suppress(asyncio.CancelledError):
                    await task


@asynccontextmanager
async def negotiated(path: Path) -> AsyncIterator[tuple[Frontend, SharedMemory]]:
    memory = SharedMemory(1 << 18)
    frontend = await Frontend.connect(str(path))
    try:
        await frontend.negotiate()
        await frontend.share(memory)
        yield frontend, memory
    finally:
        frontend.close()
        memory.close()


async def until(place: Place, name: str, value: float, **labels: str) -> Response:
    """Asks until a value is as expected: a front-end's end is noticed when the event loop comes to it."""
    while True:
        page = await ask(place)
        if page.value(name, **labels) == value:
            return page


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vhost.sock"


def test_before_any_front_end(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with served(Echo(), path, Address("127.0.0.1")) as place:
            page = await ask(place)
        assert page.status == 200
        assert page.fields["content-type"].startswith("text/plain; version=0.0.4")
        assert page.value("vhost_user_build_info", **ABOUT) == 1
        assert page.value("vhost_user_front_end_connections_total") == 0
        assert page.value("vhost_user_front_end_connected") == 0
        assert page.value("vhost_user_requests_total", **ECHO) is None
        for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"):
            assert page.value(f"process_{name}")

    run_async(main)


def test_every_request_counts_over_reconnects(run_async: Run, path: Path) -> None:
    async def live(place: Place, before: int) -> None:
        async with negotiated(path) as (frontend, memory):
            queue = await frontend.start(memory)
            with closing(queue):
                for size in (1, 20, 300):
                    assert await queue.request(bytes(size), room=200) == bytes(min(size, 200))
                page = await ask(place)
        assert page.value("vhost_user_requests_total", **ECHO) == before + 3
        assert page.value("vhost_user_read_bytes_total", **ECHO) == (before / 3 + 1) * 321
        assert page.value("vhost_user_written_bytes_total", **ECHO) == (before / 3 + 1) * 221
        assert page.value("vhost_user_errors_total", **ECHO) == 0
        assert page.value("vhost_user_ring_started", **ECHO) == 1
        assert page.value("vhost_user_ring_in_flight", **ECHO) == 0
        assert page.value("vhost_user_request_duration_seconds_count", **ECHO) == before + 3
        assert page.value("vhost_user_request_duration_seconds_bucket", le="+Inf", **ECHO) == before + 3
        seconds = page.value("vhost_user_request_duration_seconds_sum", **ECHO)
        assert seconds is not None
        assert 0 < seconds < 60
        assert page.value("vhost_user_front_end_connected") == 1
        assert page.value("vhost_user_front_end_connections_total") == before / 3 + 1

    async def main() -> None:
        async with served(Echo(), path, Address("127.0.0.1")) as place:
            for life in range(3):
                await live(place, before=3 * life)
                page = await until(place, "vhost_user_front_end_connected", 0)
                assert page.value("vhost_user_ring_started", **ECHO) == 0
                assert page.value("vhost_user_requests_total", **ECHO) == 3 * (life + 1)

    run_async(main)


def test_what_is_in_flight_shows_and_takes_its_time(run_async: Run, path: Path) -> None:
    async def main() -> None:
        device = Echo()
        async with (
            served(device, path, Address("127.0.0.1")) as place,
            negotiated(path) as (frontend, memory),
        ):
            queue = await frontend.start(memory, index=1)
            with closing(queue):
                for _ in range(3):
                    queue.add(room=4)
                queue.kick()
                while len(device.held) < 3:
                    await asyncio.sleep(0)
                page = await ask(place)
                assert page.value("vhost_user_ring_in_flight", **HOLD) == 3
                assert page.value("vhost_user_requests_total", **HOLD) == 0
                assert page.value("vhost_user_requests_total", **ECHO) is None
                await asyncio.get_running_loop().run_in_executor(None, _pass_10_ms)
                device.release()
                page = await ask(place)
        assert page.value("vhost_user_ring_in_flight", **HOLD) == 0
        assert page.value("vhost_user_requests_total", **HOLD) == 3
        assert page.value("vhost_user_written_bytes_total", **HOLD) == 12
        assert page.value("vhost_user_request_duration_seconds_bucket", le="0.005", **HOLD) == 0
        seconds = page.value("vhost_user_request_duration_seconds_sum", **HOLD)
        assert seconds is not None
        assert seconds > 0.03

    run_async(main)


def _pass_10_ms() -> None:
    end = time.perf_counter() + 0.01
    while time.perf_counter() < end:
        pass


def test_a_broken_ring_is_an_error(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with (
            served(Echo(), path, Address("127.0.0.1")) as place,
            negotiated(path) as (frontend, memory),
        ):
            queue = await frontend.start(memory)
            with closing(queue):
                await queue.request(b"one", room=3)
                queue.driver.set_avail_index(1000)
                os.eventfd_write(queue.kick_fd.fileno(), 1)
                await signalled(queue.err_fd)
                page = await ask(place)
        assert page.value("vhost_user_errors_total", **ECHO) == 1
        assert page.value("vhost_user_requests_total", **ECHO) == 1

    run_async(main)


def test_a_device_that_counts_an_error(run_async: Run, path: Path) -> None:
    async def main() -> None:
        device = Echo()
        async with (
            served(device, path, Address("127.0.0.1")) as place,
            negotiated(path) as (frontend, memory),
        ):
            queue = await frontend.start(memory, index=1)
            with closing(queue):
                queue.add(room=4)
                queue.kick()
                await device.holding.wait()
                assert device.held_queue is not None
                device.held_queue.count_error()
                device.release()
                page = await ask(place)
        assert page.value("vhost_user_errors_total", **HOLD) == 1

    run_async(main)


def test_what_a_limit_costs_shows(run_async: Run, path: Path) -> None:
    """It is none of a request's own time."""

    async def main() -> None:
        async with (
            served(Rng(None, Budget(4, 0.05)), path, Address("127.0.0.1")) as place,
            negotiated(path) as (frontend, memory),
        ):
            with closing(await frontend.start(memory)) as queue:
                for _ in range(3):
                    assert len(await queue.request(room=4)) == 4
                page = await ask(place)
        # The third was given before the third wait is over.
        throttled = page.value("vhost_user_throttled_seconds_total", **ECHO)
        assert throttled is not None
        assert throttled > 0.05
        assert page.value("vhost_user_requests_total", **ECHO) == 3

    run_async(main)


def test_chains_that_are_given_up_are_not_counted(
    run_async: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhostd.vhost_user.session.DISCONNECT_PATIENCE", 0.01)

    async def main() -> None:
        device = Echo()
        async with served(device, path, Address("127.0.0.1")) as place:
            async with negotiated(path) as (frontend, memory):
                with closing(await frontend.start(memory, index=1)) as queue:
                    queue.add(room=4)
                    queue.kick()
                    await device.holding.wait()
            await until(place, "vhost_user_front_end_connected", 0)
            device.release()
            page = await ask(place)
            assert page.value("vhost_user_requests_total", **HOLD) == 0
            assert page.value("vhost_user_ring_in_flight", **HOLD) == 0

    run_async(main)


class Hesitant(Echo):
    """Reads a byte of each request, and puts it back, before it answers."""

    async def echoq(self, queue: Virtqueue) -> None:
        async for chain in queue:
            chain.read(1)
            queue.put_back(chain)
            again = queue.pop()
            assert again is not None
            again.write(again.read(again.readable))
            queue.push(again)


def test_a_request_that_was_put_back_counts_once(run_async: Run, path: Path) -> None:
    async def main() -> None:
        async with (
            served(Hesitant(), path, Address("127.0.0.1")) as place,
            negotiated(path) as (frontend, memory),
        ):
            with closing(await frontend.start(memory)) as queue:
                await queue.request(bytes(20), room=20)
                page = await ask(place)
        assert page.value("vhost_user_requests_total", **ECHO) == 1
        assert page.value("vhost_user_read_bytes_total", **ECHO) == 20
        assert page.value("vhost_user_written_bytes_total", **ECHO) == 20

    run_async(main)


def test_the_event_loop_s_lag(run_async: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAG_INTERVAL", 0.02)
    name = "vhost_user_event_loop_lag_seconds"

    async def main() -> None:
        async with served(Echo(), path, Address("127.0.0.1")) as place:
            before = (await ask(place)).value(f"{name}_sum")
            for _ in range(10):
                _pass_10_ms()  # nobody else has a turn
            page = await ask(place)
        after = page.value(f"{name}_sum")
        assert before is not None
        assert after is not None
        assert after - before > 0.05

    run_async(main)


@pytest.mark.parametrize("address", ["127.0.0.1", "unix"])
def test_openmetrics(run_async: Run, path: Path, tmp_path: Path, address: str) -> None:
    async def main() -> None:
        where = Address(path=str(tmp_path / "metrics")) if address == "unix" else Address(address)
        async with served(Echo(), path, where) as place, negotiated(path) as (frontend, memory):
            with closing(await frontend.start(memory)) as queue:
                await queue.request(b"one", room=3)
                request = GET.replace(
                    b"\r\n\r\n", b"\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
                )
                page = await ask(place, request)
        assert page.fields["content-type"].startswith("application/openmetrics-text")
        families = {family.name: family for family in openmetrics_families(page.content.decode())}
        assert families["vhost_user_requests"].samples[0].value == 1
        assert families["vhost_user_build"].type == "info"

    run_async(main)


@pytest.mark.parametrize(
    "accepted",
    [
        "application/openmetrics-text; version=nonsense",
        "application/openmetrics-text; version=1.x",
        "text/plain; version=",
        "text/plain;version=" + "9" * 5000,
        ",;=,;;==",
        "\xff" * 100,
    ],
)
def test_nonsense_that_is_accepted(run_async: Run, path: Path, accepted: str) -> None:
    async def main() -> None:
        async with served(Echo(), path, Address("127.0.0.1")) as place:
            head = f"GET /metrics HTTP/1.1\r\nHost: here\r\nAccept: {accepted}\r\n\r\n"
            page = await ask(place, head.encode("latin-1"))
        assert page.status == 200
        assert page.value("vhost_user_front_end_connected") == 0

    run_async(main)


def test_a_host_without_proc_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROC", str(tmp_path / "proc"))
    with pytest.raises(SetupError, match=r"--metrics: .*/proc: No such file"):
        open_metrics(Address(path=str(tmp_path / "socket")), ABOUT)
    assert list(tmp_path.iterdir()) == []
