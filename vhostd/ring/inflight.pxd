# cython: language_level=3
"""One queue's record of what is in flight, as the ring keeps it."""

cimport cython
from libc.stdint cimport uint32_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.memory cimport GuestMemory, Window

cdef enum:
    # How the region of each format begins.
    FEATURES = 0
    VERSION = 8
    DESC_NUM = 10
    # Of the queues' regions: as other back-ends do, so that one can go on with another's.
    ALIGNMENT = 64
    CURRENT_VERSION = 1


@cython.no_gc
cdef class InflightQueue:
    cdef readonly uint32_t size
    cdef GuestMemory memory
    cdef Window window
    cdef unsigned char *region

    cdef int take(self, Chain chain) except -1
    cdef void announce(self, Chain chain) noexcept
    cdef void release(self, Chain chain) noexcept
    cdef int end_batch(self, uint32_t count) except -1
    cdef void undo(self, Chain chain) noexcept

    @cython.final
    cdef bint is_new(self, uint32_t ring_size) except -1
    @cython.final
    cdef int begin(self) except -1
    @cython.final
    cdef int expect_version(self) except -1
