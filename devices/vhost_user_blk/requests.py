"""Requests: what the driver asks of the disk (virtio 1.3, 5.2.6), and how each comes to its end.

A read or a write is done at once if it need not wait; else, like all that takes time, by the engine, and the
next request is begun meanwhile. So requests end in any order, which the specification allows. What is wrong
with one is its status; the others do not notice.
"""

import asyncio
import errno
import logging
import mmap
import os
from collections.abc import Callable
from functools import partial

from vhost_user_blk import bounds
from vhost_user_blk.bounds import Bounds
from vhost_user_blk.clearing import discarding, erasing, zeroing
from vhost_user_blk.engine import STEP, Engine, Result, Then
from vhost_user_blk.image import Image
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

log = logging.getLogger(__name__)

# What the host says of guest memory that it cannot reach past its page cache; the second, of very many small
# pieces of it.
MISALIGNED = (-errno.EINVAL, -errno.EFAULT)

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

    def start(self, queue: Virtqueue, chain: Chain) -> None:
        """Begins a request that the shortcut has left; it is pushed back to the queue at its end."""
        try:
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
            finish(queue, chain, error.status if isinstance(error, RequestError) else IOERR)

    # --- Data -------------------------------------------------------------------------------------------

    def _read(self, queue: Virtqueue, chain: Chain, offset: int) -> None:
        self._move(queue, chain, offset, chain.writable - 1, writing=False)

    def _write(self, queue: Virtqueue, chain: Chain, offset: int) -> None:
        self._move(queue, chain, offset, chain.readable, writing=True)

    def _move(self, queue: Virtqueue, chain: Chain, offset: int, size: int, *, writing: bool) -> None:
        self._check(offset, size, writing=writing)
        if size:
            Transfer(self, queue, chain, offset, size, writing=writing).go_on()
        else:
            finish(queue, chain, OK)

    def _check(self, offset: int, size: int, *, writing: bool) -> None:
        if writing and self.image.read_only:
            raise RequestError(IOERR, "a write to a read-only disk")
        if size % SECTOR or offset + size > self.image.size:
            raise RequestError(IOERR, f"{size} bytes at {offset} of {self.image.size}")

    def take_over(
        self, queue: Virtqueue, chain: Chain, offset: int, left: int, result: int, *, writing: bool
    ) -> None:
        """Goes on with a read or a write of which the host did a part, or nothing: `result`."""
        Transfer(self, queue, chain, offset, left, writing=writing)(result)

    # --- Everything else --------------------------------------------------------------------------------

    def _flush(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        if self.image.read_only or self.image.is_memory:
            finish(queue, chain, OK)
            return
        self.engine.fdatasync(self.image.fd, self._ending(queue, chain, "flush"))

    def _get_id(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        chain.write(self._serial[: chain.writable - 1])
        finish(queue, chain, OK)

    def _discard(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        has = self.image.abilities
        segments = self._segments(chain, "discard", bounds.of_discards(has), allowed=0)
        if not has.discards:
            raise RequestError(UNSUPP, "a discard, which is not offered")
        self._do(queue, chain, "discard", lambda: self._punch(segments))

    def _write_zeroes(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        segments = self._segments(
            chain, "write zeroes", bounds.of_zeroes(self.image.abilities), allowed=UNMAP
        )
        self._do(queue, chain, "write zeroes", lambda: self._zero(segments))

    def _secure_erase(self, queue: Virtqueue, chain: Chain, _offset: int) -> None:
        segments = self._segments(chain, "secure erase", bounds.of_discards(self.image.abilities), allowed=0)
        self._do(queue, chain, "secure erase", lambda: self._erase(segments))

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

    def _do(self, queue: Virtqueue, chain: Chain, what: str, work: Callable[[], int]) -> None:
        self.engine.do(work, self._ending(queue, chain, what))

    def _punch(self, segments: list[Segment]) -> int:
        for offset, size, _ in segments:
            for _ in discarding(self.image, offset, size):
                pass
        return 0

    def _zero(self, segments: list[Segment]) -> int:
        for offset, size, flags in segments:
            for _ in zeroing(self.image, offset, size, may_unmap=bool(flags & UNMAP)):
                pass
        if self.is_durable:
            os.fdatasync(self.image.fd)
        return 0

    def _erase(self, segments: list[Segment]) -> int:
        for offset, size, _ in segments:
            for _ in erasing(self.image, offset, size):
                pass
        return 0

    def _ending(self, queue: Virtqueue, chain: Chain, what: str) -> Then:
        return partial(guard, queue, partial(self.end, queue, chain, what, 0))

    def end(self, queue: Virtqueue, chain: Chain, what: str, offset: int, result: int) -> None:
        """Ends a request whose work is done: `result` is negative if it failed."""
        if result >= 0:
            finish(queue, chain, OK)
            return
        log.error("%s at %d of %s: %s", what, offset, self.image.path, os.strerror(-result))
        queue.count_error()
        finish(queue, chain, UNSUPP if result == -errno.EOPNOTSUPP else IOERR)


class Transfer:
    """What is left of a read or a write: the engine does it, in as many steps as it takes.

    It is itself what the engine calls back after each.
    """

    __slots__ = ("_chain", "_fd", "_flags", "_left", "_offset", "_queue", "_requests", "_writing")

    def __init__(
        self,
        requests: Requests,
        queue: Virtqueue,
        chain: Chain,
        offset: int,
        left: int,
        *,
        writing: bool,
    ) -> None:
        self._requests = requests
        self._queue = queue
        self._chain = chain
        self._fd = requests.image.fd
        self._flags = os.RWF_DSYNC if writing and requests.is_durable else 0
        self._offset = offset
        self._left = left
        self._writing = writing

    def go_on(self) -> None:
        """Does the next step."""
        engine = self._requests.engine
        move = engine.pwritev if self._writing else engine.preadv
        move(self._chain, self._fd, self._offset, min(self._left, STEP), self._flags, self)

    def __call__(self, result: Result) -> None:
        """After a step."""
        guard(self._queue, self._went, result)

    def _went(self, result: int) -> None:
        if result in MISALIGNED and self._requests.image.direct:
            self._bounce()
        else:
            self._advance(result)

    def _advance(self, result: int) -> None:
        if result <= 0:  # 0 if the image has become shorter than it was
            what = "write" if self._writing else "read"
            self._requests.end(self._queue, self._chain, what, self._offset, result or -errno.EIO)
            return
        self._offset += result
        self._left -= result
        if self._left:  # an engine may call back at once, and there may be many steps
            asyncio.get_running_loop().call_soon(self.go_on)
        else:
            finish(self._queue, self._chain, OK)

    def _bounce(self) -> None:
        """Does the next step by way of memory that is aligned as the host wants it: the guest's is not."""
        size = min(self._left, STEP)
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self._writing:
            memory.write(self._chain.read(size))

        def move() -> int:
            return _move_all(self._fd, memory, self._offset, size, self._flags, writing=self._writing)

        def moved(result: int) -> None:
            if not self._writing and result > 0:
                self._chain.write(memory[:result])
            memory.close()
            self._advance(result)

        self._requests.engine.do(move, partial(guard, self._queue, moved))


def guard(queue: Virtqueue, then: Callable[[int], None], result: Result) -> None:
    """Calls `then`, whose exceptions, and those that an engine hands on, are the queue's."""
    try:
        if isinstance(result, Exception):
            raise result
        then(result)
    except Exception as error:
        queue.fail(error)


def finish(queue: Virtqueue, chain: Chain, status: bytes) -> None:
    """Ends a request: the status is the last byte that the driver gave room for, if it gave any."""
    if chain.writable > 1:
        chain.skip_writable(chain.writable - 1)
    if chain.writable:
        chain.write(status)
    queue.push(chain)


def _move_all(fd: int, memory: mmap.mmap, offset: int, size: int, flags: int, *, writing: bool) -> int:
    """Transfers `size` bytes, or up to where the file ends; returns how many."""
    done = 0
    while done < size:
        with memoryview(memory) as whole, whole[done:size] as rest:
            step = (os.pwritev if writing else os.preadv)(fd, [rest], offset + done, flags)
        if not step:
            break
        done += step
    return done
