# cython: language_level=3
"""The inflight record of a split virtqueue."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight cimport InflightQueue


cdef enum:
    # struct QueueRegionSplit, and struct DescStateSplit of each descriptor behind it.
    LAST_BATCH_HEAD = 12
    USED_IDX = 14
    STATES = 16
    INFLIGHT = 0
    NEXT = 6
    COUNTER = 8
    STATE_SIZE = 16


@cython.final
@cython.no_gc
cdef class SplitInflight(InflightQueue):
    cdef uint64_t counter  # of the next head that is taken
    cdef uint16_t last_batch_head
    cdef uint16_t used_index  # what the record says

    cdef list resume(self, uint32_t ring_size, uint16_t used_index)
    cdef unsigned char *_state(self, uint32_t head) noexcept
    cdef int _begin(self, uint16_t used_index) except -1
    cdef int _finish_batch(self, uint32_t ring_size, uint16_t used_index, set heads) except -1
