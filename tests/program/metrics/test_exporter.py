"""Scrapers of every kind, and what they may cost."""

import asyncio
import logging
import os
import resource
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress

import pytest

from tests.conftest import Run
from tests.program.metrics.scraping import GET, Place, Response, ask, place_of, talking
from vhostd.program.metrics import exporter
from vhostd.program.metrics.exporter import MOST, REST, Exporter
from vhostd.program.metrics.http import MAX_HEAD

ANSWER = b"HTTP/1.1 200 OK\r\n\r\n"
LARGE = 1 << 22  # bytes: more than sockets hold
LONG = 60.0  # seconds, for what takes milliseconds


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PAUSE", 0.0)


@asynccontextmanager
async def exporting(respond: Callable[[bytes], bytes] = lambda _: ANSWER) -> AsyncIterator[Place]:
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        listener.setblocking(False)
        running = asyncio.create_task(Exporter(listener, respond).run())
        try:
            yield place_of(listener)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running


def being_served() -> int:
    return sum(task.get_name() == "metrics" for task in asyncio.all_tasks())


def test_a_head_in_single_bytes(run_async: Run) -> None:
    async def main() -> None:
        heads = []

        def respond(head: bytes) -> bytes:
            heads.append(head)
            return ANSWER

        async with exporting(respond) as place, talking(place) as (reader, writer):
            for byte in GET:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            assert Response.parse(await reader.read()).status == 200
        assert heads == [GET]

    run_async(main)


def test_a_head_without_end_is_read_to_its_limit(run_async: Run) -> None:
    async def main() -> None:
        sizes = []

        def respond(head: bytes) -> bytes:
            sizes.append(len(head))
            return ANSWER

        async with exporting(respond) as place:
            assert (await ask(place, bytes(3 * MAX_HEAD))).status == 200
        assert sizes == [MAX_HEAD]

    run_async(main)


def test_one_that_says_nothing(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "PATIENCE", 0.05)

    async def main() -> None:
        async with exporting() as place, talking(place) as (reader, writer):
            assert await reader.read() == b""
            writer.write(GET)

    run_async(main)


def test_one_that_goes_on_talking_gets_its_answer(run_async: Run) -> None:
    async def main() -> None:
        async with exporting() as place, talking(place) as (reader, writer):
            writer.write(GET + bytes(LARGE))
            assert Response.parse(await reader.readuntil(b"\r\n\r\n")).status == 200

    run_async(main)


def test_one_that_does_not_read(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and others are served meanwhile."""
    monkeypatch.setattr(exporter, "PATIENCE", 0.5)
    answer = ANSWER + bytes(LARGE)

    async def main() -> None:
        async with exporting(lambda _: answer) as place, talking(place) as (reader, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a transport that reads as well
            writer.write(GET)
            while not being_served():
                await asyncio.sleep(0)
            await asyncio.sleep(0)  # it has begun, with its patience
            monkeypatch.setattr(exporter, "PATIENCE", LONG)
            assert len((await ask(place)).content) == LARGE
            while being_served():
                await asyncio.sleep(0)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            with suppress(ConnectionError):
                assert len(await reader.read()) < LARGE

    run_async(main)


def test_those_that_come_and_go_at_once(run_async: Run) -> None:
    async def main() -> None:
        async with exporting() as place:
            for _ in range(20):
                with socket.socket() as sock:
                    sock.connect(place)
                    sock.send(GET)
                    # Closes by a reset.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                socket.create_connection(place).close()  # type: ignore[arg-type]  # not a path here
            assert (await ask(place)).status == 200

    run_async(main)


def test_a_crowd_waits_its_turn(run_async: Run) -> None:
    async def main() -> None:
        async with exporting() as place:
            with ExitStack() as crowd:
                for _ in range(5 * MOST):
                    crowd.enter_context(socket.create_connection(place))  # type: ignore[arg-type]  # not a path
                while being_served() < MOST:
                    await asyncio.sleep(0)
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert being_served() == MOST
            assert (await ask(place)).status == 200

    run_async(main)


def test_pages_take_a_small_part_of_the_time(run_async: Run) -> None:
    cost, pages = 0.002, 5

    def respond(_: bytes) -> bytes:
        until = time.perf_counter() + cost
        while time.perf_counter() < until:
            pass
        return ANSWER

    async def main() -> None:
        async with exporting(respond) as place:
            begin = time.perf_counter()
            await asyncio.gather(*(ask(place) for _ in range(pages)))
            assert time.perf_counter() - begin > REST * cost * pages

    run_async(main)


def test_a_fault_costs_one_connection(run_async: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        faults = [ZeroDivisionError("a fault")]

        def respond(_: bytes) -> bytes:
            if faults:
                raise faults.pop()
            return ANSWER

        async with exporting(respond) as place:
            async with talking(place) as (reader, writer):
                writer.write(GET)
                assert await reader.read() == b""
            assert (await ask(place)).status == 200
        assert "a fault of this program" in caplog.text

    run_async(main)


def test_no_fds_left(
    run_async: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vhostd.host.accept.PAUSE", 0.0)

    async def main() -> None:
        async with exporting() as place:
            await asyncio.sleep(0)
            with socket.socket() as sock:
                soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                lowest = os.dup(0)
                os.close(lowest)
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
                try:
                    sock.connect(place)
                    while "no client can be accepted" not in caplog.text:
                        await asyncio.sleep(0)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (await ask(place)).status == 200

    caplog.set_level(logging.WARNING)
    run_async(main)
