# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Transfers: reads and writes from the ring to the host and back, without Python as long as all goes well.

A request is its header, data, and room for a status, cut into buffers anywhere (virtio 1.3, 5.2.6). What the
page cache can do at once is done on the way, without waiting for the host; the rest is begun in an io_uring,
if the engine is one. All that does not go as planned is left to `requests`: what is wrong with a request, what
the host did in part or not at all.
"""

from libc.errno cimport EINVAL, EOPNOTSUPP
from libc.stdint cimport uint32_t, uint64_t
cimport cython

from vhostd cimport BEGUN, DONE, LEFT, READ, WRITE, Chain, Shortcut
from vhostd.storage cimport Uring

import os

from vhost_user_blk import protocol
from vhostd.storage import STEP, SyncEngine

cdef enum:  # bytes
    AT_ONCE = 1 << 18  # data of a request that keeps all others waiting meanwhile
    STATUS = 1

cdef struct Header:  # struct virtio_blk_req
    uint32_t kind
    uint32_t reserved
    uint64_t sector

cdef uint32_t IN = protocol.Kind.IN, OUT = protocol.Kind.OUT
cdef uint64_t SECTOR = protocol.SECTOR
cdef size_t MOST = STEP  # bytes of data of a request that is served here
cdef unsigned char OK = protocol.OK[0]
cdef int NOWAIT = os.RWF_NOWAIT, DSYNC = os.RWF_DSYNC


cdef class Transfers(Shortcut):
    """The shortcut for reads and writes of `requests`."""

    cdef object requests
    cdef object image
    cdef int fd
    cdef bint may_write
    cdef uint64_t unit  # bytes of which a transfer has a whole number
    cdef bint reads_at_once
    cdef bint writes_at_once
    cdef public int read_flags  # of preadv2, for what is done at once
    cdef public int write_flags
    cdef Uring uring  # once something was begun

    def __init__(self, requests):
        self.requests = requests
        self.image = requests.image
        self.fd = self.image.fd
        self.unit = max(self.image.unit, SECTOR)
        # Where a part of a unit may be rewritten, all that is written is to take turns.
        self.may_write = not self.image.read_only and self.unit == SECTOR
        is_free = self.image.is_memory or isinstance(requests.engine, SyncEngine)
        self.reads_at_once = self.writes_at_once = not self.image.direct and (is_free or not self.image.may_wait)
        self.read_flags = self.write_flags = 0 if is_free else NOWAIT

    cpdef int serve(self, queue, Chain chain) except -1:
        cdef Header header
        if not chain.peek(&header, sizeof(header)) or not chain.sink.left:
            return LEFT
        if header.kind == IN:
            return self._read(queue, chain, header.sector, chain.sink.left - STATUS)
        if header.kind == OUT and self.may_write:
            return self._write(queue, chain, header.sector, chain.source.left - sizeof(header))
        return LEFT

    cpdef void submit(self) except *:
        if self.uring is not None and self.uring.queued:
            self.uring.submit()

    cdef int _read(self, queue, Chain chain, uint64_t sector, size_t size) except -1:
        cdef ssize_t done
        if not self._fits(sector, size):
            return LEFT
        if self.reads_at_once and size <= AT_ONCE:
            done = chain.attempt(READ, self.fd, sector * SECTOR, size, self.read_flags)
            if done == <ssize_t> size:
                chain.finish(OK)
                return DONE
            if done == -EOPNOTSUPP:
                self.reads_at_once = False
        return self._begin(READ, queue, chain, sector, size, 0)

    cdef int _write(self, queue, Chain chain, uint64_t sector, size_t size) except -1:
        cdef bint durable = self.requests.is_durable
        cdef ssize_t done
        if not self._fits(sector, size):
            return LEFT
        if self.writes_at_once and size <= AT_ONCE and not durable:
            done = chain.attempt(WRITE, self.fd, sector * SECTOR, size, self.write_flags, sizeof(Header))
            if done == <ssize_t> size:
                chain.finish(OK)
                return DONE
            if done == -EOPNOTSUPP or done == -EINVAL:  # it cannot promise not to wait
                self.writes_at_once = False
        return self._begin(WRITE, queue, chain, sector, size, DSYNC if durable else 0)

    cdef int _begin(self, int call, queue, Chain chain, uint64_t sector, size_t size, int flags) except -1:
        cdef Uring uring = self.uring
        cdef Flight flight
        if uring is None:
            uring = self.uring = self.requests.engine.watch()
        if uring is None or uring.is_full():
            return LEFT
        if call == WRITE:
            chain.skip(sizeof(Header))
        flight = Flight.__new__(Flight)
        flight.requests, flight.queue, flight.chain = self.requests, queue, chain
        flight.call, flight.offset, flight.size = call, sector * SECTOR, size
        uring.begin(call, chain, self.fd, flight.offset, size, flight, flags)
        return BEGUN

    cdef bint _fits(self, uint64_t sector, size_t size) except -1:
        """Whether it is whole units of the image, and few."""
        cdef uint64_t sectors = <uint64_t> self.image.size // SECTOR
        cdef uint64_t count = size // SECTOR
        return (
            size <= MOST
            and not size % self.unit
            and count <= sectors
            and sector <= sectors - count
            and not sector * SECTOR % self.unit
        )


@cython.final
@cython.freelist(64)
cdef class Flight:
    """A request that the io_uring does: what is to be called when that is done."""

    cdef object requests
    cdef object queue
    cdef Chain chain
    cdef int call
    cdef uint64_t offset
    cdef size_t size

    def __call__(self, result):
        """Ends the request, or leaves the rest of it to `requests`; what goes wrong is the queue's."""
        try:
            if result == self.size:
                self.chain.finish(OK)
                self.queue.push(self.chain)
            else:
                self.requests.take_over(
                    self.queue, self.chain, self.offset, self.size, result, writing=self.call == WRITE
                )
        except Exception as error:
            self.queue.fail(error)
