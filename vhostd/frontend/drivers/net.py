"""A guest's virtio-net driver to script: packets with their headers (virtio 1.3, 5.1).

The numbers are written down here once more, so that a device of ours and this driver check each other.
"""

import struct
from typing import NamedTuple, Self

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.queue import Queue
from vhostd.virtio.vocabulary import Feature

# Feature bits (5.1.3).
CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 0, 1, 3, 5, 7, 8, 9
HOST_TSO4, HOST_TSO6, HOST_ECN, MRG_RXBUF, STATUS, MQ, GUEST_USO4, GUEST_USO6, HOST_USO = (
    *(11, 12, 13, 15, 16, 22),
    *(54, 55, 56),
)
# `flags` and `gso_type` of a header (5.1.6).
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
SHORT_HEADER = struct.Struct("<BBHHHH")  # of a driver of before 1.0 that merges no buffers
HEADER = struct.Struct("<BBHHHHH")
CONFIG = struct.Struct("<6sHHH")


class Header(NamedTuple):
    """struct virtio_net_hdr."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0
    num_buffers: int = 0


class Config(NamedTuple):
    """struct virtio_net_config, as far as its first fields go."""

    mac: bytes
    status: int
    max_virtqueue_pairs: int
    mtu: int


async def read_config(frontend: Frontend) -> Config:
    """The config space, where the back-end has one: QEMU has its own."""
    return Config(*CONFIG.unpack(await frontend.read_config(0, CONFIG.size)))


class NetDriver:
    """Drives a pair of queues, which it owns. Raises DeviceError for what no device may say."""

    def __init__(self, frontend: Frontend, receiveq: Queue, transmitq: Queue, *, buffer: int) -> None:
        """Gives the device as many buffers of `buffer` bytes as the receiveq takes."""
        self.receiveq = receiveq
        self._frontend = frontend
        self._transmitq = Pipeline(transmitq, descriptors=1)
        self._buffer = buffer
        self._merges = bool(frontend.features >> MRG_RXBUF & 1)
        self._is_long = self._merges or bool(frontend.features >> Feature.VERSION_1 & 1)
        for _ in range(receiveq.size if buffer else 0):
            receiveq.add(room=buffer)
        receiveq.kick()

    @classmethod
    async def start(
        cls,
        frontend: Frontend,
        memory: SharedMemory,
        *,
        size: int = 256,
        buffer: int = 2048,
        pair: int = 0,
    ) -> Self:
        """Starts the queues of a pair, of `size` descriptors each."""
        receiveq = await frontend.start(memory, 2 * pair, size)
        return cls(frontend, receiveq, await frontend.start(memory, 2 * pair + 1, size), buffer=buffer)

    @property
    def header_size(self) -> int:
        """Bytes of each header, as negotiated."""
        return HEADER.size if self._is_long else SHORT_HEADER.size

    async def send(self, frame: bytes, header: Header | None = None) -> None:
        """Sends a packet; returns when the device has taken it."""
        fields = (header or Header())[: 7 if self._is_long else 6]
        packed = (HEADER if self._is_long else SHORT_HEADER).pack(*fields)
        await self._transmitq.request(packed + frame)

    async def receive(self) -> tuple[Header, bytes]:
        """The next packet; its buffers are the device's again at once."""
        header, frame = self._parse(await self._next())
        for _ in range(header.num_buffers - 1 if self._merges else 0):
            frame += await self._next()
        return header, frame

    async def _next(self) -> bytes:
        _head, data = await self.receiveq.used()
        self.receiveq.add(room=self._buffer)
        self.receiveq.kick()
        return data

    def _parse(self, data: bytes) -> tuple[Header, bytes]:
        if len(data) < self.header_size:
            raise DeviceError(f"a buffer of {len(data)} bytes, which are no header")
        if not self._is_long:
            return Header(*SHORT_HEADER.unpack_from(data)), data[SHORT_HEADER.size :]
        header = Header(*HEADER.unpack_from(data))
        if header.num_buffers < 1 or (header.num_buffers > 1 and not self._merges):  # 5.1.6.4.1
            raise DeviceError(f"a packet in {header.num_buffers} buffers")
        return header, data[HEADER.size :]

    async def stop(self) -> None:
        """Stops both rings, as at a guest's reset, and closes."""
        for queue in (self.receiveq, self._transmitq.queue):
            await self._frontend.stop(queue)
        self.close()

    def close(self) -> None:
        """Closes both queues. Idempotent."""
        self.receiveq.close()
        self._transmitq.close()
