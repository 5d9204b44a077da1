"""Faults of a socket device."""

import signal
from typing import Any

from tests.conformance.devices.vsock import Vsock
from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.conformance.groups.vsock import BUFFERS, HEADER, REQUEST, RST, RW, Packet
from vhostd.virtio.virtqueue import Virtqueue


@breaks("VSOCK-1", "guest_cid is 0x2", program="vsock")
def host_s_cid() -> None:
    """The guest has the host's context id."""
    replace(Vsock, "read_config", lambda _, self: bytes([2, *bytes(7)]))


@breaks("VSOCK-2", "no packet came in answer", program="vsock", patience=SILENCE)
def no_resets() -> None:
    """A request that nobody takes is dropped."""
    replace(Vsock, "answer", lambda _, self, packet: None)


@breaks("VSOCK-3", "source cid, cid, port, type and len are", program="vsock")
def cids_as_they_came() -> None:
    """The cids are not exchanged."""

    def send(before: Any, self: Vsock, packet: Packet) -> None:
        before(self, packet._replace(src_cid=packet.dst_cid, dst_cid=packet.src_cid))

    replace(Vsock, "send", send)


@breaks("VSOCK-4", "no packet came in answer", program="vsock", patience=SILENCE)
def unknown_type_is_dropped() -> None:
    """A packet of an unknown type has no answer."""

    def answer(before: Any, self: Vsock, packet: Packet) -> None:
        if packet.type == 1:
            before(self, packet)

    replace(Vsock, "answer", answer)


@breaks("VSOCK-5", "no packet came in answer", program="vsock", patience=SILENCE)
def data_are_dropped() -> None:
    """Data for no connection have no answer."""

    def answer(before: Any, self: Vsock, packet: Packet) -> None:
        if packet.op != RW:
            before(self, packet)

    replace(Vsock, "answer", answer)


@breaks("VSOCK-6", "the answer to RST and then REQUEST elsewhere is from port", program="vsock")
def reset_is_answered() -> None:
    """RST is the answer to RST."""

    def take(before: Any, self: Vsock, data: bytes) -> None:
        packet = Packet(*HEADER.unpack_from(data))
        if packet.op == RST:
            self.answer(packet)
        before(self, data)

    replace(Vsock, "take", take)


@breaks("VSOCK-7", "a header in three descriptors was not taken", program="vsock", patience=SILENCE)
def packets_are_kept() -> None:
    """No packet is given back."""

    async def txq(_before: Any, self: Vsock, queue: Virtqueue) -> None:
        kept = [chain async for chain in queue]
        del kept

    replace(Vsock, "txq", txq)


def _dies(wrong: Any) -> None:
    """Has the program die of such packets."""

    def take(before: Any, self: Vsock, data: bytes) -> None:
        if wrong(data):
            signal.raise_signal(signal.SIGKILL)
        before(self, data)

    replace(Vsock, "take", take)


@breaks("VSOCK-8", "the program was ended by SIGKILL", program="vsock")
def more_than_len() -> None:
    """Data behind a packet are taken for a fault of its own."""
    _dies(lambda data: len(data) > HEADER.size and Packet(*HEADER.unpack_from(data)).op == REQUEST)


@breaks("VSOCK-9", "the program was ended by SIGKILL", program="vsock")
def cut_header() -> None:
    """A header is read without a look at its size."""
    _dies(lambda data: len(data) < HEADER.size)


@breaks("VSOCK-10", "the program was ended by SIGKILL", program="vsock")
def less_than_len() -> None:
    """`len` is trusted."""
    _dies(lambda data: len(data) < HEADER.size + Packet(*HEADER.unpack_from(data)).len)


@breaks("VSOCK-11", "a packet was not taken while rx was full", program="vsock", patience=SILENCE)
def no_more_than_rx_has_room_for() -> None:
    """As many packets are taken as there are buffers for answers."""

    async def txq(_before: Any, self: Vsock, queue: Virtqueue) -> None:
        left = BUFFERS
        async for chain in queue:
            if left:
                queue.push(chain)
            left -= 1

    replace(Vsock, "txq", txq)
