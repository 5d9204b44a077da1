# cython: language_level=3
"""One queue's record of what is in flight, as the ring keeps it."""

cimport cython
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from vhostd.ring.memory cimport GuestMemory, Window

cdef extern from "barriers.h" nogil:
    uint8_t load_u8(const void *at)
    uint16_t load_u16(const void *at)
    uint64_t load_u64(const void *at)
    void store_u16(void *at, uint16_t value)
    void store_u64(void *at, uint64_t value)
    void store_release_u8(void *at, uint8_t value)
    void store_release_u16(void *at, uint16_t value)


cdef enum:
    # struct QueueRegionSplit, and struct DescStateSplit of each descriptor behind it.
    FEATURES = 0
    VERSION = 8
    DESC_NUM = 10
    LAST_BATCH_HEAD = 12
    USED_IDX = 14
    STATES = 16
    INFLIGHT = 0
    NEXT = 6
    COUNTER = 8
    STATE_SIZE = 16
    # Of the queues' regions: as other back-ends do, so that one can go on with another's.
    ALIGNMENT = 64
    CURRENT_VERSION = 1


@cython.final
@cython.no_gc
cdef class InflightQueue:
    cdef readonly uint32_t size
    cdef GuestMemory memory
    cdef Window window
    cdef unsigned char *region
    cdef uint64_t counter  # of the next head that is taken
    cdef uint16_t last_batch_head
    cdef uint16_t used_index  # what the record says

    cdef list resume(self, uint32_t ring_size, uint16_t used_index)
    cdef int take(self, uint16_t head) except -1
    cdef void announce(self, uint16_t head) noexcept
    cdef void release(self, uint16_t head) noexcept
    cdef int end_batch(self, uint32_t count) except -1
    cdef unsigned char *_state(self, uint32_t head) noexcept
    cdef int _begin(self, uint16_t used_index) except -1
    cdef int _check(self, uint32_t ring_size) except -1
    cdef int _finish_batch(self, uint32_t ring_size, uint16_t used_index, set heads) except -1
