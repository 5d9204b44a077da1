# cython: language_level=3
"""Ranges of guest memory that stand for one span, as chains make them."""

cimport cython

from vhostd.ring.memory cimport GuestMemory, Span
from vhostd.ring.system_calls cimport iovec


cdef struct Piece:
    size_t start  # of the piece in the span
    size_t length
    unsigned char *host
    Span *span  # the region


@cython.final
@cython.no_gc
cdef class Gather:
    cdef GuestMemory memory
    cdef size_t size
    cdef Piece *pieces  # `count` of `room`: sorted by `start`, without a gap, none empty
    cdef size_t count
    cdef size_t room
    cdef size_t most

    cdef int _add(self, guest_addr, length) except -1
    cdef int _append(self, Span *span, unsigned char *host, size_t length) except -1
    cdef int _resize(self, size_t room) except -1
    cdef object _refuse(self, guest_addr, length, str why)
    cdef object _outside(self, str what)
    cdef Piece *_find(self, size_t offset) noexcept
    cdef void _copy_rows(
        self, unsigned char *ours, size_t offset, size_t row, size_t rows, size_t stride, size_t into_stride
    ) noexcept
    cdef void _copy(self, unsigned char *ours, size_t offset, size_t n) noexcept
    cdef size_t _lend(self, iovec *iov, size_t offset, size_t n) noexcept


cdef Gather gather(GuestMemory memory, ranges, size_t most)
