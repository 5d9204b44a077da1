import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.devices.vhost_user_input.fakes import SYN, FakeSink, pack
from vhost_user_input.description import keyboard
from vhost_user_input.event_socket import MAX_CLIENTS, EventSocket
from vhostd import SetupError

PRESS, RELEASE = b"E: 0.0 0001 001e 0001\n", b"E: 0.0 0001 001e 0000\n"
END = b"E: 0.0 0000 0000 0000\n"

Runner = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def runner(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=factory) as loop:
            loop.run(main)

    return runner


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "events")


@asynccontextmanager
async def served(path: str, sink: FakeSink) -> AsyncIterator[EventSocket]:
    source = EventSocket(path, keyboard())
    task = asyncio.create_task(source.run(sink))
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.wait([task])
        source.close()


async def connect(path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def test_clients_one_after_another(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            for count, line in ((2, PRESS), (4, RELEASE)):
                _, writer = await connect(path)
                writer.write(line + END)
                await hang_up(writer)
                await sink.until(events=count)
        assert sink.events == [(1, 30, 1), SYN, (1, 30, 0), SYN]
        assert not os.path.exists(path)

    run(main())


def test_reports_of_clients_at_once_do_not_mix(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            (_, one), (_, other) = await connect(path), await connect(path)
            one.write(PRESS)
            other.write(PRESS.replace(b"001e", b"001f") + END)
            await sink.until(events=2)
            one.write(END)
            assert await sink.until(events=4) == [(1, 31, 1), SYN, (1, 30, 1), SYN]
            await hang_up(one)
            await hang_up(other)

    run(main())


def test_a_bad_line_is_answered_and_costs_nothing_else(
    run: Runner, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            reader, writer = await connect(path)
            writer.write(PRESS + b"E: 0.0 1 KEY_B 1\n" + END)
            answer = await reader.readline()
            assert answer == b"# error: code 'KEY_B' is not a hexadecimal number of 16 bits\n"
            assert await sink.until(events=2) == [(1, 30, 1), SYN]
            await hang_up(writer)

    run(main())
    assert "KEY_B" in caplog.text


def test_nothing_is_read_until_the_guest_listens(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink(is_open=False)
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write((PRESS + END) * 2)
            await hang_up(writer)
            await sink.until(waiting=1)
            assert sink.events == []
            sink.open()
            await sink.until(events=4)

    run(main())


def test_what_was_read_waits_when_the_guest_stops_listening(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write(PRESS + END)
            await sink.until(events=2)
            # The client's task waits for data, or is about to; either way it asks again before it delivers.
            sink.shut()
            writer.write(RELEASE + END)
            await sink.until(waiting=1)
            assert len(sink.events) == 2
            sink.open()
            await sink.until(events=4)
            await hang_up(writer)

    run(main())


def test_many_events(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write((PRESS + END + RELEASE + END) * 5000)
            await writer.drain()
            await hang_up(writer)
            await sink.until(events=20_000)

    run(main())


def test_an_unfinished_report_is_dropped(run: Runner, path: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write(PRESS)
            await hang_up(writer)
            _, writer = await connect(path)
            writer.write(RELEASE + END)
            await hang_up(writer)
            assert await sink.until(events=2) == [(1, 30, 0), SYN]

    run(main())
    assert "1 events without a SYN_REPORT" in caplog.text


def test_status_goes_to_all_clients(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink) as source:
            clients = [await connect(path) for _ in range(2)]
            for count, (_, writer) in enumerate(clients, 1):
                writer.write(PRESS + END)  # once it is delivered, the client is known
                await sink.until(events=2 * count)
            source.write(pack((0x11, 1, 1), SYN))
            for reader, writer in clients:
                led, end = await reader.readline(), await reader.readline()
                assert led.startswith(b"E: ")
                assert led.split()[2:] == [b"0011", b"0001", b"0001"]
                assert end.split()[2:] == [b"0000", b"0000", b"0000"]
                await hang_up(writer)

    run(main())


def test_a_client_that_does_not_read_blocks_nobody(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink) as source:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            client.sendall(PRESS + END)
            await sink.until(events=2)
            for _ in range(5000):
                source.write(pack((0x11, 1, 1), SYN))
            client.sendall(RELEASE + END)
            await sink.until(events=4)
            client.close()  # with unread data, which is a reset to the other side
            _, writer = await connect(path)
            writer.write(PRESS + END)
            await sink.until(events=6)
            await hang_up(writer)

    run(main())


def test_too_many_clients(run: Runner, path: str) -> None:
    async def main() -> None:
        async with served(path, FakeSink()):
            clients = [await connect(path) for _ in range(MAX_CLIENTS)]
            reader, writer = await connect(path)
            assert b"clients already" in await reader.readline()
            for _, each in [*clients, (reader, writer)]:
                await hang_up(each)

    run(main())


def test_a_stale_socket_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    source = EventSocket(path, keyboard())
    source.close()
    source.close()
    assert not os.path.exists(path)


def test_a_socket_in_use_is_left_alone(path: str) -> None:
    first = EventSocket(path, keyboard())
    with pytest.raises(SetupError, match="another socket is in use"):
        EventSocket(path, keyboard())
    first.close()


def test_another_file_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(SetupError, match="is no socket"):
        EventSocket(path, keyboard())
    assert Path(path).read_text() == "precious"


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none" / "s", "No such file"), (tmp_path / ("x" * 200), "too long")):
        with pytest.raises(SetupError, match=reason):
            EventSocket(str(path), keyboard())


def test_another_programs_socket_stays_at_the_end(path: str) -> None:
    source = EventSocket(path, keyboard())
    os.unlink(path)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        source.close()
        assert os.path.exists(path)
