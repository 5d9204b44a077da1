# cython: language_level=3
"""The inflight record of a packed virtqueue."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight cimport InflightQueue
from vhostd.ring.positions cimport packed_descriptor

cdef extern from "barriers.h" nogil:
    uint32_t load_u32(const void *at)
    void store_u32(void *at, uint32_t value)
    void store_release_u32(void *at, uint32_t value)
    void store_release_u64(void *at, uint64_t value)


cdef enum:
    # struct QueueRegionPacked, and struct DescStatePacked of each descriptor behind it.
    FREE_HEADS = 12  # free_head u16, old_free_head u16
    USED = 16  # used_idx u16, old_used_idx u16, used_wrap_counter u8, old_used_wrap_counter u8, padding
    STATES = 32
    INFLIGHT = 0
    NEXT = 2
    LAST = 4
    NUM = 6
    COUNTER = 8
    ID = 16
    FLAGS = 18
    LEN = 20
    ADDR = 24
    STATE_SIZE = 32


@cython.final
@cython.no_gc
cdef class PackedInflight(InflightQueue):
    cdef uint16_t used_at  # the position of the next used descriptor
    cdef uint32_t descriptors  # of the ring, that the chains in flight took when it started
    cdef uint32_t ring_size
    cdef uint64_t counter  # of the next chain that is taken
    cdef uint16_t *links  # per entry: the next one of its chain, or of the free list
    cdef uint16_t *lasts  # per chain, by its first entry: its last one
    cdef uint16_t free_head
    cdef uint16_t recorded_free_head  # what the record says: old_free_head
    cdef uint16_t recorded_used_at
    cdef uint16_t copied  # the last entry of a chain that is not taken yet
    cdef uint16_t free_behind  # what is the free list's head when it is taken
    cdef uint16_t copies  # so many entries it has

    cdef list resume(self, uint32_t ring_size, uint16_t used_at, const unsigned char *ring)
    cdef void begin_chain(self, Chain chain) noexcept
    cdef void copy(self, packed_descriptor found) noexcept
    cdef packed_descriptor descriptor(self, uint32_t entry) noexcept
    cdef unsigned char *_state(self, uint32_t entry) noexcept
    cdef void _free(self, Chain chain) noexcept
    cdef void _note_free(self) noexcept
    cdef void _note_used(self) noexcept
    cdef int _start(self, uint16_t used_at) except -1
    cdef bytearray _free_entries(self, const unsigned char *ring)
    cdef int _check_position(self, uint32_t index) except -1
    cdef int _follow(self, uint32_t entry, bytearray taken) except -1
    cdef void _link_free(self, bytearray taken) noexcept
