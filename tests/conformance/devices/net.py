"""`python -m tests.conformance.devices.net`: a network card that leads nowhere, for its checks."""

from collections.abc import Sequence

from vhostd import BadRequest, Chain, Device, DeviceType, Handler, Virtqueue, run
from vhostd.conformance.groups.net import HEADER


class Net(Device):
    """a network card that leads nowhere"""

    kind = DeviceType.of("net")

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.receiveq, self.transmitq]

    async def receiveq(self, queue: Virtqueue) -> None:
        """Nothing ever comes."""

    async def transmitq(self, queue: Virtqueue) -> None:
        """Takes packets."""
        async for chain in queue:
            self.take(chain)
            queue.push(chain)

    def take(self, chain: Chain) -> None:
        """Drops a packet."""
        if chain.writable or chain.readable < HEADER.size:
            raise BadRequest(f"a packet of {chain.readable} bytes, and {chain.writable} to write")


def main() -> int:
    """The program."""
    return run(Net)


if __name__ == "__main__":
    raise SystemExit(main())
