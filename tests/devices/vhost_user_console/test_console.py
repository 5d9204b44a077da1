"""The console device, driven by a front-end over a socket pair, with the real session between."""

import asyncio
import fcntl
import os
import struct
import termios
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_console.driven import client, driven, made, opened, received, running, started
from tests.sessions import connected, negotiated
from vhost_user_console import pty_line
from vhost_user_console.outlet import MOST
from vhostd.errors import GuestError, RefusedRequest
from vhostd.frontend import SharedMemory
from vhostd.frontend.drivers.console import (
    CONSOLE_PORT,
    DEVICE_READY,
    EMERG_WR,
    EMERG_WRITE,
    HEADER,
    MULTIPORT,
    PORT_ADD,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    RESIZE,
    SIZE,
    ConsoleDriver,
    Message,
    read_config,
)

AGENT = "org.qemu.guest_agent.0"


def console_and_agent(folder: Path) -> tuple[str, str]:
    """The options of two ports."""
    return "pty", f"name={AGENT},socket={folder}/agent"


def set_size(fd: int, rows: int, cols: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


# --- A console alone ------------------------------------------------------------------------------------


def test_bytes_go_both_ways(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (_, driver):
            with opened(tmp_path / "pty") as terminal:
                await driver.write(b"login: ")
                assert await terminal.read(7) == b"login: "
                terminal.write(b"root\n\x03")
                assert await driver.read(6) == b"root\n\x03"

    run_async(main)


def test_it_offers_what_a_lone_console_has(run_async: Run) -> None:
    async def main() -> None:
        async with running("pty") as device, driven(device) as (frontend, _):
            assert frontend.features >> SIZE & 1
            assert frontend.features >> EMERG_WRITE & 1
            assert not frontend.features >> MULTIPORT & 1
            assert await frontend.queue_num() == 2
            assert await read_config(frontend) == (0, 0, 1, 0)

    run_async(main)


def test_what_nobody_saw_is_kept_for_the_next(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty,keep=8") as device, driven(device) as (_, driver):
            await driver.write(b"dropped.")
            await driver.write(b"kept")
            await driver.write(b", too")
            with opened(tmp_path / "pty") as terminal:
                assert await terminal.read(8) == b"ept, too"
                await driver.write(b"!")
                assert await terminal.read(1) == b"!"

    run_async(main)


def test_a_console_never_makes_its_driver_wait(tmp_path: Path, run_async: Run) -> None:
    """The last of what it writes are there for somebody who begins to read late."""

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (_, driver):
            with opened(tmp_path / "pty") as terminal:
                piece = bytes(range(256)) * 256
                for _ in range(2 * MOST // len(piece)):
                    await driver.write(piece)
                shown = await terminal.read(MOST)
                assert shown[-MOST // 2 :] == (piece * (MOST // 2 // len(piece)))[: MOST // 2]

    run_async(main)


def test_a_terminal_that_hangs_up_comes_back(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (_, driver):
            for turn in (b"1", b"2", b"3"):
                with opened(tmp_path / "pty") as terminal:
                    terminal.write(b"in" + turn)
                    assert await driver.read(3) == b"in" + turn
                    await driver.write(b"out" + turn)
                    assert await terminal.read(4) == b"out" + turn

    run_async(main)


def test_somebody_who_types_and_goes_is_heard(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (_, driver):
            for _ in range(3):
                (tmp_path / "pty").write_bytes(b"echo\n")
                assert await driver.read(5) == b"echo\n"

    run_async(main)


def test_what_was_typed_for_no_guest_is_not_for_the_next_one(tmp_path: Path, run_async: Run) -> None:
    """However much it is."""

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device:
            with opened(tmp_path / "pty") as terminal, suppress(BlockingIOError):
                while os.write(terminal.fd, b"rm -r"):
                    await asyncio.sleep(0)
            while device._ports[0].line.is_open:
                await asyncio.sleep(0)
            async with driven(device) as (_, driver):
                with opened(tmp_path / "pty") as terminal:
                    terminal.write(b"ls")
                    assert await driver.read(2) == b"ls"

    run_async(main)


def test_nobody_there_costs_nothing(tmp_path: Path, run_async: Run) -> None:
    """While the terminal hangs up, the event loop has nothing to do for it."""

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (_, driver):
            with opened(tmp_path / "pty") as terminal:
                terminal.write(b"x")
                assert await driver.read(1) == b"x"
            while device._ports[0]._input.fd >= 0:
                await asyncio.sleep(0)
            assert not device._ports[0]._readable.poll(0)
            line = device._ports[0].line
            assert isinstance(line, pty_line.PtyLine)
            assert not line._is_there.is_set()

    run_async(main)


def test_the_size_follows_the_terminal(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pty_line, "SIZE_INTERVAL", 3600)

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (frontend, driver):

            async def becomes(cols: int, rows: int) -> None:
                while (await read_config(frontend))[:2] != (cols, rows):
                    pass

            with opened(tmp_path / "pty") as terminal:
                set_size(terminal.fd, rows=30, cols=100)
                terminal.write(b"x")
                assert await driver.read(1) == b"x"
                await becomes(100, 30)
                set_size(terminal.fd, rows=25, cols=80)
                with opened(tmp_path / "pty") as other:
                    await becomes(80, 25)
                    set_size(other.fd, rows=50, cols=132)  # as stty(1) does, which has it open for a moment
                await becomes(132, 50)

    run_async(main)


def test_whoever_has_the_terminal_open_may_change_its_size(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pty_line, "SIZE_INTERVAL", 0)

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, driven(device) as (frontend, _):
            for cols in (80, 100):
                with opened(tmp_path / "pty") as terminal:
                    for rows in (25, 30):
                        set_size(terminal.fd, rows=rows, cols=cols)
                        while (await read_config(frontend))[:2] != (cols, rows):
                            pass

    run_async(main)


def test_an_emergency_is_written_without_a_ring(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, negotiated(device) as (frontend, _):
            for character in b"panic":
                await frontend.write_config(EMERG_WR, bytes((character, 0, 0, 0)))
            await frontend.write_config(0, bytes(EMERG_WR) + b"!\0\0\0")  # as QEMU does
            with opened(tmp_path / "pty") as terminal:
                assert await terminal.read(6) == b"panic!"
            with pytest.raises(RefusedRequest):
                await frontend.write_config(0, b"\x50\0")

    run_async(main)


def test_a_flood_of_emergencies_is_bounded(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty,keep=16") as device:
            for character in range(100):
                device.write_config(EMERG_WR, bytes((character, 0, 0, 0)))
            with opened(tmp_path / "pty") as terminal:
                assert await terminal.read(16) == bytes(range(84, 100))

    run_async(main)


def test_a_driver_that_knows_of_one_port_only_gets_port_0(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        ports = (f"pty,link={tmp_path}/pty", f"name={AGENT},socket={tmp_path}/agent")
        async with running(*ports) as device, driven(device, features=1 << 32 | 1 << SIZE) as (_, driver):
            with opened(tmp_path / "pty") as terminal:
                await driver.write(b"out")
                assert await terminal.read(3) == b"out"
                terminal.write(b"in")
                assert await driver.read(2) == b"in"

    run_async(main)


# --- Several ports --------------------------------------------------------------------------------------


def test_what_a_driver_is_told_first(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        ports = ("pty", f"name={AGENT},socket={tmp_path}/agent")
        async with running(*ports) as device, driven(device, ports=2) as (frontend, driver):
            assert (await read_config(frontend)).max_nr_ports == 2
            assert await frontend.queue_num() == 6
            told = await driver.begin()
            assert sorted(message for message in told if message.port == 0) == [
                Message(0, PORT_ADD, 1),
                Message(0, CONSOLE_PORT, 1),
            ]
            assert [message for message in told if message.port == 1] == [
                Message(1, PORT_ADD, 1),
                Message(1, PORT_NAME, 1, AGENT.encode()),
            ]

    run_async(main)


def test_without_a_console_port_0_is_not_there(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with (
            running(f"name={AGENT},socket={tmp_path}/agent") as device,
            driven(device, ports=2) as (frontend, driver),
        ):
            assert not frontend.features >> EMERG_WRITE & 1
            await driver.send(DEVICE_READY)
            assert await driver.message() == Message(1, PORT_ADD, 1)
            await driver.write(b"for nobody")  # is taken
            with pytest.raises(RefusedRequest):
                await frontend.write_config(EMERG_WR, b"x\0\0\0")

    run_async(main)


def test_a_client_comes_and_goes(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=1)
            for turn in (b"1", b"2"):
                with client(tmp_path / "agent") as sock:
                    assert await driver.message() == Message(1, PORT_OPEN, 1)
                    sock.send(b"ping" + turn)
                    assert await driver.read(5, port=1) == b"ping" + turn
                    await driver.write(b"pong" + turn, port=1)
                    assert await received(sock, 5) == b"pong" + turn
                assert await driver.message() == Message(1, PORT_OPEN, 0)

    run_async(main)


def test_what_a_client_sends_waits_for_the_guest(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            with client(tmp_path / "agent") as sock:
                sock.send(b"first bytes")
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                await driver.send(PORT_OPEN, 1, port=1)
                assert await driver.read(11, port=1) == b"first bytes"
                await driver.send(PORT_OPEN, 0, port=1)
                sock.send(b"later")
                await driver.send(PORT_OPEN, 1, port=1)
                assert await driver.read(5, port=1) == b"later"

    run_async(main)


def test_a_client_that_says_a_last_thing_is_heard(tmp_path: Path, run_async: Run) -> None:
    """All of it, before the guest hears that it has gone."""

    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=1)
            with client(tmp_path / "agent") as sock:
                assert sock.send(bytes(100_000)) == 100_000
            assert await driver.message() == Message(1, PORT_OPEN, 1)
            assert await driver.read(100_000, port=1) == bytes(100_000)
            assert await driver.message() == Message(1, PORT_OPEN, 0)

    run_async(main)


def test_a_client_that_says_no_more_gets_its_answer(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=1)
            with client(tmp_path / "agent") as sock:
                sock.send(b"question")
                sock.shutdown(1)
                assert await driver.read(8, port=1) == b"question"
                await driver.write(b"answer", port=1)
                assert await received(sock, 6) == b"answer"

    run_async(main)


def test_the_next_client_gets_nothing_of_the_last_one_s(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=1)
            with client(tmp_path / "agent"):
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                await driver.write(bytes(1 << 20), port=1)  # more than the socket takes
            assert await driver.message() == Message(1, PORT_OPEN, 0)
            await driver.write(b"for nobody", port=1)
            with client(tmp_path / "agent") as sock:
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                await driver.write(b"new", port=1)
                assert await received(sock, 3) == b"new"

    run_async(main)


def test_all_that_was_kept_is_for_the_next_client(tmp_path: Path, run_async: Run) -> None:
    """It is more than what waits for a client that is slow."""

    async def main() -> None:
        async with (
            running("pty", f"name=log,socket={tmp_path}/log,keep=4M") as device,
            driven(device, ports=2) as (_, driver),
        ):
            await driver.begin()
            pieces = [os.urandom(60_000) for _ in range(50)]
            await _write(driver, pieces)
            with client(tmp_path / "log") as sock:
                assert await received(sock, 3_000_000) == b"".join(pieces)

    run_async(main)


def test_a_slow_client_loses_nothing(tmp_path: Path, run_async: Run) -> None:
    """The driver of a serial port waits for it."""

    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            with client(tmp_path / "agent") as sock:
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                pieces = [os.urandom(60_000) for _ in range(40)]
                writing = asyncio.create_task(_write(driver, pieces))
                while not device._ports[1].outlet.is_full:
                    await asyncio.sleep(0)
                assert not writing.done()
                assert await received(sock, 2_400_000) == b"".join(pieces)
                await writing

    run_async(main)


async def _write(driver: ConsoleDriver, pieces: list[bytes]) -> None:
    for piece in pieces:
        await driver.write(piece, port=1)


def test_a_client_that_does_not_read_keeps_no_ring(tmp_path: Path, run_async: Run) -> None:
    """A ring stops, though the driver waits."""

    async def main() -> None:
        async with (
            running(*console_and_agent(tmp_path)) as device,
            driven(device, ports=2) as (frontend, driver),
        ):
            await driver.begin()
            with client(tmp_path / "agent"):
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                queue = driver.queues[5]
                for _ in range(8):
                    queue.add(bytes(100_000))
                queue.kick()
                await frontend.stop(queue)

    run_async(main)


def test_a_console_s_size_is_a_message(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        ports = (f"pty,link={tmp_path}/pty", f"name={AGENT},socket={tmp_path}/agent")
        async with running(*ports) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=0)
            with opened(tmp_path / "pty") as terminal:
                assert await driver.message() == Message(0, PORT_OPEN, 1)
                set_size(terminal.fd, rows=30, cols=100)
                terminal.write(b"x")
                assert await driver.message() == Message(0, RESIZE, 0, struct.pack("<HH", 100, 30))

    run_async(main)


def test_a_file_gets_what_the_guest_writes(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        (tmp_path / "log").write_bytes(b"before\n")
        async with running(f"file={tmp_path}/log") as device, driven(device) as (_, driver):
            pieces = [os.urandom(50_000) for _ in range(MOST // 50_000)]  # a slow file may lose more
            for piece in pieces:
                await driver.write(piece)
            await device.finish()
            assert (tmp_path / "log").read_bytes() == b"before\n" + b"".join(pieces)

    run_async(main)


def test_a_reset_forgets_what_the_driver_knew(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device:
            for _ in range(2):
                async with driven(device, ports=2) as (_, driver):
                    await driver.begin()
                assert not device._ports[1].guest_is_open

    run_async(main)


# --- A driver of another program's ----------------------------------------------------------------------


def test_a_driver_that_was_set_up_before_is_told_of_all_ports_anew(tmp_path: Path, run_async: Run) -> None:
    """It has never read the config space here: an earlier program was there."""

    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device:
            memory = SharedMemory(1 << 20)
            with client(tmp_path / "agent") as sock, closing(memory):
                async with connected(device) as frontend:
                    await frontend.negotiate(resume=True)
                    await frontend.share(memory)
                    driver = await started(frontend, memory, ports=2)
                    assert await driver.message() == Message(0, PORT_ADD, 1)
                    assert await driver.message() == Message(1, PORT_ADD, 1)
                    sock.send(b"ping")
                    assert await driver.read(4, port=1) == b"ping"
                    driver.close()

    run_async(main)


def test_a_guest_that_came_from_elsewhere_hears_what_is_different(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        there = ("pty", f"name={AGENT},socket={tmp_path}/there")
        here = ("pty", f"name={AGENT},socket={tmp_path}/here")
        async with running(*there) as device, driven(device, ports=2) as (_, driver):
            await driver.begin()
            await driver.send(PORT_OPEN, 1, port=1)
            with client(tmp_path / "there"):
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                state = device.save()
        async with running(*here) as device, negotiated(device) as (frontend, memory):
            device.load(state, 1)
            driver = await started(frontend, memory, ports=2)
            assert await driver.message() == Message(1, PORT_OPEN, 0)
            with client(tmp_path / "here") as sock:
                assert await driver.message() == Message(1, PORT_OPEN, 1)
                sock.send(b"ping")
                assert await driver.read(4, port=1) == b"ping"
            driver.close()

    run_async(main)


# --- Hostile drivers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 7,
        HEADER.pack(5, PORT_READY, 1),
        HEADER.pack(0xFFFF_FFFF, PORT_OPEN, 1),
        HEADER.pack(1, 999, 1),
        HEADER.pack(1, PORT_ADD, 1),
        HEADER.pack(1, PORT_READY, 0xFFFF),
        HEADER.pack(0, DEVICE_READY, 0),
        HEADER.pack(1, PORT_OPEN, 1) + bytes(100_000),
    ],
)
def test_messages_without_sense_change_nothing(message: bytes, tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            await driver.queues[3].request(message or [], room=0 if message else 1)
            assert len(await driver.begin()) == 4

    run_async(main)


def test_questions_without_end_get_answers_as_there_is_room(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, driven(device, ports=2) as (_, driver):
            for _ in range(100):
                await driver.send(DEVICE_READY)
                await driver.send(PORT_READY, port=1)
            assert len(await driver.begin()) >= 4

    run_async(main)


def test_a_buffer_too_small_for_a_message_breaks_its_ring(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with running(*console_and_agent(tmp_path)) as device, negotiated(device) as (frontend, memory):
            rx, tx = await frontend.start(memory, 2), await frontend.start(memory, 3)
            await tx.request(HEADER.pack(0, DEVICE_READY, 1))
            with pytest.raises(GuestError):
                await rx.request(room=7)
            rx.close()
            tx.close()

    run_async(main)


def test_a_name_is_cut_where_a_buffer_ends(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with (
            running(f"name={AGENT},socket={tmp_path}/agent") as device,
            negotiated(device) as (frontend, memory),
        ):
            rx, tx = await frontend.start(memory, 2), await frontend.start(memory, 3)
            await tx.request(HEADER.pack(0, DEVICE_READY, 1))
            assert await rx.request(room=8) == HEADER.pack(1, PORT_ADD, 1)
            await tx.request(HEADER.pack(1, PORT_READY, 1))
            assert await rx.request(room=12) == HEADER.pack(1, PORT_NAME, 1) + b"org."
            rx.close()
            tx.close()

    run_async(main)


def test_buffers_that_make_no_sense(tmp_path: Path, run_async: Run) -> None:
    """One to read where there is to be written, and the other way round."""

    async def main() -> None:
        async with running(f"pty,link={tmp_path}/pty") as device, negotiated(device) as (frontend, memory):
            rx, tx = await frontend.start(memory, 0), await frontend.start(memory, 1)
            with opened(tmp_path / "pty") as terminal:
                terminal.write(b"x")
                rx.add(b"to be read")
                assert await rx.request(room=5) == b""
                assert (await rx.used())[1] == b"x"
                assert await tx.request(room=100) == b""
                await tx.request(b"still")
                assert await terminal.read(5) == b"still"
            rx.close()
            tx.close()

    run_async(main)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"\1\2\0\0\0",
        b"\2" + b"\2\0\0\0" + bytes(10) + b"\1" + bytes(9),
        b"\1" + b"\2\0\0\0" + bytes(10) + b"\2" + bytes(9),
        b"\1" + b"\2\0\0\0" + bytes(4) + b"\xff\xff" + bytes(4) + b"\1" + bytes(9),
        b"\1" + b"\2\0\0\0" + bytes(10) + b"\1" + bytes(10),
        b"\1" + b"\xff\xff\xff\xff",
    ],
)
def test_a_state_that_cannot_be(state: bytes, tmp_path: Path) -> None:
    device = made(*console_and_agent(tmp_path))
    try:
        before = device.save()
        with pytest.raises(RefusedRequest):
            device.load(state, 1)
        assert device.save() == before
        device.load(before, 1)
    finally:
        device.close()
