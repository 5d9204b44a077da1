"""How connections end: half, whole, on either side, with data on the way."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import CID, Rig, rig, send_for_ever
from vhost_user_vsock import switchboard
from vhostd.frontend.drivers.vsock import (
    CREDIT_UPDATE,
    HOST,
    RESPONSE,
    RST,
    SHUTDOWN,
    SHUTDOWN_RECEIVE,
    SHUTDOWN_SEND,
    STREAM,
    Packet,
    VsockConnection,
)

PORT = 5000
BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND
MUCH = 1 << 20
PIECE = 1 << 16


async def connected(there: Rig) -> tuple[VsockConnection, socket.socket]:
    """A connection of the guest's, and the host's end of it."""
    server = there.serve(PORT)
    ours = await there.driver.connect(PORT)
    return ours, await there.accept(server)


def test_the_host_sends_no_more_and_reads_on(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await there.send(theirs, b"all")
            theirs.shutdown(socket.SHUT_WR)
            assert (await ours.receive(), await ours.receive()) == (b"all", b"")
            assert ours.peer_shutdown == SHUTDOWN_SEND
            await ours.send(b"answer")
            assert await there.receive(theirs) == b"answer"
            await ours.close()
            assert await there.receive(theirs) == b""

    run_async(main)


def test_the_guest_sends_no_more_and_reads_on(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await ours.send(b"all")
            await ours.shutdown(SHUTDOWN_SEND)
            assert (await there.receive(theirs), await there.receive(theirs)) == (b"all", b"")
            await there.send(theirs, b"answer")
            assert await ours.receive() == b"answer"
            theirs.close()
            await ours.until(lambda: ours.peer_shutdown == BOTH)

    run_async(main)


def test_both_send_no_more_one_after_the_other(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            theirs.shutdown(socket.SHUT_WR)
            assert await ours.receive() == b""
            await ours.send(b"last")
            await ours.shutdown(SHUTDOWN_SEND)
            assert (await there.receive(theirs), await there.receive(theirs)) == (b"last", b"")
            await ours.until(lambda: ours.peer_shutdown == BOTH)

    run_async(main)


def test_the_guest_takes_no_more(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await ours.shutdown(SHUTDOWN_RECEIVE)
            await ours.send(b"still sent")
            assert await there.receive(theirs) == b"still sent"
            with pytest.raises(BrokenPipeError):
                theirs.send(b"for nobody")
            await ours.close()

    run_async(main)


def test_the_host_takes_no_more(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            theirs.shutdown(socket.SHUT_RD)
            with pytest.raises(BrokenPipeError):
                await send_for_ever(ours)
            assert ours.peer_shutdown == SHUTDOWN_RECEIVE
            await there.send(theirs, b"still sent")
            assert await ours.receive() == b"still sent"
            await ours.close()

    run_async(main)


def test_the_host_closes(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await there.send(theirs, b"goodbye")
            theirs.close()
            assert (await ours.receive(), await ours.receive()) == (b"goodbye", b"")
            assert ours.peer_shutdown == BOTH
            await ours.tell(RST)

    run_async(main)


def test_a_guest_that_does_not_answer_is_told_after_a_while(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "CLOSE_TIMEOUT", 0.01)

    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            theirs.close()
            await ours.until_closed()
            assert ours.peer_shutdown == BOTH

    run_async(main)


def test_bytes_of_a_closed_connection_still_reach_a_slow_host(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            sending = asyncio.create_task(ours.send(bytes(MUCH)))
            assert await there.receive_exactly(theirs, MUCH // 2) == bytes(MUCH // 2)
            await asyncio.sleep(0)
            rest = asyncio.create_task(there.receive_exactly(theirs, MUCH // 2))
            await sending
            await ours.close()
            assert await rest == bytes(MUCH // 2)
            assert await there.receive(theirs) == b""

    run_async(main)


def test_what_nobody_has_read_is_no_error_for_the_host(tmp_path: Path, run_async: Run) -> None:
    """A socket that is closed over unread bytes would end its peer with ECONNRESET."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await ours.send(b"answer")
            ours.buf_alloc = 0
            await ours.tell(CREDIT_UPDATE)  # no credit any more
            await there.send(theirs, b"unread")
            await ours.close()
            assert (await there.receive(theirs), await there.receive(theirs)) == (b"answer", b"")

    run_async(main)


def test_an_address_can_be_used_again_at_once(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            for number in range(3):
                ours = await there.driver.connect(PORT, local_port=1024)
                theirs = await there.accept(server)
                await ours.send(b"%d" % number)
                assert await there.receive(theirs) == b"%d" % number
                await ours.close()

    run_async(main)


def test_a_reset_is_not_answered(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            ours, theirs = await connected(there)
            await ours.tell(RST)
            await ours.tell(RST)
            assert await there.receive(theirs) == b""
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(1)
            assert not there.driver.strays
            assert not ours.closed

    run_async(main)


def test_a_shutdown_of_no_connection_is_answered(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            numbers = {"src_port": 1, "dst_port": 2, "len": 0, "type": STREAM, "buf_alloc": 0, "fwd_cnt": 0}
            await there.driver.send(Packet(src_cid=CID, dst_cid=HOST, op=SHUTDOWN, flags=3, **numbers))
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(1)
            assert [(stray.op, stray.src_port, stray.dst_port) for stray in there.driver.strays] == [
                (RST, 2, 1)
            ]

    run_async(main)


def test_a_host_s_end_that_takes_nothing_more_is_given_up(
    tmp_path: Path, run_async: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "LINGER_TIMEOUT", 0.01)

    async def main() -> None:
        async with rig(tmp_path, "--max-connections=1") as there:
            ours, theirs = await connected(there)
            await fill(there, ours)
            await ours.close()
            await until(lambda: there.device._board.room == 1)
            assert 0 < len(await read_all(there, theirs)) < ours._sent

    run_async(main)


def test_a_slow_host_s_end_that_takes_something_gets_all(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            board = there.device._board
            ours, theirs = await connected(there)
            await fill(there, ours)
            (connection,) = board._open
            await ours.close()
            before, size = connection.backlog, 0
            while connection.backlog == before:
                size += len(await there.receive(theirs))
                await asyncio.sleep(0)
            assert connection.backlog
            board._look_again(connection, before)  # as when the limit is over
            assert size + len(await read_all(there, theirs)) == ours._sent

    run_async(main)


def test_a_new_connection_is_not_the_old_one_s(tmp_path: Path, run_async: Run) -> None:
    """The guest answers SHUTDOWN by nonsense, and uses the addresses again: the old one's limit is lifted."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            old = await closed_by_the_host(there, server, local_port=1024)
            (limit,) = there.device._board._limits.values()
            await old.tell(RESPONSE)
            await old.until_closed()
            new = await there.driver.connect(PORT, local_port=1024)
            theirs = await there.accept(server)
            assert limit.cancelled()
            await new.send(b"still there")
            assert await there.receive(theirs) == b"still there"

    run_async(main)


def test_an_old_connection_that_breaks_does_not_end_a_new_one(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            board = there.device._board
            server = there.serve(PORT)
            old = await there.driver.connect(PORT, local_port=1024)
            await there.accept(server)
            await fill(there, old)
            (connection,) = board._open
            await old.close()
            new = await there.driver.connect(PORT, local_port=1024)
            theirs = await there.accept(server)
            board.broke(connection, "as if its socket took no more")
            await new.send(b"still there")
            assert await there.receive(theirs) == b"still there"

    run_async(main)


def test_a_guest_that_never_answers_has_as_many_closed_connections_as_open_ones(
    tmp_path: Path, run_async: Run
) -> None:
    async def main() -> None:
        async with rig(tmp_path, "--max-connections=3") as there:
            server = there.serve(PORT)
            for _ in range(3 + 3):  # as many as may be open, and as many again
                ours = await closed_by_the_host(there, server)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT)
            await ours.tell(RST)
            await there.driver.connect(PORT)

    run_async(main)


async def closed_by_the_host(
    there: Rig, server: socket.socket, local_port: int | None = None
) -> VsockConnection:
    """A connection of the guest's, which it was told is closed."""
    ours = await there.driver.connect(PORT, local_port=local_port)
    (await there.accept(server)).close()
    await ours.until(lambda: ours.peer_shutdown == BOTH)
    return ours


async def fill(there: Rig, sender: VsockConnection) -> None:
    """Sends on the only connection until the host's end and the device have taken all that they keep."""
    (connection,) = there.device._board._open
    while not connection.backlog:
        await sender.send(bytes(PIECE))
    await sender.send(bytes(sender.credit))


async def read_all(there: Rig, sock: socket.socket) -> bytes:
    """All bytes up to the end."""
    return b"".join([part async for part in parts(there, sock)])


async def parts(there: Rig, sock: socket.socket) -> AsyncIterator[bytes]:
    while part := await there.receive(sock):
        yield part


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what no packet tells."""
    while not condition():
        await asyncio.sleep(0.001)
