"""Clients of the host, as people start them: in a hurry, impatient, mistaken, and too many."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import rig, send_for_ever
from vhost_user_vsock import clients, device, switchboard
from vhost_user_vsock.clients import Clients
from vhostd.frontend.drivers.vsock import SHUTDOWN_RECEIVE, Packet

PORT = 5000
CONNECT = b"CONNECT 5000\n"


def test_what_is_sent_with_the_line_is_the_guests(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client(CONNECT + b"at once")
            ours = await there.driver.accept(PORT)
            assert await ours.receive() == b"at once"
            await ours.send(b"answer")
            assert await there.receive_exactly(theirs, 20) == b"OK %d\n" % ours.peer[1] + b"answer"[:6]

    run_async(main)


def test_a_line_may_come_in_pieces(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client()
            for piece in (b"con", b"nect 50", b"00", b"\r\nrest"):
                await there.send(theirs, piece)
                await asyncio.sleep(0.001)
            ours = await there.driver.accept(PORT)
            assert await ours.receive() == b"rest"

    run_async(main)


def test_a_client_that_only_sends_may_go_before_the_guest_answers(tmp_path: Path, run_async: Run) -> None:
    """`echo ... | socat -u - UNIX-CONNECT:...`: nobody is there to read the OK."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client(CONNECT + b"message")
            theirs.close()
            ours = await there.driver.accept(PORT)
            assert (await ours.receive(), await ours.receive()) == (b"message", b"")

    run_async(main)


def test_what_a_client_has_left_is_given_up_if_no_guest_takes_it(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "ABANDON_TIMEOUT", 0.01)

    async def main() -> None:
        async with rig(tmp_path, "--max-connections=1") as there:
            calls: asyncio.Queue[Packet] = asyncio.Queue()
            there.driver._called_by = calls.put_nowait  # type: ignore[method-assign,assignment]
            (await there.client(CONNECT + b"message")).close()
            await calls.get()
            while not there.driver.strays:  # RST: it is given up
                await asyncio.sleep(0.001)
            await there.client(CONNECT)
            await calls.get()

    run_async(main)


def test_a_client_that_waits_may_wait(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("ABANDON_TIMEOUT", "LINK_TIMEOUT", "LINGER_TIMEOUT"):
        monkeypatch.setattr(switchboard, limit, 0.0)

    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            there.device.reset()
            theirs = await there.client(CONNECT + b"message")
            ours = await there.driver.accept(PORT)
            assert not there.device._board._limits
            assert await ours.receive() == b"message"
            assert await there.receive(theirs) == b"OK %d\n" % ours.peer[1]

    run_async(main)


def test_a_client_that_says_nothing_is_turned_away(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "LINE_TIMEOUT", 0.01)

    async def main() -> None:
        async with rig(tmp_path) as there:
            for line in (b"", b"CONNECT 50"):
                theirs = await there.client(line)
                assert await there.receive(theirs) == b""

    run_async(main)


def test_the_limit_for_a_client_is_lifted_when_it_has_said_all(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[asyncio.TimerHandle] = []

    class Watched(Clients):
        def _forget(self, client: socket.socket) -> socket.socket:
            limits.append(self._limits[client])
            return super()._forget(client)

    monkeypatch.setattr(device, "Clients", Watched)

    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client(CONNECT)
            ours = await there.driver.accept(PORT)
            assert await there.receive(theirs) == b"OK %d\n" % ours.peer[1]
            assert limits.pop().cancelled()

    run_async(main)


def test_clients_that_say_nothing_have_places_of_their_own(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "MOST_LINES", 2)

    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            first, second, third = [await there.client() for _ in range(3)]
            assert await there.receive(third) == b""
            for client in (first, second):
                await there.send(client, CONNECT)
                assert (await there.receive(client)).startswith(b"OK")
            fourth = await there.client(CONNECT)
            assert (await there.receive(fourth)).startswith(b"OK")

    run_async(main)


def test_a_client_that_reads_nothing_may_send(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client()
            theirs.shutdown(socket.SHUT_RD)
            await there.send(theirs, CONNECT + b"message")
            ours = await there.driver.accept(PORT)
            assert await ours.receive() == b"message"
            with pytest.raises(BrokenPipeError):
                await send_for_ever(ours)
            assert ours.peer_shutdown == SHUTDOWN_RECEIVE

    run_async(main)


@pytest.mark.parametrize(
    "line", [b"CONNECT\n", b"CONNECT 4294967295\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 100]
)
def test_another_line_is_turned_away(tmp_path: Path, run_async: Run, line: bytes) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            theirs = await there.client(line)
            with suppress(ConnectionResetError):  # it is closed over bytes that nobody wants
                assert await there.receive(theirs) == b""

    run_async(main)


def test_a_client_that_says_nothing_and_goes_is_forgotten(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path, "--max-connections=1") as there:
            there.driver.listen(PORT)
            for line in (b"", b"CONNECT 50"):
                theirs = await there.client(line)
                theirs.shutdown(socket.SHUT_WR)
                assert await there.receive(theirs) == b""
            await there.client(CONNECT)
            assert await there.driver.accept(PORT)

    run_async(main)


def test_there_are_no_more_connections_than_there_may_be(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path, "--max-connections=2") as there:
            server = there.serve(PORT)
            there.driver.listen(PORT)
            first = await there.driver.connect(PORT)
            second = await there.client(CONNECT)
            ours = await there.driver.accept(PORT)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT)
            assert await there.receive(await there.client()) == b""
            assert await there.receive(second) == b"OK %d\n" % ours.peer[1]
            await first.close()
            assert await there.driver.connect(PORT)
            server.close()

    run_async(main)


def test_a_server_that_is_overrun_refuses_and_nobody_waits(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.serve(PORT, backlog=0)
            await there.driver.connect(PORT)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT)

    run_async(main)


def test_a_call_waits_for_a_guest(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.device.reset()
            theirs = await there.client(CONNECT)
            there.device.reset()  # a guest that starts
            there.driver.listen(PORT)
            ours = await there.driver.accept(PORT)
            assert await there.receive(theirs) == b"OK %d\n" % ours.peer[1]
            there.device.reset()
            assert await there.receive(theirs) == b""

    run_async(main)
