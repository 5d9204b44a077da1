"""`python -m tests.conformance.devices.vsock`: a socket device to which nobody listens, for its checks."""

import asyncio
from collections import deque
from collections.abc import Sequence

from vhostd import BadRequest, Device, DeviceType, Handler, Virtqueue, run
from vhostd.conformance.groups.vsock import HEADER, REQUEST, RST, RW, STREAM, Packet

CID = 5


class Vsock(Device):
    """sockets to which nobody listens"""

    kind = DeviceType.of("vsock")

    def __init__(self) -> None:
        self._answers: deque[Packet] = deque()
        self._some = asyncio.Event()

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.rxq, self.txq, self.eventq]

    def read_config(self) -> bytes:
        return CID.to_bytes(8, "little")

    async def rxq(self, queue: Virtqueue) -> None:
        """Sends what there is to answer."""
        async for chain in queue:
            while not self._answers:
                self._some.clear()
                await self._some.wait()
            chain.write(HEADER.pack(*self._answers.popleft()))
            queue.push(chain)

    async def txq(self, queue: Virtqueue) -> None:
        """Takes packets."""
        async for chain in queue:
            self.take(chain.read(chain.readable))
            queue.push(chain)

    async def eventq(self, queue: Virtqueue) -> None:
        """There are no events."""

    def take(self, data: bytes) -> None:
        """Answers a packet, if it has an answer."""
        if len(data) < HEADER.size:
            raise BadRequest(f"a packet of {len(data)} bytes")
        packet = Packet(*HEADER.unpack_from(data))
        if len(data) < HEADER.size + packet.len:
            raise BadRequest(f"a packet of {len(data)} bytes with len {packet.len}")
        if packet.type != STREAM or packet.op in (REQUEST, RW):
            self.answer(packet)

    def answer(self, packet: Packet) -> None:
        """Has RST sent to where the packet came from."""
        back = Packet(
            packet.dst_cid, packet.src_cid, packet.dst_port, packet.src_port, 0, packet.type, RST, 0
        )
        self.send(back)

    def send(self, packet: Packet) -> None:
        """Has a packet sent to the guest."""
        self._answers.append(packet)
        self._some.set()


def main() -> int:
    """The program."""
    return run(Vsock)


if __name__ == "__main__":
    raise SystemExit(main())
