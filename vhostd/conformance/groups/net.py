"""The data plane of a network card (virtio 1.3, 5.1), as far as the driver's side alone shows it.

What becomes of a packet nobody sees here: the back-end sends it where it was told to. So all checks look at
buffers of the transmit queue: each comes back, whatever the packet says of itself.

**Wrong offsets.** A driver that says where a checksum goes, or how long a header is, may lie. The
specification forbids that to drivers, and tells devices nothing. Back-ends that trusted `csum_start` wrote
beyond the packet (CVE-2024-11614). Such a packet may be dropped, or stop its ring.
"""

import struct
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.exchange import ARP
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect
from vhostd.errors import GuestError
from vhostd.frontend import Frontend, Queue

NET = Group("NET", "Network card", "virtio 1.3, 5.1")

IS_NET = Needs(kinds=("net",))
HEADER = struct.Struct("<BBHHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
NEEDS_CSUM = 1
NO_GSO, TCPV4 = 0, 1
TRANSMIT = 1
MTU = 1500


async def start(trial: Trial) -> tuple[Frontend, Queue]:
    """A running card, with a receive queue whose buffers are there, and its transmit queue."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    receive, transmit = [await trial.start(frontend, memory, index, size=256) for index in (0, TRANSMIT)]
    for _ in range(16):
        receive.add(room=len(PLAIN) + 2048)
    receive.kick()
    return frontend, transmit


async def provoke(trial: Trial, *parts: bytes) -> None:
    """Sends what no driver should, and stops the ring."""
    frontend, transmit = await start(trial)
    transmit.add(parts)
    transmit.kick()
    await trial.provoke(frontend, transmit)


@NET.must(1, "5.1.6.2", "A packet that was sent comes back.", IS_NET)
async def one_packet(trial: Trial) -> None:
    """Sends an ARP request of 60 bytes: its buffer comes back, and nothing was written to it."""
    _, transmit = await start(trial)
    try:
        await transmit.request(PLAIN + ARP)
    except TimeoutError:
        raise Failed("a packet did not come back") from None
    expect(not transmit.surplus, f"its used length is {transmit.surplus}, where there was no room")


@NET.must(2, "2.7.4.1", "The device takes no meaning from where a descriptor ends.", IS_NET)
async def any_layout(trial: Trial) -> None:
    """Sends a packet in parts: the header in 5 and 7 bytes, the frame in 1, 13 and the rest."""
    _, transmit = await start(trial)
    parts = (PLAIN[:5], PLAIN[5:], ARP[:1], ARP[1:14], ARP[14:])
    try:
        await transmit.request(parts)
    except GuestError:
        raise Failed("a packet in five descriptors has stopped the ring") from None


@NET.must(3, "5.1.6.2", "Many packets may be under way at once.", IS_NET)
async def many_packets(trial: Trial) -> None:
    """Makes 100 packets of a full MTU available with one kick: all come back, each once."""
    _, transmit = await start(trial)
    heads = {transmit.add((PLAIN, ARP[:14] + bytes(MTU))) for _ in range(100)}
    transmit.kick()
    back: set[int] = set()
    with suppress(TimeoutError):
        while back != heads:
            back.add((await transmit.used())[0])
    expect(back == heads, f"{len(heads - back)} packets did not come back")


@NET.must(4, "5.1.6", "A packet shorter than its header costs the ring at most.", IS_NET)
async def cut_header(trial: Trial) -> None:
    """Sends 11 bytes of a header, and nothing else."""
    await provoke(trial, PLAIN[:11])


@NET.must(5, "5.1.6.2", "A checksum beyond the packet costs the ring at most.", IS_NET)
async def checksum_outside(trial: Trial) -> None:
    """Sends an ARP request that asks for a checksum at offset 65535, and 65535 bytes further."""
    await provoke(trial, HEADER.pack(NEEDS_CSUM, NO_GSO, 0, 0, 0xFFFF, 0xFFFF, 0), ARP)


@NET.must(6, "5.1.6.2", "A segmentation that makes no sense costs the ring at most.", IS_NET)
async def senseless_segments(trial: Trial) -> None:
    """Sends a packet with gso_type TCPV4, no segment size, and a header that ends beyond the packet."""
    await provoke(trial, HEADER.pack(NEEDS_CSUM, TCPV4, 0xFFFF, 0, 14, 16, 0), ARP)


@NET.must(7, "5.1.6.2", "A packet beyond all sizes costs the ring at most.", IS_NET)
async def huge_packet(trial: Trial) -> None:
    """Sends a frame of 1 MiB without segmentation."""
    await provoke(trial, PLAIN, bytes(1 << 20))


@NET.must(
    8, "2.7.4", "A packet that the device may write, where it should read, costs the ring at most.", IS_NET
)
async def writable_packet(trial: Trial) -> None:
    """Offers room on the transmit queue, and nothing to read."""
    frontend, transmit = await start(trial)
    transmit.add(room=64)
    transmit.kick()
    await trial.provoke(frontend, transmit)


@NET.must(9, "5.1.6.3", "Receive buffers of a few bytes cost the ring at most.", IS_NET)
async def tiny_receive_buffers(trial: Trial) -> None:
    """Offers 64 buffers of 4 bytes to receive into, and sends ARP requests, which somebody may answer."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    receive, transmit = [await trial.start(frontend, memory, index) for index in (0, TRANSMIT)]
    for _ in range(64):
        receive.add(room=4)
    receive.kick()
    for _ in range(8):
        await transmit.request(PLAIN + ARP)
    await trial.provoke(frontend, receive)


@NET.must(10, "5.1.6", "A packet without a frame costs the ring at most.", IS_NET)
async def no_frame(trial: Trial) -> None:
    """Sends a header, and nothing else."""
    await provoke(trial, PLAIN)
