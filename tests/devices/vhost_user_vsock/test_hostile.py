"""Guests that lie: in every field of the header, about credit, and by the million."""

import asyncio
import random
import socket
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_vsock.rig import CID, Rig, rig
from vhostd.errors import GuestError
from vhostd.frontend.drivers.vsock import (
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    HOST,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SEQPACKET,
    SHUTDOWN,
    STREAM,
    Packet,
)

PORT = 5000
PORTS = count(PORT + 1)
WORD = 0xFFFF_FFFF
MOST_RESETS = 1024  # that the device keeps


def packet(**changes: int) -> Packet:
    """A packet of no connection, with these changes."""
    usual = {
        "src_cid": CID,
        "dst_cid": HOST,
        "src_port": 1,
        "dst_port": 2,
        "len": 0,
        "type": STREAM,
        "op": RW,
    }
    return Packet(**{**usual, "flags": 0, "buf_alloc": 1 << 18, "fwd_cnt": 0, **changes})


async def still_works(there: Rig) -> None:
    """Another connection is served as if nothing had been."""
    port = next(PORTS)
    server = there.serve(port)
    ours = await there.driver.connect(port)
    theirs = await there.accept(server)
    await ours.send(b"fine")
    assert await there.receive(theirs) == b"fine"
    server.close()


@pytest.mark.parametrize("op", [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xFFFF])
def test_what_belongs_to_no_connection_is_reset(tmp_path: Path, run_async: Run, op: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            await there.driver.send(packet(op=op, src_port=WORD, dst_port=WORD))
            await still_works(there)
            assert [stray.op for stray in there.driver.strays] == [RST]

    run_async(main)


def test_what_is_in_the_name_of_another_is_nothing(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            for cid in (0, 1, HOST, CID + 1, WORD, (1 << 64) - 1, CID | 1 << 32):
                await there.driver.send(packet(op=REQUEST, src_cid=cid))
            await still_works(there)
            assert not there.driver.strays

    run_async(main)


@pytest.mark.parametrize("kind", [0, SEQPACKET, 3, 0xFFFF])
def test_another_type_is_reset(tmp_path: Path, run_async: Run, kind: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.serve(PORT)
            ours = await there.driver.connect(PORT)
            await there.driver.send(packet(src_port=ours.local_port, dst_port=PORT, type=kind))
            await still_works(there)

    run_async(main)


@pytest.mark.parametrize("op", [0, REQUEST, RESPONSE, 8, 0xFFFF])
def test_what_is_out_of_place_ends_the_connection(tmp_path: Path, run_async: Run, op: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            await ours.tell(op)
            await ours.until_closed()
            assert await there.receive(theirs) == b""
            await still_works(there)

    run_async(main)


@pytest.mark.parametrize("op", [RW, SHUTDOWN, CREDIT_REQUEST, REQUEST])
def test_what_comes_before_the_answer_ends_the_call(tmp_path: Path, run_async: Run, op: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            client = await there.client(b"CONNECT 5000\n")
            calls: asyncio.Queue[Packet] = asyncio.Queue()
            there.driver._called_by = calls.put_nowait  # type: ignore[method-assign,assignment]
            call = await calls.get()
            await there.driver.send(packet(op=op, src_port=PORT, dst_port=call.src_port))
            assert await there.receive(client) == b""

    run_async(main)


@pytest.mark.parametrize("length", [5, 1 << 16, WORD])
def test_a_length_that_is_not_there_breaks_the_ring(tmp_path: Path, run_async: Run, length: int) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            with pytest.raises(GuestError):
                await there.driver.send(packet(len=length), b"data")

    run_async(main)


def test_a_guest_that_sends_more_than_its_credit_loses_the_connection(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path, "--tx-buffer-size=64K") as there:
            there.serve(PORT)
            ours = await there.driver.connect(PORT)
            while not ours.closed:
                await ours.tell(RW, data=bytes(1 << 14))
                assert ours._sent < 100
            await still_works(there)

    run_async(main)


def test_a_message_that_never_ends_is_not_kept(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path, "--tx-buffer-size=64K") as there:
            there.serve(PORT, socket.SOCK_SEQPACKET)
            ours = await there.driver.connect(PORT, kind=SEQPACKET)
            for _ in range(5):
                await ours.tell(RW, data=bytes(1 << 14))
            await ours.until_closed()
            await still_works(there)

    run_async(main)


@pytest.mark.parametrize(("buf_alloc", "fwd_cnt"), [(0, 0), (0, WORD), (WORD, WORD), (1, 1 << 31), (WORD, 0)])
def test_credit_that_lies_harms_nobody_else(
    tmp_path: Path, run_async: Run, buf_alloc: int, fwd_cnt: int
) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            server = there.serve(PORT)
            ours = await there.driver.connect(PORT)
            theirs = await there.accept(server)
            ours.buf_alloc = WORD  # the driver counts, and is not to complain
            numbers = {"src_port": ours.local_port, "dst_port": PORT}
            await there.driver.send(packet(op=CREDIT_UPDATE, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt, **numbers))
            theirs.send(bytes(1 << 17))
            await still_works(there)
            theirs.close()
            await still_works(there)

    run_async(main)


def test_ports_by_the_million_cost_nothing(tmp_path: Path, run_async: Run) -> None:
    """Each request has its answer, and none is remembered. A few thousand stand for the million."""

    async def main() -> None:
        async with rig(tmp_path) as there:
            for port in range(1500):
                await there.driver.send(packet(op=REQUEST, src_port=port, dst_port=port * 1_000_003 % WORD))
            await still_works(there)
            assert len(there.driver.strays) == 1500
            assert len(list(there.device._board.traffic)) == 1

    run_async(main)


def test_resets_that_nobody_takes_are_not_piled_up(tmp_path: Path, run_async: Run) -> None:
    async def main() -> None:
        async with rig(tmp_path) as there:
            there.driver._room = 0
            rx = there.driver._rx
            there.driver._loop.remove_reader(rx.fileno())  # it takes no packets, and gives no more buffers
            tx = there.driver._tx
            for port in range(rx.size + MOST_RESETS):
                await tx.request(packet(op=RW, src_port=port).pack())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await tx.request(packet(op=RW, src_port=WORD).pack())
            there.driver._room = 4096
            there.driver._loop.add_reader(rx.fileno(), there.driver._called)
            there.driver._called()
            await still_works(there)

    run_async(main)


def test_any_header_at_all(tmp_path: Path, run_async: Run) -> None:
    """Random packets around a few connections: the device goes on, and no socket is left over."""
    chance = random.Random(5)

    def word(bits: int) -> int:
        return chance.choice((0, 1, 2, 3, (1 << bits) - 1, 1 << (bits - 1), chance.getrandbits(bits)))

    async def main() -> None:
        async with rig(tmp_path, "--max-connections=20", "--tx-buffer-size=4K") as there:
            server = there.serve(PORT)
            for _ in range(2000):
                data = bytes(chance.choice((0, 0, 1, 100, 5000)))
                numbers = packet(
                    src_port=chance.randrange(3),
                    dst_port=chance.choice((PORT, word(32))),
                    dst_cid=chance.choice((HOST, HOST, HOST, word(64))),
                    len=len(data),
                    type=chance.choice((STREAM, STREAM, STREAM, SEQPACKET, word(16))),
                    op=chance.choice((REQUEST, RESPONSE, RST, SHUTDOWN, RW, RW, CREDIT_UPDATE, word(16))),
                    flags=word(32),
                    buf_alloc=word(32),
                    fwd_cnt=word(32),
                )
                await there.driver.send(numbers, data)
            server.close()
            there.device.reset()
            await still_works(there)

    run_async(main)
