"""The data plane of a socket device (virtio 1.3, 5.10).

A front-end without a guest has no sockets to connect to, so most checks ask for a port where nobody listens:
each such packet has an answer, RST.

**Packets for no connection.** The specification says that RST is the answer to a request that nobody takes,
and to an unknown type. Of data for no connection it says nothing. Linux's vhost answers RST there too:
without it the sender waits for credit, for ever.

**A device that never sends RST** (vhost-device-vsock 0.3 has it on its list) fails VSOCK-2. What other checks
want to see by an RST is skipped there.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple, Self

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.frontend import Frontend, Queue
from vhostd.vhost_user.messages import ProtocolFeature

VSOCK = Group("VSOCK", "Socket device", "virtio 1.3, 5.10")

IS_VSOCK = Needs(kinds=("vsock",))
HAS_CID = Needs(kinds=("vsock",), protocol=(ProtocolFeature.CONFIG,))
HEADER = struct.Struct("<QQIIIHHI8x")  # without its credit, which no check looks at
CREDIT = struct.pack("<II", 1 << 18, 0)  # room for more than ever comes, and nothing taken of it
HOST = 2
RESERVED = (0, 1, HOST, 0xFFFF_FFFF)
GUEST = 3  # where no config space tells another
STREAM, UNKNOWN = 1, 77
REQUEST, RST, RW = 1, 3, 5
NOBODY = 0xFFFF_FF00  # ports from here on: nobody listens there
BUFFER, BUFFERS = 4096, 16


class Packet(NamedTuple):
    """A packet as it came: what its header says, and how much came behind the header."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int


class Sockets:
    """A running device, whose rx queue has buffers."""

    def __init__(self, frontend: Frontend, queues: list[Queue], cid: int) -> None:
        self.frontend = frontend
        self.rx, self.tx, _ = queues
        self.cid = cid
        for _ in range(BUFFERS):
            self.rx.add(room=BUFFER)
        self.rx.kick()

    @classmethod
    async def start(cls, trial: Trial) -> Self:
        """Connects, and starts the three queues."""
        frontend, memory = await trial.negotiate(), trial.memory()
        await frontend.share(memory)
        cid = await guest_cid(frontend) if frontend.has(ProtocolFeature.CONFIG) else GUEST
        return cls(frontend, [await trial.start(frontend, memory, index) for index in range(3)], cid)

    def packet(self, op: int, port: int, *, kind: int = STREAM, length: int = 0) -> bytes:
        """A header from our port 1000 to the host's `port`."""
        header = HEADER.pack(self.cid, HOST, 1000, port, length, kind, op, 0)
        return header[: -len(CREDIT)] + CREDIT

    async def send(self, *parts: bytes) -> None:
        """Sends a packet in parts, and waits until it is used."""
        await self.tx.request(parts)

    async def receive(self) -> Packet:
        """The next packet; Failed for one that is no packet."""
        try:
            _, data = await self.rx.used()
        except TimeoutError:
            raise Failed("no packet came in answer") from None
        expect(len(data) >= HEADER.size, f"a packet of {len(data)} bytes came, less than its header")
        packet = Packet(*HEADER.unpack_from(data))
        expect(len(data) == HEADER.size + packet.len, f"{len(data)} bytes came, and len is {packet.len}")
        return packet

    async def resets(self, port: int) -> None:
        """Waits for the RST of a request that nobody takes; skips the check if there is none."""
        try:
            await self.expect_reset(port, "REQUEST")
        except Failed:
            skip("requests that nobody takes are not answered: see VSOCK-2")

    async def expect_reset(self, port: int, what: str) -> Packet:
        """Expects RST to come next, from this port."""
        packet = await self.receive()
        expect(packet.op == RST, f"the answer to {what} is operation {packet.op}, not RST (3)")
        expect(packet.src_port == port, f"the answer to {what} is from port {packet.src_port}, not {port}")
        return packet


async def guest_cid(frontend: Frontend) -> int:
    """What the config space says."""
    return int.from_bytes(await frontend.read_config(0, 8), "little")


async def provoke(trial: Trial, hostile: Callable[[Sockets], tuple[bytes, ...]]) -> None:
    """Sends what no driver should, and stops the ring."""
    sockets = await Sockets.start(trial)
    sockets.tx.add(hostile(sockets))
    sockets.tx.kick()
    await trial.provoke(sockets.frontend, sockets.tx)


@VSOCK.must(1, "5.10.4", "The guest has a context id that is not reserved.", HAS_CID)
async def context_id(trial: Trial) -> None:
    """Reads guest_cid: its upper half is 0, and it is none of 0, 1, 2 and 0xffffffff."""
    cid = await guest_cid(await trial.negotiate())
    expect(cid not in RESERVED and not cid >> 32, f"guest_cid is {cid:#x}")


@VSOCK.must(2, "5.10.6.5", "A request for a port where nobody listens is answered by RST.", IS_VSOCK)
async def nobody_listens(trial: Trial) -> None:
    """Sends REQUEST to a port of the host: RST comes from there."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(REQUEST, NOBODY))
    await sockets.expect_reset(NOBODY, "REQUEST")


@VSOCK.must(3, "5.10.6.2", "An answer has the addresses of what it answers, the other way round.", IS_VSOCK)
async def addresses(trial: Trial) -> None:
    """Sends REQUEST where nobody listens, and looks at the RST: cids, ports and type."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(REQUEST, NOBODY))
    packet = await sockets.expect_reset(NOBODY, "REQUEST")
    found = (packet.src_cid, packet.dst_cid, packet.dst_port, packet.type, packet.len)
    expected = (HOST, sockets.cid, 1000, STREAM, 0)
    expect(found == expected, f"source cid, cid, port, type and len are {found}, not {expected}")


@VSOCK.must(4, "5.10.6.4", "A packet of an unknown type is answered by RST.", IS_VSOCK)
async def unknown_type(trial: Trial) -> None:
    """Sends REQUEST of type 77."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(REQUEST, NOBODY, kind=UNKNOWN))
    await sockets.expect_reset(NOBODY, "a packet of type 77")


@VSOCK.should(5, "5.10.6.5", "Data for no connection are answered by RST.", IS_VSOCK)
async def data_for_nobody(trial: Trial) -> None:
    """Sends RW with four bytes to a port that nothing was ever asked of."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(RW, NOBODY, length=4), b"data")
    await sockets.expect_reset(NOBODY, "RW")


@VSOCK.should(6, "5.10.6.5", "RST is not answered.", IS_VSOCK)
async def no_answer_to_a_reset(trial: Trial) -> None:
    """Sends RST to one port and REQUEST to another: the next packet answers REQUEST."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(REQUEST, NOBODY))
    await sockets.resets(NOBODY)
    await sockets.send(sockets.packet(RST, NOBODY))
    await sockets.send(sockets.packet(REQUEST, NOBODY + 1))
    await sockets.expect_reset(NOBODY + 1, "RST and then REQUEST elsewhere")


@VSOCK.must(7, "2.7.4.1", "The header may lie in several descriptors.", IS_VSOCK)
async def header_in_parts(trial: Trial) -> None:
    """Sends REQUEST with its header in parts of 20, 23 and 1 bytes: it is taken, and answered by RST."""
    sockets = await Sockets.start(trial)
    packet = sockets.packet(REQUEST, NOBODY)
    try:
        await sockets.send(packet[:20], packet[20:43], packet[43:])
    except TimeoutError:
        raise Failed("a header in three descriptors was not taken") from None
    await sockets.resets(NOBODY)


@VSOCK.must(8, "5.10.6", "Of buffers longer than `len`, only `len` bytes count.", IS_VSOCK)
async def more_than_len(trial: Trial) -> None:
    """Sends REQUEST with 64 bytes behind its header, and len 0."""
    sockets = await Sockets.start(trial)
    await sockets.send(sockets.packet(REQUEST, NOBODY), bytes(64))
    await sockets.resets(NOBODY)


@VSOCK.must(9, "5.10.6", "A packet that is cut short costs the ring at most.", IS_VSOCK)
async def cut_short(trial: Trial) -> None:
    """Sends 43 bytes of a header."""
    await provoke(trial, lambda sockets: (sockets.packet(RW, NOBODY)[:-1],))


@VSOCK.must(10, "5.10.6", "A `len` that is more than there is costs the ring at most.", IS_VSOCK)
async def less_than_len(trial: Trial) -> None:
    """Sends RW that says 64 KiB of data, and has four bytes."""
    await provoke(trial, lambda sockets: (sockets.packet(RW, NOBODY, length=1 << 16), b"data"))


@VSOCK.must(
    11, "5.10.6.1", "Packets are taken though no answer has room, as long as there are resources.", IS_VSOCK
)
async def no_room_to_answer(trial: Trial) -> None:
    """Sends one more REQUEST than there are buffers to answer them: all are taken."""
    sockets = await Sockets.start(trial)
    for _ in range(BUFFERS + 1):
        try:
            await sockets.send(sockets.packet(REQUEST, NOBODY))
        except TimeoutError:
            raise Failed("a packet was not taken while rx was full") from None
