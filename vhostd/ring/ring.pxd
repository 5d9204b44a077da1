# cython: language_level=3
"""The device half of a virtqueue, as its formats fill it in."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.arrivals cimport Absent
from vhostd.ring.chain cimport Chain, InFlight
from vhostd.ring.inflight cimport InflightQueue
from vhostd.ring.iotlb cimport Miss
from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.write_log cimport WriteLog


cdef enum:
    # Feature bits (virtio 1.3, 6).
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PACKED = 34
    IN_ORDER = 35
    DESC_SIZE = 16  # of a descriptor, in any format
    MOST_DESCRIPTORS = 32768
    MOST_INDIRECT = 1024  # in a table, if the ring is smaller: drivers do not all stop at its size
    MOST_PUSHES = 32  # before the driver's wish for an interrupt is looked at


@cython.no_gc
cdef class Ring:
    cdef readonly uint32_t size
    cdef readonly uint32_t base
    cdef readonly uint32_t unfinished
    cdef bint indirect
    cdef bint event_idx
    cdef GuestMemory memory
    cdef Window desc
    cdef Window avail
    cdef Window used
    cdef InFlight out  # the chains that were popped and not given back
    cdef unsigned char *taken  # per head: 1 while its chain is in flight
    cdef uint64_t popped  # chains, less those that were put back
    cdef dict held  # under IN_ORDER: what was given back and is not due yet, by its number
    cdef uint64_t due  # the number of the chain that the driver gets next
    cdef readonly uint32_t uncalled  # chains pushed since the driver's wish for an interrupt was last looked at
    cdef uint32_t patience  # so many chains are pushed before it is
    cdef InflightQueue inflight
    cdef list again  # the record's entry of each unfinished chain, the oldest last
    cdef Miss miss  # the last that the front-end was told of, while the ring is held by misses of a chain
    cdef bint awaits
    cdef Absent absent  # the last missing pages that were told of, while the ring is held by such
    cdef bint lost  # the ring itself is not translated any more
    cdef Miss refused  # what the front-end has not translated: the next look breaks the ring if it needs that
    cdef bint has_refused
    cdef object wanted  # who is told, once, when chains are waited for though the ring is held
    cdef object when_popped  # who is told of each chain, or None
    cdef object when_pushed
    cdef object when_put_back

    # What a format fills in: see the class.
    cdef bint has_next(self) except -1
    cdef Chain take_next(self)
    cdef Chain find_again(self, uint32_t entry)
    cdef void go_back(self, Chain chain) noexcept
    cdef int write_used(self, Chain chain, uint32_t behind) except -1
    cdef int publish_used(self, uint32_t count) except -1
    cdef int ask_for_kick(self) except -1
    cdef int ask_for_no_kicks(self) except -1
    cdef bint wants_call(self, uint32_t pushed) except -1
    cdef int walk_table(self, Chain chain, unsigned char *table, uint32_t entries) except -1

    # What it builds on.
    cdef int attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1
    @cython.final
    cdef inline Chain new_chain(self):
        """A chain of no buffers yet."""
        cdef Chain chain = Chain.__new__(Chain)
        chain.memory = self.memory
        return chain
    @cython.final
    cdef inline int expect_free(self, uint32_t head, uint32_t at) except -1:
        """Raises BadRing unless this may be the head, or the buffer id, of the chain that is at this index."""
        if head >= self.size or self.taken[head]:
            self.refuse_head(head, at)
        return 0
    @cython.final
    cdef inline void wrote(self, const void *at, size_t n) noexcept:
        """So many bytes of the ring itself were written: the log is told of it."""
        if self.out.log is not None:
            self.log_own(<unsigned char *> at, n)
    @cython.final
    cdef int refuse_head(self, uint32_t head, uint32_t at) except -1
    @cython.final
    cdef int walk_indirect(self, Chain chain, uint64_t addr, uint32_t length, bint goes_on) except -1

    @cython.final
    cdef void log_own(self, unsigned char *at, size_t n) noexcept
    @cython.final
    cdef Chain take(self)
    @cython.final
    cdef Chain find_next(self)
    @cython.final
    cdef Chain find_reachable(self)
    @cython.final
    cdef int hold_for_misses(self) except -1
    @cython.final
    cdef int expect_not_refused(self) except -1
    @cython.final
    cdef void update_held(self) noexcept
    @cython.final
    cdef int tell_wanted(self) except -1
    @cython.final
    cdef int record(self, Chain chain) except -1
    @cython.final
    cdef bint give_back(self, Chain chain) except -1
    @cython.final
    cdef bint give_back_all(self, list batch) except -1
    @cython.final
    cdef list in_order(self, list batch)
    @cython.final
    cdef bint publish_all(self, list batch) except -1
    @cython.final
    cdef bint pace(self, uint32_t count) except -1
    @cython.final
    cdef bint asks_for_call(self) except -1
    @cython.final
    cdef int expect_ours(self, Chain chain) except -1
