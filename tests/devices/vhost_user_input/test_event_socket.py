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
from vhost_user_input import waiting
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
            for count, code in ((4, b"001e"), (8, b"001f")):
                _, writer = await connect(path)
                writer.write((PRESS + END + RELEASE + END).replace(b"001e", code))
                await hang_up(writer)
                await sink.until(events=count)
        strokes = [[(1, code, 1), SYN, (1, code, 0), SYN] for code in (30, 31)]
        assert sink.events == strokes[0] + strokes[1]
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


def test_nothing_reaches_a_guest_before_it_listens(run: Runner, path: str) -> None:
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
            sink.shut()
            writer.write(RELEASE + END)
            await sink.until(waiting=1)
            assert len(sink.events) == 2
            sink.open()
            await sink.until(events=4)
            await hang_up(writer)

    run(main())


def test_what_a_client_holds_is_released_when_it_goes(run: Runner, path: str) -> None:
    """After all that it has sent."""

    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write(PRESS + END + PRESS.replace(b"001e", b"001f") + END)
            await hang_up(writer)
            assert await sink.until(events=7) == [
                (1, 30, 1),
                SYN,
                (1, 31, 1),
                SYN,
                (1, 30, 0),
                (1, 31, 0),
                SYN,
            ]

    run(main())


def test_a_client_that_is_cut_off_holds_nothing(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink) as source:
            client = socket.socket(socket.AF_UNIX)
            client.connect(path)
            client.sendall(PRESS + END)
            await sink.until(events=2)
            source.write(pack((0x11, 1, 1), SYN))
            client.close()  # with unread data, which is a reset to the other side
            assert await sink.until(events=4) == [(1, 30, 1), SYN, (1, 30, 0), SYN]

    run(main())


def test_what_another_client_holds_stays(run: Runner, path: str) -> None:
    async def main() -> None:
        sink = FakeSink()
        async with served(path, sink):
            clients = [await connect(path) for _ in range(2)]
            for count, (_, writer) in enumerate(clients, 1):
                writer.write(PRESS + END)
                await sink.until(events=2 * count)
            for _, writer in clients:
                await hang_up(writer)
            await sink.until(events=6)
            while sink.origins:
                await asyncio.sleep(0)
            assert sink.events == [(1, 30, 1), SYN] * 2 + [(1, 30, 0), SYN]

    run(main())


async def say(path: str, text: bytes) -> bytes:
    """As `printf | socat` does; returns what is answered until the other end closes."""
    reader, writer = await connect(path)
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    await hang_up(writer)
    return answer


def stroke(code: int) -> bytes:
    return (PRESS + END + RELEASE + END).replace(b"001e", b"%04x" % code)


def test_clients_that_have_gone_do_not_keep_their_places(run: Runner, path: str) -> None:
    """What they said before a guest listens is typed when one does, in order."""

    async def main() -> None:
        sink = FakeSink(is_open=False)
        codes = [number % 80 + 1 for number in range(2 * MAX_CLIENTS)]
        async with served(path, sink):
            for code in codes:
                assert await say(path, stroke(code)) == b""
            assert sink.events == []
            sink.open()
            await sink.until(events=4 * len(codes))
        assert [event[1] for event in sink.events if event[:1] + event[2:] == (1, 1)] == codes

    run(main())


def test_what_is_too_much_for_no_guest_is_forgotten_oldest_first(
    run: Runner, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        sink = FakeSink(is_open=False)
        monkeypatch.setattr(waiting, "MOST", 3 * (32 + waiting.OVERHEAD) + 3 * waiting.OVERHEAD)
        async with served(path, sink):
            for code in range(1, 6):
                await say(path, stroke(code))
            sink.open()
            await sink.until(events=12)
        assert [event[1] for event in sink.events if event[:1] + event[2:] == (1, 1)] == [3, 4, 5]
        assert len(sink.forgotten) == 8

    run(main())
    assert "no guest takes events" in caplog.text


def test_what_is_too_old_is_forgotten_but_what_is_held(
    run: Runner, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        sink = FakeSink(is_open=False)
        monkeypatch.setattr(waiting, "PATIENCE", 0)
        async with served(path, sink):
            _, writer = await connect(path)
            writer.write(stroke(31) + PRESS + END)
            await sink.until(forgotten=6)
            assert list(sink.state.held().values()) == [1]
            await hang_up(writer)
            await sink.until(forgotten=8)
            assert not sink.state.held()
            sink.open()
            assert sink.events == []

    run(main())


def test_while_a_guest_listens_clients_wait(run: Runner, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And wait no longer when it stops listening."""

    async def main() -> None:
        sink = FakeSink()
        monkeypatch.setattr(waiting, "MOST", 0)
        monkeypatch.setattr(sink, "room", asyncio.Event().wait)
        async with served(path, sink):
            reader, writer = await connect(path)
            writer.write(stroke(31))
            while not sink.origins:
                await asyncio.sleep(0)
            writer.write_eof()
            for _ in range(100):
                await asyncio.sleep(0)
            assert sink.events == []
            assert not reader.at_eof()
            sink.shut()
            assert await reader.read() == b""
            await sink.until(forgotten=4)
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


def test_clients_that_come_and_go_do_not_fill_memory(
    run: Runner, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a guest that hangs: they wait, as many as there may be, and the others are told so."""

    async def main() -> None:
        sink = FakeSink()
        monkeypatch.setattr(waiting, "MOST", 0)
        monkeypatch.setattr(sink, "room", asyncio.Event().wait)
        async with served(path, sink):
            assert await say(path, PRESS) == b""  # the first fills the queue
            clients = [await connect(path) for _ in range(MAX_CLIENTS)]
            for _, writer in clients:
                await hang_up(writer)
            assert b"clients already" in await say(path, b"")

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
