"""SEQPACKET: messages keep their bounds, whatever they are cut into."""

import asyncio
import random
import socket
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import CID, rig
from vhostd.frontend.drivers.vsock import HOST, RW, SEQ_EOM, SEQ_EOR, SEQPACKET, STREAM, Packet

PORT = 5000
SIZES = (1, 44, 4051, 4052, 4053, 65536, 65537, 200_000)
KIND = socket.SOCK_SEQPACKET


def message(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("room", [128, 4096, 1 << 17])
def test_messages_of_all_sizes_pass_both_ways(tmp_path: Path, run_async: Run, room: int) -> None:
    async def main() -> None:
        async with rig(tmp_path, room=room) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            for size in SIZES:
                await ours.send(message(size), SEQ_EOR)  # of which a unix socket knows nothing
                assert await there.receive(theirs, 1 << 18) == message(size)
                await there.send(theirs, message(size))
                assert await ours.receive_message() == (message(size), SEQ_EOM)
            theirs.close()
            assert await ours.receive_message() == (b"", 0)

    run_async(main)


def test_a_client_of_the_host_sends_messages(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver.listen(PORT)
            theirs = await there.client(b"CONNECT 5000", KIND)
            ours = await there.driver.accept(PORT)
            assert ours.kind == SEQPACKET
            assert await there.receive(theirs) == b"OK %d\n" % ours.peer[1]
            await ours.send(message(220_000))
            assert await there.receive(theirs, 1 << 18) == message(220_000)
            for size in (10, 5000, 1):
                await there.send(theirs, message(size))
            assert [(await ours.receive_message())[0] for _ in range(3)] == [
                message(10),
                message(5000),
                message(1),
            ]

    run_async(main)


@pytest.mark.parametrize("pieces", [1023, 1024, 1025, 1400])
def test_a_message_in_many_pieces_is_whole(tmp_path: Path, run_async: Run, pieces: int) -> None:
    """Linux takes 1024 in one system call."""

    async def main() -> None:
        async with rig(tmp_path, size=2048) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            data = message(pieces)
            packet = Packet(
                src_cid=CID,
                dst_cid=HOST,
                src_port=ours.local_port,
                dst_port=PORT,
                len=pieces,
                type=SEQPACKET,
                op=RW,
                flags=SEQ_EOM,
                buf_alloc=ours.buf_alloc,
                fwd_cnt=0,
            )
            await there.driver._tx.request((packet.pack(), *(data[at : at + 1] for at in range(pieces))))
            assert await there.receive(theirs) == data

    run_async(main)


def test_messages_wait_for_a_slow_host(tmp_path: Path, run_async: Run) -> None:
    sizes = [1 + number * 97 % 9000 for number in range(200)]

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)

            async def send() -> None:
                for size in sizes:
                    await ours.send(message(size))

            sending = asyncio.create_task(send())
            received = [await there.receive(theirs) for _ in sizes]
            await sending
            assert received == [message(size) for size in sizes]

    run_async(main)


def test_a_message_that_waits_for_credit_goes_on(tmp_path: Path, run_async: Run) -> None:
    """The socket has nothing more to read meanwhile: nobody but the guest says that it goes on."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            for size in (200_000, 100_000):
                await there.send(theirs, message(size))
            assert await ours.receive_message() == (message(200_000), SEQ_EOM)
            assert await ours.receive_message() == (message(100_000), SEQ_EOM)

    run_async(main)


def test_a_message_that_the_guest_could_never_take_ends_the_connection(
    tmp_path: Path, run_async: Run
) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            ours.buf_alloc = 5000
            await ours.tell(6)
            await there.send(theirs, bytes(5001))
            await ours.until_closed()
            assert await there.receive(theirs) == b""

    run_async(main)


def test_a_stream_does_not_reach_a_server_of_messages(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.serve(PORT, KIND)
            there.serve(PORT + 1)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT, kind=STREAM)
            with pytest.raises(ConnectionRefusedError):
                await there.driver.connect(PORT + 1, kind=SEQPACKET)

    run_async(main)


def test_empty_messages_are_passed_over(tmp_path: Path, run_async: Run) -> None:
    """No socket of Linux sends them to a device, and its readers would take them for the end."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT, KIND)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            theirs = await there.accept(server)
            await ours.tell(RW, SEQ_EOM)
            await ours.send(b"after")
            assert await there.receive(theirs) == b"after"
            theirs.send(b"")
            theirs.send(b"before")
            assert await ours.receive_message() == (b"before", SEQ_EOM)

    run_async(main)
