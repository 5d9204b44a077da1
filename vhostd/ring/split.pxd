# cython: language_level=3
"""A split virtqueue's format, and its device half."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight_split cimport SplitInflight
from vhostd.ring.ring cimport Ring

cdef extern from "barriers.h" nogil:
    struct descriptor:
        uint64_t addr
        uint32_t len
        uint16_t flags
        uint16_t next
    descriptor load_descriptor(const void *at)
    uint16_t load_u16(const void *at)
    uint16_t load_acquire_u16(const void *at)
    uint32_t load_u32(const void *at)
    void store_u16(void *at, uint16_t value)
    void store_u32(void *at, uint32_t value)
    void store_release_u16(void *at, uint16_t value)
    void full_fence()
    bint passed(uint16_t event, uint16_t now, uint16_t old)


cdef enum:
    # Flags of a descriptor, of the avail ring and of the used ring (virtio 1.3, 2.7.5, 2.7.6, 2.7.8).
    DESC_F_NEXT = 1
    DESC_F_WRITE = 2
    DESC_F_INDIRECT = 4
    AVAIL_F_NO_INTERRUPT = 1
    USED_F_NO_NOTIFY = 1
    # Size of struct virtq_used_elem; both rings are flags, idx, the elements, an event index.
    USED_SIZE = 8
    FLAGS = 0
    INDEX = 2
    ELEMENTS = 4


@cython.final
@cython.no_gc
cdef class SplitRing(Ring):
    cdef uint16_t published  # the driver's avail index when we last looked
    cdef uint16_t used_index

    cdef int resume(self, SplitInflight inflight) except -1
    cdef bint look(self) except -1
    cdef void store(self, size_t at, uint16_t value) noexcept
    cdef Chain find(self, uint32_t head)
    cdef int walk(
        self, Chain chain, unsigned char *table, uint32_t entries, uint32_t at, bint nested
    ) except -1
