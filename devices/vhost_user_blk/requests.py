"""Requests: what the driver asks of the disk (virtio 1.3, 5.2.6), and how each comes to its end.

A read or a write is done at once if it need not wait; else, like all that takes time, by the engine, and the
next request is begun meanwhile. So requests end in any order, which the specification allows. What is wrong
with one is its status; the others do not notice. One that is given up is pushed back like any other, when the
work on it has ended.
"""

import asyncio
import errno
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from vhost_user_blk.protocol import (
    HEADER,
    ID_SIZE,
    IOERR,
    OK,
    SECTOR,
    SEGMENT,
    UNMAP,
    UNSUPP,
    Kind,
)
from vhost_user_blk.transfers import Transfers
from vhostd import Chain, GuestError, Virtqueue
from vhostd.storage import Bounds, Disk, Engine, Image, Result, Then, discard_bounds, zero_bounds

log = logging.getLogger(__name__)

MOST = 1024  # requests that Python has under way before it takes no more


class Segments(NamedTuple):
    """Ranges, by offset and size in bytes, and which of them may be unmapped."""

    ranges: list[tuple[int, int]]
    may_unmap: list[bool]


class RequestError(Exception):
    """A request that ends with another status than OK, and why."""

    def __init__(self, status: bytes, why: str) -> None:
        super().__init__(why)
        self.status = status


class Requests:
    """Serves the requests of all queues on one image.

    What is written may wait for a flush if `writeback` says so, and if there can be one at all: `flushable`.
    """

    def __init__(self, image: Image, engine: Engine, serial: str, *, writeback: bool) -> None:
        self.image = image
        self.writeback = writeback
        self.flushable = True
        self.engine = engine
        self.disk = Disk(image, engine)
        self.under_way = 0  # begun here, or taken over, and not ended
        self._eased = asyncio.Event()
        self._serial = serial.encode("utf-8", "surrogateescape")[:ID_SIZE].ljust(ID_SIZE, b"\0")
        self.shortcut = Transfers(self)
        self._handlers: dict[int, Callable[[Virtqueue, Chain, int], None]] = {
            Kind.IN: self._read,
            Kind.OUT: self._write,
            Kind.FLUSH: self._flush,
            Kind.GET_ID: self._get_id,
            Kind.DISCARD: self._discard,
            Kind.WRITE_ZEROES: self._write_zeroes,
        }
        if image.can_erase_securely():
            self._handlers[Kind.SECURE_ERASE] = self._secure_erase

    @property
    def is_durable(self) -> bool:
        """Whether what is written must be on stable storage before the request ends."""
        return not (self.writeback and self.flushable)

    @property
    def is_busy(self) -> bool:
        """Whether so much is under way that no more should be taken before `eased`."""
        return self.under_way >= MOST

    async def eased(self) -> None:
        """Waits until there is less to do."""
        while self.is_busy:
            self._eased.clear()
            await self._eased.wait()

    def start(self, queue: Virtqueue, chain: Chain) -> None:
        """Begins a request that the shortcut has left; it is pushed back to the queue at its end."""
        self.under_way += 1
        try:
            self._start(queue, chain)
        except Exception:
            self._count_end()
            raise

    def _start(self, queue: Virtqueue, chain: Chain) -> None:
        try:
            if chain.unreachable:
                raise RequestError(IOERR, chain.unreachable)
            kind, _, sector = HEADER.unpack(chain.read(HEADER.size))
            if not chain.writable:
                raise RequestError(b"", "a request without room for its status")
            handler = self._handlers.get(kind)
            if handler is None:
                raise RequestError(UNSUPP, f"a request of type {kind}")
            handler(queue, chain, sector * SECTOR)
        except (RequestError, GuestError) as error:
            log.warning("vring %d: %s", queue.index, error)
            queue.count_error()
            self.finish(queue, chain, error.status if isinstance(error, RequestError) else IOERR)

    # --- Data -------------------------------------------------------------------------------------------

    def _read(self, queue: Virtqueue, chain: Chain, offset: int) -> None:
        self._move(queue, chain, offset, chain.writable - 1, writing=False)

    def _write(self, queue: Virtqueue, chain: Chain, offset: int) -> None:
        self._move(queue, chain, offset, chain.readable, writing=True)

    def _move(self, queue: Virtqueue, chain: Chain, offset: int, size: int, *, writing: bool) -> None:
        self._check(offset, size, writing=writing)
        if not size:
            self.finish(queue, chain, OK)
        elif writing:
            self.disk.write(chain, offset, size, self._ending(queue, chain), durable=self.is_durable)
        else:
            self.disk.read(chain, offset, size, self._ending(queue, chain))

    def _check(self, offset: int, size: int, *, writing: bool) -> None:
        if writing and self.image.read_only:
            raise RequestError(IOERR, "a write to a read-only disk")
        if size % SECTOR or offset + size > self.image.size:
            raise RequestError(IOERR, f"{size} bytes at {offset} of {self.image.size}")

    def take_over(
        self, queue: Virtqueue, chain: Chain, offset: int, left: int, result: int, *, writing: bool
    ) -> None:
        """Goes on with a read or a write of which the host did a part, or nothing: `result`."""
        self.under_way += 1
        then, durable = self._ending(queue, chain), self.is_durable
        self.disk.go_on(chain, offset, left, result, then, writing=writing, durable=durable)

    # --- Everything else --------------------------------------------------------------------------------

    def _flush(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        self.disk.flush(chain, self._ending(queue, chain))

    def _get_id(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        chain.write(self._serial[: chain.writable - 1])
        self.finish(queue, chain, OK)

    def _discard(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        has = self.image.abilities
        segments = self._segments(chain, "discard", discard_bounds(has), allowed=0)
        if not has.discards:
            raise RequestError(UNSUPP, "a discard, which is not offered")
        self.disk.discard(chain, segments.ranges, self._ending(queue, chain))

    def _write_zeroes(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        bound = zero_bounds(self.image.abilities)
        segments = self._segments(chain, "write zeroes", bound, allowed=UNMAP)
        self.disk.zero(chain, *segments, self._ending(queue, chain), durable=self.is_durable)

    def _secure_erase(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        segments = self._segments(chain, "secure erase", discard_bounds(self.image.abilities), allowed=0)
        self.disk.erase(chain, segments.ranges, self._ending(queue, chain))

    def _segments(self, chain: Chain, what: str, bound: Bounds, *, allowed: int) -> Segments:
        """The ranges that the request names; raises RequestError if one of them cannot be."""
        if chain.readable % SEGMENT.size or not 0 < chain.readable <= SEGMENT.size * bound.segments:
            raise RequestError(IOERR, f"{what} with segments of {chain.readable} bytes")
        found = list(SEGMENT.iter_unpack(chain.read(chain.readable)))
        if any(flags & ~allowed for _, _, flags in found):
            raise RequestError(UNSUPP, f"{what} with flags that are not known")
        for sector, count, _ in found:
            if count * SECTOR > bound.size:
                raise RequestError(IOERR, f"{what} of {count} sectors")
            self._check(sector * SECTOR, count * SECTOR, writing=True)
        ranges = [(sector * SECTOR, count * SECTOR) for sector, count, _ in found]
        return Segments(ranges, [bool(flags & UNMAP) for _, _, flags in found])

    # --- The end ----------------------------------------------------------------------------------------

    def _ending(self, queue: Virtqueue, chain: Chain) -> Then:
        return partial(self._end, queue, chain)

    def _end(self, queue: Virtqueue, chain: Chain, result: Result) -> None:
        """Ends a request whose work is done: `result` is negative, or an exception, if it failed."""
        if isinstance(result, Exception):
            self._fail(queue, result)
            return
        try:
            if result >= 0 or chain.given_up:
                self.finish(queue, chain, OK)
            else:
                queue.count_error()
                self.finish(queue, chain, UNSUPP if result == -errno.EOPNOTSUPP else IOERR)
        except Exception as error:
            self._fail(queue, error)

    def _fail(self, queue: Virtqueue, error: Exception) -> None:
        self._count_end()
        queue.fail(error)

    def finish(self, queue: Virtqueue, chain: Chain, status: bytes) -> None:
        """Ends a request: the status is the last byte that the driver gave room for, if it gave any."""
        if chain.writable > 1:
            chain.skip_writable(chain.writable - 1)
        if chain.writable:
            chain.write(status)
        queue.push(chain)
        self._count_end()

    def _count_end(self) -> None:
        self.under_way -= 1
        if not self.is_busy:
            self._eased.set()
