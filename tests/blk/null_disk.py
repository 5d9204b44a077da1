"""A disk that does nothing: every request succeeds at once. It is what our event loop and rings cost alone.

python -m tests.blk.null_disk --socket-path=PATH
"""

import struct
from collections.abc import Sequence

from vhostd import Device, DeviceType, Handler, Virtqueue, run
from vhostd.frontend.drivers.block import OK, SECTOR

SIZE = 256 << 20


class NullDisk(Device):
    """a disk for the guest that keeps nothing"""

    kind = DeviceType.BLOCK

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.requestq]

    async def requestq(self, queue: Virtqueue) -> None:
        """Ends every request, and writes nothing but its status."""
        status = bytes([OK])
        async for chain in queue:
            chain.skip_writable(chain.writable - 1)
            chain.write(status)
            queue.push(chain)

    def read_config(self) -> bytes:
        return struct.pack("<Q", SIZE // SECTOR).ljust(60, b"\0")


if __name__ == "__main__":
    raise SystemExit(run(NullDisk))
