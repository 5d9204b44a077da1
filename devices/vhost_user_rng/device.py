"""Rng: the entropy source as a device."""

import argparse
import os
import stat
from collections.abc import Sequence
from typing import Self

from vhost_user_rng import MANIFEST
from vhostd import (
    Budget,
    Device,
    DeviceType,
    Handler,
    Reader,
    SetupError,
    UsageError,
    Virtqueue,
    positive,
    size,
)

MAX_REQUEST = 65536  # bytes; of a larger buffer a part is filled, so that no guest has us make a huge one
READ_AHEAD = 4096  # bytes of a source that are read when requests need fewer; of a slow one, fewer than that
ANY = 1 << 62  # bytes in a period
PERIOD = 65536  # milliseconds
LEAST = 64  # bytes that a request is expected to need, such as Linux's


class Rng(Device):
    """entropy for the guest (virtio-rng)"""

    kind = DeviceType.of(MANIFEST.type)

    def __init__(self, source: Reader | None, budget: Budget) -> None:
        """Gives bytes of `source`, which it owns, or of getrandom(2), within the budget."""
        self._source = source
        self._budget = budget
        self._need = READ_AHEAD  # of the next request, by the one before

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.requestq]

    async def requestq(self, queue: Virtqueue) -> None:
        """Fills the driver's buffers; waits for all else where it holds none, so that the ring can stop."""
        await self._budget.refill()
        if self._source is not None:
            await self._read_ahead(self._source, queue)
        async for chain in queue:
            size = min(chain.writable, MAX_REQUEST, self._budget.left)
            data = os.getrandom(size) if self._source is None else self._source.take(size)
            chain.write(data)
            queue.push(chain)
            self._budget.left -= len(data)
            self._need = min(max(chain.writable, LEAST), MAX_REQUEST)
            queue.count_throttled(await self._budget.refill())
            if self._source is not None:
                await self._read_ahead(self._source, queue)

    async def _read_ahead(self, source: Reader, queue: Virtqueue) -> None:
        """Waits, if there is a request, until there are bytes for it."""
        if source.at_hand >= min(self._need, self._budget.left) or not await queue.ready():
            return
        try:
            await source.fill(min(max(self._need, READ_AHEAD), self._budget.left))
        except OSError as error:
            raise SetupError(f"--rng-source={source.name}: {error.strerror}") from None
        except EOFError:
            raise SetupError(f"--rng-source={source.name} has run out") from None

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument_group("entropy").add_argument
        add("--rng-source", metavar="PATH", help="a device or file; default: getrandom(2)")
        add("-m", "--max-bytes", metavar="SIZE", type=size, help="per period; default: any")
        add("-p", "--period", metavar="MS", type=positive, help="milliseconds; default: 65536")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        if options.period is not None and options.max_bytes is None:
            raise UsageError("--period needs --max-bytes: what may be read in a period")
        source = None if options.rng_source is None else _open(options.rng_source)
        return cls(source, Budget(options.max_bytes or ANY, (options.period or PERIOD) / 1000))

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def _open(path: str) -> Reader:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode) or stat.S_ISCHR(mode):  # a pipe may let the guest, and us, wait for ever
            return Reader(path)
    except OSError as error:
        raise SetupError(f"--rng-source={path}: {error.strerror}") from None
    raise SetupError(f"--rng-source={path}: neither a file nor a device")
