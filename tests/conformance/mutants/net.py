"""Faults of a network card."""

import signal
from collections.abc import Callable
from typing import Any

from tests.conformance.devices.net import Net
from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.conformance.groups.net import HEADER, MTU
from vhostd.errors import BadRequest
from vhostd.ring import Chain
from vhostd.virtio.virtqueue import Virtqueue


def _dies(wrong: Callable[[Chain], bool]) -> None:
    """Has the program die of such packets."""

    def take(before: Any, self: Net, chain: Chain) -> None:
        if wrong(chain):
            signal.raise_signal(signal.SIGKILL)
        before(self, chain)

    replace(Net, "take", take)


def _dies_of_header(wrong: Callable[..., bool]) -> None:
    """Has the program die of packets by the fields of their headers."""
    _dies(lambda chain: chain.readable >= HEADER.size and wrong(*HEADER.unpack(chain.read(HEADER.size))))


@breaks("NET-1", "a packet did not come back", program="net", patience=SILENCE)
def packets_are_kept() -> None:
    """No packet is given back."""

    async def transmitq(_before: Any, self: Net, queue: Virtqueue) -> None:
        kept = [chain async for chain in queue]
        del kept

    replace(Net, "transmitq", transmitq)


@breaks("NET-2", "a packet in five descriptors has stopped the ring", program="net")
def packets_are_refused() -> None:
    """No packet is good enough."""

    def take(_before: Any, self: Net, chain: Chain) -> None:
        raise BadRequest(f"{chain.readable} bytes")

    replace(Net, "take", take)


@breaks("NET-3", "packets did not come back", program="net", patience=SILENCE)
def some_are_kept() -> None:
    """Each tenth packet is lost."""

    async def transmitq(_before: Any, self: Net, queue: Virtqueue) -> None:
        kept = []
        async for chain in queue:
            kept.append(chain)
            if len(kept) % 10:
                queue.push(kept[-1])

    replace(Net, "transmitq", transmitq)


@breaks("NET-4", "the program was ended by SIGKILL", program="net")
def cut_header() -> None:
    """A header is read without a look at its size."""
    _dies(lambda chain: 0 < chain.readable < HEADER.size)


@breaks("NET-5", "the program was ended by SIGKILL", program="net")
def checksum_is_written() -> None:
    """The checksum goes where the driver says."""
    _dies_of_header(lambda flags, _gso, _hdr, _size, start, *_: bool(flags) and start == 0xFFFF)


@breaks("NET-6", "the program was ended by SIGKILL", program="net")
def division_by_nothing() -> None:
    """The number of segments is calculated."""
    _dies_of_header(lambda _flags, gso, _hdr, size, *_: bool(gso) and not size)


@breaks("NET-7", "the program was ended by SIGKILL", program="net")
def no_limit() -> None:
    """A packet is copied, whatever its size."""
    _dies(lambda chain: chain.readable > 1 << 16)


@breaks("NET-8", "the program was ended by SIGKILL", program="net")
def no_room_is_expected() -> None:
    """What the device may write is none of its business."""
    _dies(lambda chain: bool(chain.writable))


@breaks("NET-9", "the program was ended by SIGKILL", program="net")
def packets_fit() -> None:
    """A buffer to receive into is large enough."""

    async def receiveq(_before: Any, self: Net, queue: Virtqueue) -> None:
        async for chain in queue:
            if chain.writable < MTU:
                signal.raise_signal(signal.SIGKILL)

    replace(Net, "receiveq", receiveq)


@breaks("NET-10", "the program was ended by SIGKILL", program="net")
def a_frame_is_expected() -> None:
    """Behind the header there is a frame."""
    _dies(lambda chain: chain.readable == HEADER.size)
