"""The card between a scripted driver and a pair of sockets."""

import asyncio
import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from types import SimpleNamespace

import pytest

from tests.conftest import PATIENCE, Run
from tests.devices.vhost_user_net.cables import KINDS, LENGTH, Cable
from tests.sessions import negotiated, refused
from vhost_user_net.device import Net, rarp
from vhost_user_net.features import VERSION_1
from vhost_user_net.features import Feature as F
from vhostd import Fd
from vhostd.errors import GuestError
from vhostd.frontend import Frontend, NetDriver, SharedMemory, signalled
from vhostd.frontend.drivers.net import (
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    HEADER,
    MRG_RXBUF,
    NEEDS_CSUM,
    SHORT_HEADER,
    Config,
    Header,
    read_config,
)
from vhostd.vhost_user.messages import GET_QUEUE_NUM, NET_SET_MTU, SEND_RARP
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import U64, Empty

MEMORY = 16 << 20
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
KIND = pytest.mark.parametrize("kind", KINDS)
MOST = 65535 + 14 + 8  # bytes of a frame
FOR_EVER = 1 << 60


def frame(size: int, seed: int = 1) -> bytes:
    """A frame of so many bytes, unlike any other."""
    return random.Random(f"{size} {seed}").randbytes(size)


class Bench:
    """A card on a cable, its driver, and its front-end."""

    def __init__(self, cable: Cable, net: Net, frontend: Frontend, memory: SharedMemory) -> None:
        self.cable = cable
        self.net = net
        self.frontend = frontend
        self.memory = memory
        self.driver: NetDriver

    async def until(self, true: Callable[[], bool]) -> None:
        """Lets the event loop go on until this is true."""
        async with asyncio.timeout(PATIENCE):
            while not true():
                await asyncio.sleep(0)

    async def receive(self) -> tuple[Header, bytes]:
        """The next packet that the driver gets, soon."""
        async with asyncio.timeout(PATIENCE):
            return await self.driver.receive()


@asynccontextmanager
async def bench(
    kind: str = "tap",
    *,
    packed: bool = False,
    without: int = 0,
    size: int = 256,
    buffer: int = 2048,
    cable: Cable | None = None,
) -> AsyncIterator[Bench]:
    """A card that runs, with all features but these."""
    cable = cable or Cable(kind)
    net = Net(cable)
    running = asyncio.create_task(net.run())
    features = (
        net.features | 1 << Feature.INDIRECT_DESC | 1 << Feature.EVENT_IDX | 1 << Feature.PROTOCOL_FEATURES
    )
    features |= packed << Feature.RING_PACKED
    try:
        async with negotiated(net, features & ~without, MEMORY) as (frontend, memory):
            made = Bench(cable, net, frontend, memory)
            made.driver = await NetDriver.start(frontend, memory, size=size, buffer=buffer)
            with closing(made.driver):
                yield made
    finally:
        running.cancel()
        await asyncio.wait([running])
        net.close()


# --- Transmit -------------------------------------------------------------------------------------------


@KIND
@PACKED
def test_frames_are_sent(run_async: Run, kind: str, packed: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench(kind, packed=packed) as card:
            for size in (14, 60, 1514, 9014, MOST):
                await card.driver.send(frame(size))
                expected = bytes(HEADER.size) * (kind == "tap") + frame(size)
                assert card.cable.sent() == expected
            assert card.net.counts()["transmit_packets"] == 5

    run_async(main)


@KIND
def test_a_frame_may_be_cut_anywhere(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            queue = card.driver._transmitq
            whole = bytes(HEADER.size) + frame(100)
            for cuts in ([1], [11], [12], [13], [5, 12, 26], list(range(1, 112))):
                ends = [0, *cuts, len(whole)]
                parts = [whole[begin:end] for begin, end in pairwise(ends)]
                await queue.request(parts)
                assert card.cable.sent()[-100:] == frame(100)

    run_async(main)


@KIND
def test_a_frame_in_more_pieces_than_a_call_takes_is_not_cut(run_async: Run, kind: str) -> None:
    """A stream copies it. Elsewhere it is dropped, and counted: no driver sends such frames."""
    whole = bytes(HEADER.size) + frame(1400)

    async def main() -> None:
        async with bench(kind, size=2048) as card:
            await card.driver._transmitq.request([whole[at : at + 1] for at in range(len(whole))])
            await card.driver.send(frame(60))
            if kind == "stream":
                assert card.cable.sent() == frame(1400)
            assert card.cable.sent()[-60:] == frame(60)
            assert card.net.counts()["transmit_dropped"] == (kind != "stream")

    run_async(main)


def test_a_tap_device_gets_the_header_as_it_is(run_async: Run) -> None:
    """The kernel judges it."""

    async def main() -> None:
        async with bench() as card:
            wild = Header(0xFF, 0xFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF)
            await card.driver.send(frame(60), wild)
            assert card.cable.sent() == HEADER.pack(*wild) + frame(60)

    run_async(main)


# What no offload is. A stream has those of TCP.
WRONG = (
    *(Header(gso_type=each) for each in (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN, 0xFF)),
    Header(NEEDS_CSUM, GSO_TCPV4, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF),
)


@pytest.mark.parametrize(
    ("kind", "header"),
    [
        ("datagrams", Header(flags=NEEDS_CSUM)),
        *((kind, header) for kind in ("datagrams", "stream") for header in WRONG),
    ],
)
def test_a_socket_takes_no_packet_that_asks_for_an_offload(run_async: Run, kind: str, header: Header) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            await card.driver.send(frame(60), header)
            await card.driver.send(frame(61), Header(0, 0, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF))
            assert card.cable.sent() == frame(61)
            assert card.net.counts()["transmit_dropped"] == 1

    run_async(main)


@KIND
@pytest.mark.parametrize("size", [0, 1, 13, MOST + 1, 1 << 20])
def test_what_is_no_frame_is_dropped(run_async: Run, kind: str, size: int) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            await card.driver.send(frame(size))
            await card.driver.send(frame(60))
            assert card.cable.sent()[-60:] == frame(60)
            assert card.net.counts()["transmit_dropped"] == 1

    run_async(main)


@KIND
@pytest.mark.parametrize("size", [1, 11])
def test_half_a_header_breaks_the_ring(run_async: Run, kind: str, size: int) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            with pytest.raises(GuestError):
                await card.driver._transmitq.request(bytes(size))

    run_async(main)


@KIND
def test_room_on_the_transmitq_breaks_the_ring(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            with pytest.raises(GuestError):
                await card.driver._transmitq.request(bytes(72), room=1)

    run_async(main)


@KIND
@pytest.mark.parametrize("at", [0, 1], ids=["header", "frame"])
def test_a_packet_outside_the_memory_breaks_the_ring(run_async: Run, kind: str, at: int) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            queue = card.driver._transmitq.queue
            buffers = [(card.memory.guest_addr, 12, False), (card.memory.guest_addr, 60, False)]
            buffers[at] = (1 << 50, buffers[at][1], False)
            queue.offer(buffers)
            queue.kick()
            async with asyncio.timeout(PATIENCE):
                await signalled(queue.err_fd)

    run_async(main)


@KIND
def test_a_host_that_is_slow_loses_nothing(run_async: Run, kind: str) -> None:
    """The driver waits, and others are served."""

    async def main() -> None:
        async with bench(kind) as card:
            count = 400
            sending = [asyncio.ensure_future(card.driver.send(frame(1514, i))) for i in range(count)]
            for _ in range(100):
                await asyncio.sleep(0)
            assert not all(sent.done() for sent in sending)
            assert (await card.frontend.call(GET_QUEUE_NUM, Empty())).value == 2
            for i in range(count):
                got = asyncio.get_running_loop().run_in_executor(None, card.cable.sent)
                assert (await got)[-1514:] == frame(1514, i)
            await asyncio.gather(*sending)
            assert card.net.counts()["transmit_packets"] == count
            assert not card.net.counts()["transmit_dropped"]

    run_async(main)


def test_a_ring_stops_while_the_host_is_slow(run_async: Run) -> None:
    async def main() -> None:
        async with bench("datagrams") as card:
            sending = [asyncio.ensure_future(card.driver.send(frame(1514, i))) for i in range(200)]
            for _ in range(100):
                await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await card.driver.stop()
            for each in sending:
                each.cancel()
            await asyncio.wait(sending)

    run_async(main)


# --- Receive --------------------------------------------------------------------------------------------


@KIND
@PACKED
@pytest.mark.parametrize("buffer", [64, 1526, 4096, 70000])
def test_frames_are_received(run_async: Run, kind: str, packed: bool, buffer: int) -> None:  # noqa: FBT001
    """In as many buffers as each needs."""

    async def main() -> None:
        async with bench(kind, packed=packed, buffer=buffer, size=2048 if buffer == 64 else 128) as card:
            for size in (14, 52, 53, 1514, 9014, 60, MOST, 60, MOST, MOST, 1514):
                card.cable.give([frame(size)])
                header, got = await card.receive()
                assert got == frame(size)
                assert header.num_buffers == -(-(size + HEADER.size) // buffer)
            assert card.net.counts()["receive_packets"] == 11

    run_async(main)


def test_the_header_of_a_tap_device_arrives(run_async: Run) -> None:
    async def main() -> None:
        async with bench(buffer=64) as card:
            sent = Header(NEEDS_CSUM, GSO_TCPV4, 54, 1448, 34, 16, 0)
            card.cable.give([frame(4000)], HEADER.pack(*sent))
            header, got = await card.receive()
            assert got == frame(4000)
            assert header == sent._replace(num_buffers=63)

    run_async(main)


@KIND
def test_a_burst_keeps_its_order(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind, size=64) as card:
            sizes = [random.Random(1).choice((60, 1514, 5000)) for _ in range(300)]
            sending = asyncio.get_running_loop().run_in_executor(
                None, card.cable.give, [frame(size, i) for i, size in enumerate(sizes)]
            )
            for i, size in enumerate(sizes):
                assert (await card.receive())[1] == frame(size, i)
            await sending

    run_async(main)


@KIND
def test_a_packet_waits_for_buffers(run_async: Run, kind: str) -> None:
    """And is whole then; nothing overtakes it."""

    async def main() -> None:
        async with bench(kind, size=64, buffer=0) as card:
            queue = card.driver.receiveq
            card.driver._buffer = 1000
            for _ in range(3):
                queue.add(room=1000)
            queue.kick()
            card.cable.give([frame(60), frame(4000), frame(61)])
            assert (await card.receive())[1] == frame(60)
            for _ in range(20):
                await asyncio.sleep(0)
            assert queue.poll() is None
            for _ in range(3):
                queue.add(room=1000)
                queue.kick()
                await asyncio.sleep(0)
            assert (await card.receive())[1] == frame(4000)
            assert (await card.receive())[1] == frame(61)

    run_async(main)


@KIND
def test_a_packet_that_no_buffers_hold_is_dropped(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind, size=64, buffer=0) as card:
            card.cable.pairs[0].receive.patience = 0.0
            queue = card.driver.receiveq
            card.driver._buffer = 100
            for _ in range(3):
                queue.add(room=100)
            queue.kick()
            card.cable.give([frame(4000), frame(60)])
            assert (await card.receive())[1] == frame(60)
            assert card.net.counts()["receive_dropped"] == 1

    run_async(main)


@KIND
def test_without_mergeable_buffers(run_async: Run, kind: str) -> None:
    """A packet has one buffer, or none."""

    async def main() -> None:
        async with bench(kind, without=1 << MRG_RXBUF, buffer=1526) as card:
            card.cable.give([frame(1514), frame(1515), frame(60), frame(60000), frame(61)])
            for size in (1514, 60, 61):
                header, got = await card.receive()
                assert (header.num_buffers, got) == (1, frame(size))
            assert card.net.counts()["receive_dropped"] == 2

    run_async(main)


def test_what_comes_behind_many_packets_that_are_too_long(run_async: Run) -> None:
    """They are all in one read of the stream, which has nothing to tell after that."""

    async def main() -> None:
        async with bench("stream", without=1 << MRG_RXBUF, buffer=1526) as card:
            long = LENGTH.pack(1515) + frame(1515)
            card.cable.far[0].sendall(long * 150 + LENGTH.pack(60) + frame(60))
            assert (await card.receive())[1] == frame(60)
            assert card.net.counts()["receive_dropped"] == 150

    run_async(main)


@KIND
def test_a_driver_of_before_1_0(run_async: Run, kind: str) -> None:
    """Its headers have 10 bytes."""

    async def main() -> None:
        async with bench(kind, without=1 << MRG_RXBUF | VERSION_1, buffer=1524) as card:
            assert card.driver.header_size == SHORT_HEADER.size
            card.cable.give([frame(1514)], bytes(10))
            assert await card.receive() == (Header(), frame(1514))
            await card.driver.send(frame(60))
            assert card.cable.sent() == bytes(10) * (kind == "tap") + frame(60)

    run_async(main)


@KIND
@pytest.mark.parametrize("wrong", [(4, 0), (11, 0), (100, 1)], ids=["4 bytes", "11 bytes", "to read"])
def test_a_buffer_that_is_none_breaks_the_ring(run_async: Run, kind: str, wrong: tuple[int, int]) -> None:
    async def main() -> None:
        async with bench(kind, buffer=0) as card:
            room, readable = wrong
            card.driver.receiveq.add(bytes(readable), room=room)
            card.driver.receiveq.kick()
            card.cable.give([frame(60)])
            with pytest.raises(GuestError):
                await card.receive()

    run_async(main)


@pytest.mark.parametrize("kind", ["tap", "datagrams"])
def test_what_is_no_frame_is_not_received(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            card.cable.give([frame(13), frame(MOST + 1), frame(60)])
            assert (await card.receive())[1] == frame(60)
            assert card.net.counts()["receive_dropped"] == 2

    run_async(main)


def test_a_frame_of_a_stream_in_pieces(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            for piece in LENGTH.pack(60) + frame(60):
                card.cable.far[0].send(bytes([piece]))
                await asyncio.sleep(0)
            assert (await card.receive())[1] == frame(60)
            card.cable.give([b"", frame(13), frame(61)])  # of which two are none
            assert (await card.receive())[1] == frame(61)
            assert card.net.counts()["receive_dropped"] == 2

    run_async(main)


def test_the_next_driver_gets_the_rest_of_a_frame(run_async: Run) -> None:
    """A firmware's driver has shorter headers; what the stream has said is the same to both."""

    async def main() -> None:
        async with bench("stream") as card:
            whole = LENGTH.pack(60) + frame(60)
            card.cable.negotiate(VERSION_1)
            card.cable.far[0].sendall(whole + whole[:40])
            assert (await card.receive())[1] == frame(60)
            card.cable.negotiate(0)
            card.cable.negotiate(card.frontend.features)
            card.cable.far[0].sendall(whole[40:])
            assert (await card.receive())[1] == frame(60)

    run_async(main)


# --- Lost, and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stream", "datagrams"])
def test_a_cable_that_is_lost_comes_back(run_async: Run, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile packets are dropped."""
    monkeypatch.setattr("vhost_user_net.netdev.PAUSE", 0.01)

    async def main() -> None:
        async with bench(kind) as card:
            await card.driver.send(frame(60))
            assert card.cable.sent() == frame(60)
            card.cable.refusals = FOR_EVER
            card.cable.unplug()
            while card.cable.is_open:
                await card.driver.send(frame(60))
            await card.driver.send(frame(60))
            card.cable.refusals = 2
            await card.until(lambda: card.cable.is_open)
            assert card.net.counts()["transmit_dropped"]
            await card.driver.send(frame(61))
            assert card.cable.sent() == frame(61)
            card.cable.give([frame(62)])
            assert (await card.receive())[1] == frame(62)

    run_async(main)


def test_why_it_does_not_come_back_is_said_once(
    run_async: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody there is no news; anything else is."""
    monkeypatch.setattr("vhost_user_net.netdev.PAUSE", 0)
    reasons = [errno.ECONNREFUSED, errno.EACCES, errno.ENOENT, errno.EACCES, errno.EBUSY, errno.EBUSY]

    class Gone(Cable):
        no_access = "it is another user's"
        is_gone = False

        def open(self) -> list[Fd]:
            if self.is_gone and reasons:
                raise OSError(reasons[0], os.strerror(reasons.pop(0)))
            return super().open()

    async def main() -> None:
        async with bench(cable=Gone()) as card:
            Gone.is_gone = True
            card.cable.lose("pulled")
            await card.until(lambda: card.cable.is_open)

    run_async(main)
    assert [each.getMessage() for each in caplog.records if each.levelname == "WARNING"] == [
        "the cable is lost: pulled; packets are dropped until it is back",
        "the cable: Permission denied: it is another user's; it is tried again",
        "the cable: Device or resource busy; it is tried again",
    ]


def test_a_cable_that_is_there_and_of_no_use(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again after a pause, and not before."""
    pauses: list[float] = []

    class Broken(Cable):
        uses = 0

        def take(self, fds: list[Fd]) -> None:
            super().take(fds)
            self.uses += 1
            if 1 < self.uses < 5:
                self.lose("it is broken")

    async def main() -> None:
        async with bench(cable=Broken()) as card:
            card.cable.lose("it is broken")
            await card.until(lambda: card.cable.is_open)
            assert pauses == [1.0] * 3
            card.cable.give([frame(60)])
            assert (await card.receive())[1] == frame(60)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("vhost_user_net.netdev.asyncio", SimpleNamespace(sleep=sleep, Event=asyncio.Event))
    run_async(main)


def test_a_stream_that_is_another_protocol_is_left(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            before = card.cable.far[0]
            before.send(b"GET / HTTP/1.1\r\n")
            await card.until(lambda: card.cable.far[0] is not before)
            await card.until(lambda: card.cable.is_open)
            card.cable.give([frame(60)])
            assert (await card.receive())[1] == frame(60)

    run_async(main)


# --- Beside packets -------------------------------------------------------------------------------------


@KIND
def test_a_guest_that_has_moved_is_announced(run_async: Run, kind: str) -> None:
    async def main() -> None:
        async with bench(kind) as card:
            mac = bytes.fromhex("525400123456")
            await card.frontend.call(SEND_RARP, U64(int.from_bytes(mac + b"\0\0", "little")))
            sent = card.cable.sent()
            assert sent[-60:] == rarp(mac)
            assert rarp(mac)[:22].hex() == "ffffffffffff525400123456803500010800060400" + "03"
            assert rarp(mac)[22:] == mac + bytes(4) + mac + bytes(4) + bytes(18)

    run_async(main)


def test_qemu_s_mtu(run_async: Run) -> None:
    async def main() -> None:
        async with bench() as card:
            for mtu in (68, 1500, 65535):
                await card.frontend.call(NET_SET_MTU, U64(mtu))
            for mtu in (0, 67, 65536, 1 << 63):
                await refused(card.frontend.call(NET_SET_MTU, U64(mtu)))

    run_async(main)


def test_what_is_offered() -> None:
    with closing(Net(Cable())) as net:
        assert net.features >> F.CSUM & 1
        assert net.features >> F.MRG_RXBUF & 1
        assert not net.features >> F.MQ & 1
        assert not net.read_config()
    with closing(Net(Cable(pairs=4))) as net:
        assert net.features >> F.MQ & 1
        assert len(net.queues) == 8
    with closing(Net(Cable("stream"))) as net:
        offloads = (F.CSUM, F.HOST_TSO4, F.HOST_TSO6, F.HOST_ECN, F.GUEST_CSUM, F.GUEST_TSO4, F.GUEST_TSO6)
        assert net.features == sum(1 << each for each in (*offloads, F.MRG_RXBUF)) | VERSION_1
    with closing(Net(Cable("datagrams"))) as net:
        assert net.features == 1 << F.MRG_RXBUF | VERSION_1


def test_a_config_space_of_ours(run_async: Run) -> None:
    async def main() -> None:
        net = Net(Cable("stream"), mac=b"\x52\x54\0\1\2\3", mtu=9000)
        with closing(net):
            async with negotiated(net) as (frontend, _):
                assert await read_config(frontend) == Config(net._mac or b"", 1, 1, 9000)
                net._netdev.lose("test")
                assert (await read_config(frontend)).status == 0
                assert frontend.features >> F.MAC & 1
                assert frontend.features >> F.MTU & 1

    run_async(main)


def test_each_pair_has_its_own_fd(run_async: Run) -> None:
    async def main() -> None:
        cable = Cable(pairs=2)
        async with bench(cable=cable) as card:
            second = await NetDriver.start(card.frontend, card.memory, pair=1)
            with closing(second):
                await second.send(frame(60))
                assert cable.far[1].recv(100) == bytes(12) + frame(60)
                cable.far[1].send(bytes(12) + frame(61))
                async with asyncio.timeout(PATIENCE):
                    assert (await second.receive())[1] == frame(61)
                cable.far[0].send(bytes(12) + frame(62))
                assert (await card.receive())[1] == frame(62)
            assert isinstance(cable.far[0], socket.socket)

    run_async(main)
