"""Requests: what the driver asks of the disk (virtio 1.3, 5.2.6), and how each comes to its end.

A read or a write is done at once if it need not wait; else, like all that takes time, by the engine, and the
next request is begun meanwhile. So requests end in any order, which the specification allows. What is wrong
with one is its status; the others do not notice. One that is given up is pushed back like any other, when the
work on it has ended.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial

from vhost_user_blk import bounds
from vhost_user_blk.bounds import Bounds
from vhost_user_blk.clearing import discarding, erasing, zeroing
from vhost_user_blk.engine import Engine, Result, Steps, Then, hear, in_steps
from vhost_user_blk.image import Image
from vhost_user_blk.move import Move
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
from vhost_user_blk.shares import Shares
from vhost_user_blk.transfers import Transfers
from vhostd import Chain, GuestError, Virtqueue

log = logging.getLogger(__name__)

MOST = 1024  # requests that Python has under way before it takes no more
TURNS = 1 << 16  # shares of the disk: a write needs one, or all if it rewrites a part of what the host writes
BOUNCES = 16  # steps at a time that need memory of ours

Segment = tuple[int, int, int]  # offset and size in bytes, and flags


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
        self.turns = Shares(TURNS)
        self.bounces = Shares(BOUNCES)
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
        else:
            turns = self._turns_of([(offset, size, 0)]) if writing else 0
            move = Move(self, queue, chain, offset, size, writing=writing, turns=turns)
            self.turns.take(turns, move.begin)

    def _turns_of(self, segments: list[Segment]) -> int:
        """How many of `turns` are needed to change these ranges.

        Where the host's unit is larger than a sector, a part of one is read, modified and written. What
        others write into the same unit meanwhile would be lost.
        """
        unit = self.image.unit
        return TURNS if any((offset | size) % unit for offset, size, _ in segments) else 1

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
        Move(self, queue, chain, offset, left, writing=writing)(result)

    # --- Everything else --------------------------------------------------------------------------------

    def _flush(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        if self.image.read_only or self.image.is_memory:
            self.finish(queue, chain, OK)
            return
        self.engine.fdatasync(chain, self.image.fd, self._ending(queue, chain, "flush"))

    def _get_id(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        chain.write(self._serial[: chain.writable - 1])
        self.finish(queue, chain, OK)

    def _discard(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        has = self.image.abilities
        segments = self._segments(chain, "discard", bounds.of_discards(has), allowed=0)
        if not has.discards:
            raise RequestError(UNSUPP, "a discard, which is not offered")
        self._do(queue, chain, "discard", segments, self._discarding(segments))

    def _write_zeroes(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        bound = bounds.of_zeroes(self.image.abilities)
        segments = self._segments(chain, "write zeroes", bound, allowed=UNMAP)
        self._do(queue, chain, "write zeroes", segments, self._zeroing(segments))

    def _secure_erase(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        segments = self._segments(chain, "secure erase", bounds.of_discards(self.image.abilities), allowed=0)
        self._do(queue, chain, "secure erase", segments, self._erasing(segments))

    def _segments(self, chain: Chain, what: str, bound: Bounds, *, allowed: int) -> list[Segment]:
        """The ranges that the request names; raises RequestError if one of them cannot be."""
        if chain.readable % SEGMENT.size or not 0 < chain.readable <= SEGMENT.size * bound.segments:
            raise RequestError(IOERR, f"{what} with segments of {chain.readable} bytes")
        found = list(SEGMENT.iter_unpack(chain.read(chain.readable)))
        if any(flags & ~allowed for _, _, flags in found):
            raise RequestError(UNSUPP, f"{what} with flags that are not known")
        segments = []
        for sector, count, flags in found:
            if count * SECTOR > bound.size:
                raise RequestError(IOERR, f"{what} of {count} sectors")
            self._check(sector * SECTOR, count * SECTOR, writing=True)
            segments.append((sector * SECTOR, count * SECTOR, flags))
        return segments

    def _do(
        self, queue: Virtqueue, chain: Chain, what: str, segments: list[Segment], steps: Iterator[object]
    ) -> None:
        """Has the engine do one step after the other."""
        turns = self._turns_of(segments)
        ending = self._ending(queue, chain, what)

        def then(result: Result) -> None:
            self.turns.give(turns)
            ending(result)

        self.turns.take(turns, lambda: self.engine.do(chain, lambda: in_steps(chain, steps), then))

    def _discarding(self, segments: list[Segment]) -> Steps:
        for offset, size, _ in segments:
            yield from discarding(self.image, offset, size)

    def _zeroing(self, segments: list[Segment]) -> Steps:
        for offset, size, flags in segments:
            yield from zeroing(self.image, offset, size, may_unmap=bool(flags & UNMAP))
        if self.is_durable:
            os.fdatasync(self.image.fd)
            yield None

    def _erasing(self, segments: list[Segment]) -> Steps:
        for offset, size, _ in segments:
            yield from erasing(self.image, offset, size)

    # --- The end ----------------------------------------------------------------------------------------

    def _ending(self, queue: Virtqueue, chain: Chain, what: str) -> Then:
        end = partial(self.end, queue, chain, what, 0)
        return lambda result: hear(result, end, partial(self.fail, queue))

    def end(self, queue: Virtqueue, chain: Chain, what: str, offset: int, result: int) -> None:
        """Ends a request whose work is done: `result` is negative if it failed."""
        if result >= 0 or chain.given_up:
            self.finish(queue, chain, OK)
            return
        log.error("%s at %d of %s: %s", what, offset, self.image.path, os.strerror(-result))
        queue.count_error()
        self.finish(queue, chain, UNSUPP if result == -errno.EOPNOTSUPP else IOERR)

    def finish(self, queue: Virtqueue, chain: Chain, status: bytes) -> None:
        """Ends a request: the status is the last byte that the driver gave room for, if it gave any."""
        if chain.writable > 1:
            chain.skip_writable(chain.writable - 1)
        if chain.writable:
            chain.write(status)
        queue.push(chain)
        self._count_end()

    def fail(self, queue: Virtqueue, error: Exception) -> None:
        """Ends the queue because of what went wrong with a request."""
        self._count_end()
        queue.fail(error)

    def _count_end(self) -> None:
        self.under_way -= 1
        if not self.is_busy:
            self._eased.set()
