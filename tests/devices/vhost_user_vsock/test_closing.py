"""How connections end: half, whole, on either side, with data on the way."""

import asyncio
import socket
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import CID, Rig, rig, send_for_ever
from vhost_user_vsock import switchboard
from vhostd.frontend.drivers.vsock import (
    HOST,
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
            ours.buf_alloc = 0
            await ours.tell(6)  # no credit any more
            await there.send(theirs, b"unread")
            await ours.send(b"answer")
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
