"""What is done for the driver on a stream: checksums, cutting of long packets, and merging of frames."""

import asyncio
import random
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Run
from tests.devices.vhost_user_net.packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    RST,
    SYN,
    UDP,
    URG,
    Packet,
    total,
)
from tests.devices.vhost_user_net.test_net import MOST, Bench, bench
from vhost_user_net.features import Feature as F
from vhostd.frontend.drivers.net import DATA_VALID, GSO_TCPV4, GSO_TCPV6, HEADER, NEEDS_CSUM, Header

MSS = 1460
TIMESTAMPS = bytes((1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2))
VLAN = b"\x81\x00\x00\x05"
V6 = pytest.mark.parametrize("v6", [False, True], ids=["IPv4", "IPv6"])


def data(size: int) -> bytes:
    """So many bytes, without a pattern."""
    return random.Random(size).randbytes(size)


# --- From the driver --------------------------------------------------------------------------------------


async def sent(card: Bench, packet: Packet, step: int) -> None:
    """The stream gets a packet as the frames that it should become."""
    await card.driver.send(replace(packet, partial=True).frame(), packet.header(step))
    for frame in packet.frames(step or MOST):
        assert card.cable.sent() == frame


@V6
@pytest.mark.parametrize("size", [0, 1, 2, 999, MSS, 60000])
@pytest.mark.parametrize("protocol", [6, UDP], ids=["TCP", "UDP"])
def test_a_checksum_is_filled_in(run_async: Run, v6: bool, size: int, protocol: int) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench("stream") as card:
            await sent(card, Packet(data(size), v6, protocol), 0)
            await sent(card, Packet(data(size), v6, protocol, vlan=VLAN), 0)

    run_async(main)


def test_a_udp_checksum_is_never_none(run_async: Run) -> None:
    """0 says that there is none; 0xffff is the same number."""

    async def main() -> None:
        async with bench("stream") as card:
            first = Packet(bytes(2), protocol=UDP, partial=True)
            rest = int.from_bytes(Packet(bytes(2), protocol=UDP).frame()[40:42], "big")
            packet = replace(first, payload=rest.to_bytes(2, "big"))
            await card.driver.send(packet.frame(), packet.header(0))
            assert card.cable.sent()[40:42] == b"\xff\xff"

    run_async(main)


@V6
@pytest.mark.parametrize("options", [b"", TIMESTAMPS, bytes(40)], ids=["plain", "timestamps", "most options"])
@pytest.mark.parametrize(
    "vlan", [b"", VLAN, b"\x88\xa8\x00\x01" + VLAN], ids=["untagged", "VLAN", "two VLANs"]
)
def test_a_long_packet_is_cut(run_async: Run, v6: bool, options: bytes, vlan: bytes) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench("stream") as card:
            for size, step in (
                (3 * MSS, MSS),
                (MSS + 1, MSS),
                (1, MSS),
                (0, MSS),
                (1000, 48),
                (65000, 65000),
            ):
                await sent(card, Packet(data(size), v6, options=options, vlan=vlan), step)
            assert card.net.counts()["transmit_packets"] == 6
            assert card.net.counts()["transmit_dropped"] == 0

    run_async(main)


def test_each_frame_has_the_flags_and_numbers_that_are_its_own(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            flags = FIN | PSH | ACK | ECE | CWR
            await sent(card, Packet(data(500), flags=flags, seq=2**32 - 150, ident=2**16 - 2), 100)
            await sent(card, Packet(data(500), ip_options=bytes((1, 1, 1, 0)), tos=0xB8, ttl=1), 100)
            packet = Packet(data(500), flags=flags)
            header = packet.header(100)
            ecn = header._replace(gso_type=header.gso_type | 0x80)
            await card.driver.send(replace(packet, partial=True).frame(), ecn)
            for frame in packet.frames(100):
                assert card.cable.sent() == frame

    run_async(main)


def test_a_long_packet_may_lie_anywhere(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            packet = Packet(data(5000))
            whole = HEADER.pack(*packet.header(MSS)) + replace(packet, partial=True).frame()
            cuts = [0, 1, 5, 11, 13, 40, 66, 67, 3000, len(whole)]
            await card.driver._transmitq.request([whole[a:b] for a, b in pairwise(cuts)])
            for frame in packet.frames(MSS):
                assert card.cable.sent() == frame

    run_async(main)


GOOD = Packet(data(3000)).header(MSS)
WRONG = {
    "no checksum": GOOD._replace(flags=0),
    "another type": GOOD._replace(gso_type=GSO_TCPV6),
    "UDP": GOOD._replace(gso_type=5),
    "no size": GOOD._replace(gso_size=0),
    "a tiny size": GOOD._replace(gso_size=47),
    "the checksum elsewhere": GOOD._replace(csum_offset=6),
    "TCP before IP": GOOD._replace(csum_start=14),
    "TCP in the middle of IP": GOOD._replace(csum_start=33),
    "TCP behind the end": GOOD._replace(csum_start=3054 - 19),
    "TCP far away": GOOD._replace(csum_start=0xFFFF),
    "the checksum alone, behind the end": GOOD._replace(gso_type=0, gso_size=0, csum_offset=0xFFFF),
    "the checksum alone, across the end": GOOD._replace(gso_type=0, csum_start=3053, csum_offset=0),
}


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
def test_a_header_that_is_wrong_costs_its_packet(run_async: Run, header: Header) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            await card.driver.send(Packet(data(3000), partial=True).frame(), header)
            assert card.net.counts()["transmit_dropped"] == 1
            await sent(card, Packet(data(3000)), MSS)

    run_async(main)


@pytest.mark.parametrize("offset", [0, 4, 15])
def test_a_tcp_header_that_is_wrong_costs_its_packet(run_async: Run, offset: int) -> None:
    """Its own length may be less than the least, and more than there is."""

    async def main() -> None:
        async with bench("stream") as card:
            packet = Packet(b"short", partial=True)
            wrong = bytearray(packet.frame())
            wrong[34 + 12] = offset << 4
            await card.driver.send(bytes(wrong), packet.header(MSS))
            assert card.net.counts()["transmit_dropped"] == 1

    run_async(main)


def test_long_packets_wait_for_a_stream_that_is_slow(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            packets = [Packet(data(65000 - number), seq=number) for number in range(30)]
            sending = asyncio.create_task(send_all(card, packets))
            expected = [frame for packet in packets for frame in packet.frames(MSS)]
            received = await asyncio.to_thread(lambda: [card.cable.sent() for _ in expected])
            assert received == expected
            await sending
            assert card.net.counts()["transmit_dropped"] == 0

    run_async(main)


async def send_all(card: Bench, packets: Sequence[Packet]) -> None:
    for packet in packets:
        await card.driver.send(replace(packet, partial=True).frame(), packet.header(MSS))


@given(st.data())
def test_nothing_that_a_driver_says_does_harm(data_: st.DataObject) -> None:
    """Whatever the header and the frame, whole frames come out, and the next packet is right."""

    async def main() -> None:
        number = st.sampled_from([0, 1, 14, 34, 47, 48, 54, 100, 1460, 0x7FFF, 0xFFFF])
        async with bench("stream") as card:
            for _ in range(10):
                kind = data_.draw(st.sampled_from([0, GSO_TCPV4, GSO_TCPV6, 5, 0x81, 0x84]))
                flags = data_.draw(st.sampled_from([0, NEEDS_CSUM]))
                offset = data_.draw(st.sampled_from([0, 6, 16, 0xFFFF]))
                header = Header(flags, kind, 0, data_.draw(number), data_.draw(number), offset)
                frame = bytearray(Packet(data(data_.draw(st.integers(0, 4000)))).frame())
                for _ in range(data_.draw(st.integers(0, 5))):
                    frame[data_.draw(st.integers(0, min(80, len(frame) - 1)))] = data_.draw(
                        st.integers(0, 255)
                    )
                await card.driver.send(bytes(frame), header)
            last = b"the last frame" * 5
            await card.driver.send(last)
            while card.cable.sent() != last:
                pass

    asyncio.run(main())


# --- To the driver ----------------------------------------------------------------------------------------


def train(size: int, step: int, packet: Packet | None = None) -> list[bytes]:
    """Frames that follow each other, of `size` bytes of data in all."""
    return replace(packet or Packet(), payload=data(size)).frames(step)


async def received(card: Bench, count: int) -> list[tuple[Header, bytes]]:
    """So many packets, with their headers but for the number of their buffers."""
    found = [await card.receive() for _ in range(count)]
    return [(header._replace(num_buffers=0), frame) for header, frame in found]


def give(card: Bench, frames: Sequence[bytes]) -> None:
    """The frames are all there before the card reads one."""
    card.cable.far[0].sendall(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))


@V6
@pytest.mark.parametrize("options", [b"", TIMESTAMPS], ids=["plain", "timestamps"])
@pytest.mark.parametrize("size", [2 * MSS, 10 * MSS + 1, 40 * MSS - 1])
def test_frames_of_a_connection_are_merged(run_async: Run, v6: bool, options: bytes, size: int) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench("stream") as card:
            packet = Packet(data(size), v6, options=options, flags=ACK | PSH)
            give(card, packet.frames(MSS))
            ((header, frame),) = await received(card, 1)
            assert header == packet.header(MSS)
            assert frame == replace(packet, partial=True).frame()

    run_async(main)


def test_a_packet_is_as_long_as_ip_allows(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            give(card, train(100 * MSS, MSS))
            first, second, third = await received(card, 3)
            assert len(first[1]) == 54 + 44 * MSS
            assert len(second[1]) == len(first[1])
            assert len(third[1]) == 54 + 12 * MSS

    run_async(main)


FIRST = Packet(data(1000))
NEXT = replace(FIRST, payload=data(900), seq=FIRST.seq + 1000, ident=FIRST.ident + 1)
APART = {
    "a gap": replace(NEXT, seq=NEXT.seq + 1),
    "the same again": replace(NEXT, seq=FIRST.seq),
    "another acknowledgment": replace(NEXT, ack=8),
    "another window": replace(NEXT, window=501),
    "more data": replace(NEXT, payload=data(1001)),
    "no data": replace(NEXT, payload=b""),
    "other options": replace(NEXT, options=TIMESTAMPS),
    "another port": replace(NEXT, ports=(1000, 2001)),
    "another host": replace(NEXT, source=2),
    "another card": replace(NEXT, ethernet=bytes(12)),
    "another TTL": replace(NEXT, ttl=63),
    "another TOS": replace(NEXT, tos=4),
    "IPv6": replace(NEXT, v6=True),
    "UDP": replace(NEXT, protocol=UDP),
    "a wrong checksum": replace(NEXT, corrupt=True),
    "an IP option": replace(NEXT, ip_options=bytes((1, 1, 1, 0))),
    "a VLAN": replace(NEXT, vlan=VLAN),
    "a fragment": replace(NEXT, fragment=0x2000),
    **{f"flag {flag:#x}": replace(NEXT, flags=ACK | flag) for flag in (FIN, SYN, RST, URG, ECE, CWR)},
    "no ACK": replace(NEXT, flags=0),
}


@pytest.mark.parametrize("other", APART.values(), ids=APART)
def test_what_differs_stays_apart(run_async: Run, other: Packet) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            frames = [FIRST.frame(), other.frame(), NEXT.frame()]
            give(card, frames)
            packets = await received(card, 3)
            assert [frame for _header, frame in packets] == frames
            assert {header.gso_type for header, _frame in packets} == {0}

    run_async(main)


@pytest.mark.parametrize(
    ("fragment", "jump", "count"),
    [(0x4000, 2, 1), (0x4000, 0, 1), (0, 0, 1), (0, 1, 1), (0, 2, 2), (0, 0xFFFF, 2)],
)
def test_numbers_of_frames_that_may_be_fragmented_are_kept(
    run_async: Run, fragment: int, jump: int, count: int
) -> None:
    """IPv4's identification goes on by one, or stays. Where nothing is fragmented it does not matter."""

    async def main() -> None:
        async with bench("stream") as card:
            first, second = (replace(each, fragment=fragment) for each in (FIRST, NEXT))
            give(card, [first.frame(), replace(second, ident=(first.ident + jump) % 2**16).frame()])
            await received(card, count)
            give(card, [b"the next frame"])
            assert await received(card, 1) == [(Header(), b"the next frame")]

    run_async(main)


def test_a_push_ends_a_packet(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            give(card, [replace(FIRST, flags=ACK | PSH).frame(), NEXT.frame()])
            assert [frame for _header, frame in await received(card, 2)] == [
                replace(FIRST, flags=ACK | PSH).frame(),
                NEXT.frame(),
            ]

    run_async(main)


def test_padding_is_left_out(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            frames = Packet(b"abcdef").frames(2)
            give(card, [frame + bytes(60 - len(frame)) for frame in frames])
            ((header, frame),) = await received(card, 1)
            assert header.gso_size == 2
            assert frame == Packet(b"abcdef", partial=True).frame()

    run_async(main)


@V6
def test_the_driver_hears_which_checksums_are_right(run_async: Run, v6: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench("stream") as card:
            right = [Packet(data(size), v6, kind) for size in (0, 1, 1000) for kind in (6, UDP)]
            wrong = [replace(packet, corrupt=True) for packet in right]
            give(card, [packet.frame() for packet in (*right, *wrong)])
            flags = [header.flags for header, _frame in await received(card, 12)]
            assert flags == [DATA_VALID] * 6 + [0] * 6

    run_async(main)


def test_what_is_no_tcp_or_udp_is_not_judged(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            good = Packet(data(100)).frame()
            frames = [
                good[:23] + b"\x01" + good[24:],  # ICMP
                good[:14] + b"\x65" + good[15:],  # version 6 behind the type of version 4
                good[:14] + b"\x44" + good[15:],  # an IP header of 16 bytes
                good[:16] + b"\xff\xff" + good[18:],  # longer than the frame
                good[:16] + b"\x00\x1b" + good[18:],  # too short for TCP
                good[:46] + b"\x40" + good[47:],  # a TCP header of 16 bytes
                good[:46] + b"\xf0" + good[47:54],  # and one that is cut off
                good[:41],
                Packet(protocol=UDP).frame()[:40] + bytes(2),  # UDP without a checksum
            ]
            give(card, frames)
            assert await received(card, len(frames)) == [(Header(), frame) for frame in frames]

    run_async(main)


@pytest.mark.parametrize("without", [F.GUEST_TSO4, F.GUEST_CSUM])
def test_a_driver_gets_what_it_has_agreed_to(run_async: Run, without: F) -> None:
    async def main() -> None:
        refused = 1 << without | (1 << F.GUEST_TSO4 if without == F.GUEST_CSUM else 0)
        async with bench("stream", without=refused) as card:
            frames = train(5000, 1000)
            give(card, frames)
            flags = DATA_VALID if without == F.GUEST_TSO4 else 0
            assert await received(card, 5) == [(Header(flags), frame) for frame in frames]

    run_async(main)


def test_a_packet_for_another_driver_is_forgotten(run_async: Run) -> None:
    """A firmware's driver takes no long packets, and must not get one that waits."""

    async def main() -> None:
        async with bench("stream", buffer=0) as card:
            give(card, train(5000, 1000))
            give(card, [b"the next frame"])
            card.driver.receiveq.add(room=200)
            card.driver.receiveq.kick()
            await card.until(lambda: card.cable.pairs[0].receive.keeps)
            for pair in card.cable.pairs:
                pair.receive.offload(checks=False, merges_v4=False, merges_v6=False)
            _head, got = await card.driver.receiveq.used()
            assert got[12:] == b"the next frame"

    run_async(main)


def with_wrong_ip_checksum(packet: Packet) -> bytes:
    frame = packet.frame()
    return frame[:24] + bytes((frame[24] ^ 1,)) + frame[25:]


@pytest.mark.parametrize("is_first", [True, False])
def test_a_wrong_ip_header_is_not_made_right(run_async: Run, is_first: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async with bench("stream") as card:
            frames = [
                with_wrong_ip_checksum(FIRST) if is_first else FIRST.frame(),
                NEXT.frame() if is_first else with_wrong_ip_checksum(NEXT),
                b"the last frame",
            ]
            give(card, frames)
            found: list[bytes] = []
            while not found or found[-1] != frames[-1]:
                found += [frame for _header, frame in await received(card, 1)]
            assert found == frames

    run_async(main)


@pytest.mark.parametrize(
    ("size", "buffer", "without"), [(4, 2048, 0), (16, 2048, 0), (256, 1526, 1 << F.MRG_RXBUF)]
)
def test_a_packet_is_no_longer_than_all_buffers(run_async: Run, size: int, buffer: int, without: int) -> None:
    """What each frame alone has room for is not lost because it was merged."""

    async def main() -> None:
        async with bench("stream", size=size, buffer=buffer, without=without) as card:
            for pair in card.cable.pairs:
                pair.receive.patience = 3600.0  # nothing is dropped: it would wait, and the test fail
            frames = train(44 * MSS, MSS)
            give(card, [*frames, b"the last frame"])
            found = b""
            while True:
                ((_header, frame),) = await received(card, 1)
                if frame == b"the last frame":
                    break
                found += frame[54:]
            assert found == data(44 * MSS)
            assert card.net.counts()["receive_dropped"] == 0

    run_async(main)


def test_a_udp_length_that_is_not_ips_is_not_judged(run_async: Run) -> None:
    """The sum of what IP has is not UDP's checksum then."""

    async def main() -> None:
        async with bench("stream") as card:
            packet = Packet(data(100), protocol=UDP)
            frame = packet.frame()
            frame = frame[:38] + (58).to_bytes(2, "big") + bytes(2) + frame[42:]
            pseudo = packet.addresses + (108).to_bytes(4, "big") + UDP.to_bytes(4, "big")
            checksum = 0xFFFF ^ total(pseudo + frame[34:])
            give(card, [frame[:40] + checksum.to_bytes(2, "big") + frame[42:]])
            ((header, _frame),) = await received(card, 1)
            assert header.flags == 0

    run_async(main)


def test_the_checksum_of_ip_is_the_senders(run_async: Run) -> None:
    """0 where that is it: 0xffff is the same number, but only in UDP another one must not be 0."""

    async def main() -> None:
        async with bench("stream") as card:
            first = Packet(data(200), ident=0)
            frame = first.frame()
            packet = replace(first, ident=0xFFFF ^ total(frame[14:24] + frame[26:34]))
            assert packet.frame()[24:26] == bytes(2)
            give(card, packet.frames(100))
            ((_header, frame),) = await received(card, 1)
            assert frame[24:26] == bytes(2)

    run_async(main)


def test_a_frame_that_is_too_long_is_not_merged(run_async: Run) -> None:
    async def main() -> None:
        async with bench("stream") as card:
            give(card, [FIRST.frame(), NEXT.frame() + bytes(MOST)])
            assert [frame for _header, frame in await received(card, 1)] == [FIRST.frame()]
            await card.until(lambda: not card.cable.is_open)

    run_async(main)


def test_short_frames_without_end_leave_time_for_others(run_async: Run) -> None:
    """The event loop goes on, though the other end has always more of them."""

    async def main() -> None:
        async with bench("stream") as card:
            enough, fed = threading.Event(), threading.Event()

            def feed() -> None:
                for _ in range(256):
                    if enough.is_set():
                        return
                    card.cable.far[0].sendall(bytes(1 << 18))
                fed.set()

            feeding = asyncio.create_task(asyncio.to_thread(feed))
            await card.until(lambda: card.net.counts()["receive_dropped"] > 1 << 20)
            assert not fed.is_set()
            enough.set()
            await feeding

    run_async(main)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2]),
            st.sampled_from([0, 1, 99, 100, 100, 100, 100]),
            st.sampled_from([ACK, ACK, ACK, ACK, ACK | PSH, ACK | FIN]),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_what_was_merged_can_be_cut_again(parts: list[tuple[int, int, int]]) -> None:
    """Of two connections, the driver gets what was sent, and in that order."""
    ends = {1: 0, 2: 0}
    packets = []
    for number, (source, size, flags) in enumerate(parts):
        packets.append(
            Packet(data(size), source=source, seq=ends[source], flags=flags, ident=number, fragment=0)
        )
        ends[source] += size

    async def main() -> None:
        async with bench("stream") as card:
            give(card, [*(packet.frame() for packet in packets), b"the last frame"])
            found: list[bytes] = []
            while not found or found[-1] != b"the last frame":
                ((header, frame),) = await received(card, 1)
                found += again(header, frame)
            assert found[:-1] == [packet.frame() for packet in packets]

    asyncio.run(main())


def again(header: Header, frame: bytes) -> list[bytes]:
    """The frames that a packet was."""
    if not header.gso_type:
        return [frame]
    packet = Packet(
        frame[54:],
        source=frame[29],
        seq=int.from_bytes(frame[38:42], "big"),
        flags=frame[47],
        ident=int.from_bytes(frame[18:20], "big"),
        fragment=0,
    )
    assert frame == replace(packet, partial=True).frame()
    return packet.frames(header.gso_size)
