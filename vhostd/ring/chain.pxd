# cython: language_level=3
"""A chain, as the rings build it."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.iotlb cimport Extent, Extents
from vhostd.ring.memory cimport GuestMemory
from vhostd.ring.system_calls cimport MOST_IOVECS, PREADV, PWRITEV, RECVMSG, SENDMSG, iovec
from vhostd.ring.write_log cimport WriteLog


cdef enum:
    # Most requests are a header, a few buffers and a status: these fit without another allocation.
    FEW = 8


cdef enum:
    # What `attempt` does: from a file or a socket to the writable stream, or from the readable stream to one.
    READ = PREADV
    WRITE = PWRITEV
    RECEIVE = RECVMSG
    SEND = SENDMSG


cdef enum:
    # Pieces of guest memory in all chains of a ring that the device has: with more, no chain is popped.
    MOST_PIECES = 16384
    # Of one chain: twice the longest, so that many of its buffers may lie across two regions. A power of 2.
    MOST_OF_CHAIN = 65536
    # What takes about as long as a chain does at least: pieces to walk, and bytes to copy.
    PIECES_OF_EFFORT = 128
    BYTES_OF_EFFORT = 32768


cdef struct Stream:
    # The iovecs [at, end) of the chain, of which none is empty, hold `left` bytes.
    size_t at
    size_t end
    size_t left


@cython.final
cdef class InFlight:
    cdef readonly uint32_t chains
    cdef uint32_t waiting  # of them: they were given back, and wait for others in front of them (IN_ORDER)
    cdef set gone  # under IN_ORDER: the numbers of chains that went without being given back
    cdef size_t pieces  # of guest memory that the chains name: iovecs
    cdef uint64_t effort  # that it took so far to take chains, and to copy at once what they ask for
    cdef bint given_up
    cdef WriteLog log  # of what is written to them
    cdef object emptied  # what to call, once, when no chain is left
    cdef object eased  # and when few pieces are left, and the ring is not `held`
    cdef object returned  # and at the next chain that is given back
    cdef bint held  # the ring gives no chain until an address is translated
    cdef set named  # the I/O virtual addresses of the chains

    cdef void add(self, Chain chain) noexcept
    cdef void remove(self, Chain chain) noexcept
    cdef bint uses(self, Extent iova) except -1
    cdef void tell(self) noexcept


@cython.final
@cython.no_gc
cdef class Chain:
    cdef readonly uint16_t head
    cdef InFlight among  # the chains of its ring that the device has; None once it was given back
    cdef uint64_t number  # it was the ring's so manieth pop, not counting what was put back
    cdef uint16_t descriptors  # of a packed ring, that it takes
    cdef bint unfinished  # an earlier program popped it
    cdef uint32_t entry  # what the inflight record has it as, if that is not by its head
    cdef GuestMemory memory
    cdef Stream source
    cdef Stream sink
    cdef bint writing  # a writable buffer was added, so a readable one may not follow
    cdef bint has_holes  # a part of it is memory that is not shared: what touches that fails
    cdef uint64_t hole_addr  # the first of them
    cdef uint32_t hole_length
    cdef bint lent  # to a request in a Uring, whose completion advances a stream
    cdef readonly size_t written
    cdef Extents named  # the I/O virtual addresses of its buffers, if they are such
    cdef iovec *iov  # `count` of `room`: the readable ones, then the writable ones
    cdef size_t count
    cdef size_t room
    cdef iovec few[FEW]

    cdef int add(self, uint64_t guest_addr, uint32_t length, bint writable) except -1
    cdef int _append(self, unsigned char *host, size_t length, bint writable) except -1
    cdef int _grow(self) except -1
    cdef Py_ssize_t _expect(self, amount, Stream *stream, str what) except -1
    cdef int _reach(self, Stream *stream, size_t n) except -1
    cdef void _copy(self, Stream *stream, unsigned char *ours, size_t n) noexcept
    cdef void _advance(self, Stream *stream, size_t n) noexcept
    cdef size_t _lend(self, Stream *stream, iovec *iov, size_t n, size_t skip=*) noexcept
    cdef long long _position(self, offset, Py_ssize_t n) except -1
    cdef bint peek(self, void *into, size_t n) except -1
    cdef int take(self, void *into, size_t n) except -1
    cdef int put(self, const void *ours, size_t n) except -1
    cdef ssize_t attempt(
        self, int call, int fd, long long offset, size_t n, int flags, size_t skip=*
    ) except? -1
    cdef inline bint fits_call(self) noexcept:
        # Whether `attempt` lends all of the readable stream, and does not cut a message.
        return self.source.end - self.source.at <= MOST_IOVECS
    cdef void finish(self, unsigned char status) noexcept
    cdef ssize_t _call(
        self, int call, int fd, iovec *iov, size_t count, long long offset, int flags
    ) except? -1
    cdef inline bint is_logged(self) noexcept:
        return self.among is not None and self.among.log is not None
    cdef void wrote(self, int call, iovec *iov, size_t count, ssize_t done) noexcept
    cdef object _submit(self, int call, int fd, offset, amount, int flags)


@cython.final
@cython.no_gc
cdef class Reserved:
    cdef Chain chain  # None once it was filled
    cdef readonly size_t size
    cdef iovec *iov
    cdef size_t count
