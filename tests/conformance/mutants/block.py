"""Faults of a disk. Requests take no shortcut here: compiled code cannot be replaced."""

import signal
from itertools import count
from typing import Any

from tests.conformance.faults import breaks, replace
from vhost_user_blk.config import Config
from vhost_user_blk.protocol import IOERR, OK, SECTOR, UNSUPP, Kind
from vhost_user_blk.requests import RequestError, Requests, Segments
from vhostd.ring import Chain
from vhostd.virtio.virtqueue import Virtqueue

UNKNOWN = 0x7777


def change(name: str, new: Any) -> None:
    """Replaces a method of `Requests`, and has each request pass through it."""
    replace(Virtqueue, "use_shortcut", lambda _before, _self, _shortcut: None)
    replace(Requests, name, new)


def die() -> None:
    """As by a fault of memory."""
    signal.raise_signal(signal.SIGKILL)


@breaks("BLK-1", "blk_size is 513", program="block")
def odd_blocks() -> None:
    """Its blocks have 513 bytes."""
    replace(Config, "read", lambda read, self: read(self)[:20] + b"\x01\x02\0\0" + read(self)[24:])


@breaks("BLK-2", "ended with status 1", program="block")
def last_block_fails() -> None:
    """The last block cannot be read."""

    def check(before: Any, self: Requests, offset: int, size: int, *, writing: bool) -> None:
        before(self, offset, size + SECTOR, writing=writing)

    change("_check", check)


@breaks("BLK-3", "ended with status 0, not 1", program="block")
def reads_beyond_the_end() -> None:
    """There is no end."""

    def read(before: Any, self: Requests, queue: Virtqueue, chain: Chain, offset: int) -> None:
        if offset + chain.writable - 1 > self.image.size:
            self.finish(queue, chain, OK)
        else:
            before(self, queue, chain, offset)

    change("_read", read)


@breaks("BLK-4", "a request of an unknown type ended with status 0", program="block")
def does_what_it_does_not_know() -> None:
    """An unknown request is a flush."""
    _with_handlers(lambda handlers: handlers.update({UNKNOWN: handlers[Kind.FLUSH]}))


@breaks("BLK-5", "GET_ID ended with status 2", program="block")
def no_id() -> None:
    """It has no id."""
    _with_handlers(lambda handlers: handlers.pop(Kind.GET_ID))


@breaks("BLK-6", "FLUSH ended with status 2", program="block")
def no_flush() -> None:
    """It offers FLUSH, and has none."""
    _with_handlers(lambda handlers: handlers.pop(Kind.FLUSH))


@breaks("BLK-8", "the data differ from those of a read in one piece", program="block")
def pieces_in_disorder() -> None:
    """Data that are read once more are others."""
    _read_other_data()


@breaks("BLK-9", "the read ended with status 1", program="block")
def status_of_its_own() -> None:
    """It cannot read."""

    def read(_before: Any, _self: Requests, *_: Any) -> None:
        raise RequestError(IOERR, "planted")

    change("_read", read)


@breaks("BLK-10", "was ended by SIGKILL", program="block")
def status_without_room() -> None:
    """The status is written whether there is room or not."""

    def start(before: Any, self: Requests, queue: Virtqueue, chain: Chain) -> None:
        if not chain.writable:
            die()
        before(self, queue, chain)

    change("_start", start)


@breaks("BLK-11", "was ended by SIGKILL", program="block")
def header_of_any_size() -> None:
    """The first buffer is a header, however short it is."""

    def start(before: Any, self: Requests, queue: Virtqueue, chain: Chain) -> None:
        if chain.readable < 16:
            die()
        before(self, queue, chain)

    change("_start", start)


@breaks("BLK-12", "was ended by SIGKILL", program="block")
def whole_sectors_only() -> None:
    """It relies on whole sectors."""

    def check(before: Any, self: Requests, offset: int, size: int, *, writing: bool) -> None:
        if size % SECTOR:
            die()
        before(self, offset, size, writing=writing)

    change("_check", check)


@breaks("BLK-13", "other data at sectors", program="block")
def mixed_up() -> None:
    """A read behind which another waits gets other data."""

    def read(before: Any, self: Requests, queue: Virtqueue, chain: Chain, offset: int) -> None:
        if queue.ring.is_empty:
            before(self, queue, chain, offset)
            return
        chain.write(b"\xff" * (chain.writable - 1))
        self.finish(queue, chain, OK)

    change("_read", read)


@breaks("BLK-14", "ended with status 1", program="block", options="--num-queues=2")
def one_queue_works() -> None:
    """Only the first queue has a disk."""

    def start(before: Any, self: Requests, queue: Virtqueue, chain: Chain) -> None:
        if queue.index:
            self.finish(queue, chain, IOERR)
        else:
            before(self, queue, chain)

    change("_start", start)


@breaks("BLK-15", "segments ended with status 1", program="block")
def few_segments() -> None:
    """It takes less than it says."""

    def check(before: Any, self: Requests, offset: int, size: int, *, writing: bool) -> None:
        if size > 100 * SECTOR:
            raise RequestError(IOERR, "too much")
        before(self, offset, size, writing=writing)

    change("_check", check)


@breaks("BLK-17", "other data than", program="block")
def writes_are_lost() -> None:
    """Nothing is written."""
    change("_write", lambda _before, self, queue, chain, _offset: self.finish(queue, chain, OK))


@breaks("BLK-18", "a write that failed has changed the last block", program="block")
def writes_what_fits() -> None:
    """Of a write across the end, what fits is written; then it fails."""

    def write(before: Any, self: Requests, queue: Virtqueue, chain: Chain, offset: int) -> None:
        left = self.image.size - offset
        if 0 < left < chain.readable:
            self.disk.write(chain, offset, left, lambda _: self.finish(queue, chain, IOERR), durable=False)
        else:
            before(self, queue, chain, offset)

    change("_write", write)


@breaks("BLK-19", "other data after WRITE_ZEROES", program="block")
def zeroes_are_lost() -> None:
    """WRITE_ZEROES does nothing."""
    change("_write_zeroes", lambda _before, self, queue, chain, _offset: self.finish(queue, chain, OK))


@breaks("BLK-20", "DISCARD has changed its neighbours", program="block")
def discards_too_much() -> None:
    """A sector more is discarded at each end."""

    def segments(before: Any, self: Requests, *arguments: Any, **keywords: Any) -> Segments:
        found: Segments = before(self, *arguments, **keywords)
        wider = [(max(offset - 4096, 0), size + 8192) for offset, size in found.ranges]
        return Segments(wider, found.may_unmap)

    change("_segments", segments)


@breaks("BLK-21", "ended with status 0", program="block")
def discards_anything() -> None:
    """A range that is not there is discarded well."""
    change("_discard", _forgiving(IOERR))


@breaks("BLK-22", "DISCARD with the unmap flag ended with status 0", program="block")
def flags_of_discard() -> None:
    """Flags of DISCARD are passed over."""
    change("_discard", _forgiving(UNSUPP))


@breaks("BLK-23", "WRITE_ZEROES with flag 0x80 ended with status 0", program="block")
def flags_of_write_zeroes() -> None:
    """Flags of WRITE_ZEROES are passed over."""
    change("_write_zeroes", _forgiving(UNSUPP))


@breaks("BLK-24", "writeback is", program="block")
def cache_stays() -> None:
    """The write cache cannot be switched, and nobody is told."""
    replace(Config, "write", lambda _before, _self, _offset, _data: None)


@breaks("BLK-26", "the data differ from those of a read to an even address", program="block")
def even_addresses_only() -> None:
    """Data that are read once more are others."""
    _read_other_data()


def _read_other_data() -> None:
    times = count()

    def read(before: Any, self: Requests, queue: Virtqueue, chain: Chain, offset: int) -> None:
        if not next(times):
            before(self, queue, chain, offset)
            return
        chain.write(b"\xff" * (chain.writable - 1))
        self.finish(queue, chain, OK)

    change("_read", read)


def _forgiving(status: bytes) -> Any:
    """A handler whose failures of this status are successes."""

    def handle(before: Any, self: Requests, queue: Virtqueue, chain: Chain, offset: int) -> None:
        try:
            before(self, queue, chain, offset)
        except RequestError as error:
            if error.status != status:
                raise
            self.finish(queue, chain, OK)

    return handle


def _with_handlers(call: Any) -> None:
    def init(before: Any, self: Requests, *arguments: Any, **keywords: Any) -> None:
        before(self, *arguments, **keywords)
        call(self._handlers)

    change("__init__", init)
