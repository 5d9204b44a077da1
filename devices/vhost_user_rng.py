"""vhost-user-rng: entropy for the guest, and the device to read first: a kind, a handler per virtqueue.

    vhost-user-rng --socket-path=/tmp/rng.sock
    qemu-system-x86_64 -object memory-backend-memfd,id=mem,size=1G,share=on -machine q35,memory-backend=mem \\
      -chardev socket,id=rng,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=rng ...
"""

import os
import stat
import time

from vhostd import Device, DeviceType, SetupError, run

TYPE_CHECKING = False  # typing's own costs time, of which --print-capabilities has little
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from io import FileIO
    from typing import Self

    from vhostd import Virtqueue
    from vhostd.device import Handler

MAX_REQUEST = 65536  # bytes; of a larger buffer a part is filled, so that no guest has us make a huge one


class Rng(Device):
    """entropy for the guest (virtio-rng; virtio 1.3, 5.4)"""

    kind = DeviceType.RNG

    def __init__(self, source: "FileIO | None", limit: int, period: float) -> None:
        """Gives at most `limit` bytes per `period` seconds, of `source` if there is one; owns it."""
        self._source, self._limit, self._period = source, limit, period
        self._left, self._period_end = 0, 0.0  # the first period begins with the first ring

    @property
    def queues(self) -> "Sequence[Handler]":
        return [self.requestq]

    async def requestq(self, queue: "Virtqueue") -> None:
        """Fills the driver's buffers; waits for the limit where it holds none, so that the ring can stop."""
        await self._refill()
        async for chain in queue:
            data = self._random(min(chain.writable, MAX_REQUEST, self._left))
            chain.write(data)
            queue.push(chain)
            self._left -= len(data)
            await self._refill()

    def _random(self, size: int) -> bytes:
        if self._source is None:
            return os.getrandom(size)
        if not (data := self._source.read(size) or b"") and size:
            raise SetupError(f"--rng-source {self._source.name} has run out")
        return data

    async def _refill(self) -> None:
        """Starts a new period when the old one is over; waits for that if nothing is left to give."""
        from asyncio import sleep  # at the top it would cost every --print-capabilities

        while (now := time.monotonic()) < self._period_end:
            if self._left:
                return
            await sleep(self._period_end - now)
        self._left, self._period_end = self._limit, now + self._period

    @classmethod
    def add_options(cls, parser: "argparse.ArgumentParser") -> None:
        from vhostd import positive  # with argparse behind it

        rng = parser.add_argument_group("entropy")
        rng.add_argument("--rng-source", metavar="PATH", help="a device or file; default: getrandom(2)")
        rng.add_argument("--max-bytes", metavar="N", type=positive, default=1 << 62, help="per period")
        rng.add_argument("--period", metavar="MS", type=positive, default=65536, help="default: %(default)s")

    @classmethod
    def from_options(cls, options: "argparse.Namespace") -> "Self":
        path = options.rng_source
        try:
            if path and stat.S_ISFIFO(os.stat(path).st_mode):
                raise SetupError(f"--rng-source {path}: a pipe may let the guest wait for ever")
            source = path and open(path, "rb", buffering=0)  # noqa: SIM115 (close closes it)
        except OSError as error:
            raise SetupError(f"--rng-source {path}: {error.strerror}") from None
        return cls(source, options.max_bytes, options.period / 1000)

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def main() -> int:
    return run(Rng)


if __name__ == "__main__":
    raise SystemExit(main())
