# cython: language_level=3
"""A split virtqueue's format, and its device half."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain, InFlight
from vhostd.ring.inflight cimport InflightQueue
from vhostd.ring.memory cimport GuestMemory, Window

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
    # Feature bits (virtio 1.3, 6).
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    # Flags of a descriptor, of the avail ring and of the used ring (virtio 1.3, 2.7.5, 2.7.6, 2.7.8).
    DESC_F_NEXT = 1
    DESC_F_WRITE = 2
    DESC_F_INDIRECT = 4
    AVAIL_F_NO_INTERRUPT = 1
    USED_F_NO_NOTIFY = 1
    # Sizes of struct virtq_desc and virtq_used_elem; both rings are flags, idx, the elements, an event index.
    DESC_SIZE = 16
    USED_SIZE = 8
    FLAGS = 0
    INDEX = 2
    ELEMENTS = 4
    MOST_DESCRIPTORS = 32768
    MOST_INDIRECT = 1024  # in a table, if the ring is smaller: drivers do not all stop at its size
    MOST_PUSHES = 32  # before the driver's wish for an interrupt is looked at


@cython.final
@cython.no_gc
cdef class SplitRing:
    cdef readonly uint32_t size
    cdef readonly uint16_t base
    cdef readonly uint32_t unfinished
    cdef bint indirect
    cdef bint event_idx
    cdef InFlight out  # the chains that were popped and not given back
    cdef GuestMemory memory
    cdef Window desc
    cdef Window avail
    cdef Window used
    cdef uint16_t published  # the driver's avail index when we last looked
    cdef uint16_t used_index
    cdef uint32_t uncalled  # chains pushed since the driver's wish for an interrupt was last looked at
    cdef uint32_t patience  # so many chains are pushed before it is
    cdef unsigned char *taken  # per head: 1 while its chain is in flight
    cdef InflightQueue inflight
    cdef list again  # the heads of the unfinished chains, oldest last

    cpdef Chain pop(self)
    cdef bint _push(self, Chain chain) except -1
    cdef int _attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1
    cdef int _resume(self, InflightQueue inflight) except -1
    cdef Chain _pop_unfinished(self)
    cdef inline Chain _follow(self, uint16_t head)
    cdef inline void _take(self, Chain chain) noexcept
    cdef bint _look(self) except -1
    cdef int _walk(
        self, Chain chain, unsigned char *table, uint32_t entries, uint32_t at, bint nested
    ) except -1
    cdef int _walk_indirect(self, Chain chain, descriptor *where) except -1
