# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""SplitRing: the device half of a split virtqueue (virtio 1.3, 2.7).

Ordering. Three pairs of accesses carry all of it; virtio 1.3, 2.7.13 and 2.7.14, is the driver's half.

1.  The driver writes descriptors and the avail element, then the avail index. We load the index with acquire
    before we load either, so what an index announces is complete when we read it.
2.  We write buffers and the used elements, then the used index with release; a driver that sees the index sees
    the rest. System calls that wrote buffers have returned by then, and a thread that made them has handed
    over its result through a lock.
3.  Suppression: each side stores, and then loads what the other stores. The driver publishes an avail index
    and looks whether we want a kick; `arm` asks for one and looks at the avail index once more. We publish a
    used index, and `must_call` looks whether the driver wants an interrupt; the driver asks for one and looks
    at the used index once more. A store may be delayed past a later load, even on x86: both sides would then
    read old values, and sleep. With a full fence between the two, on both sides, at least one sees the
    other's store.

What is in flight is kept in the inflight area as well, if there is one; inflight_split.pyx argues the order of that.
"""

from libc.stdint cimport UINT16_MAX, uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight_split cimport SplitInflight
from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.ring cimport DESC_SIZE, MOST_DESCRIPTORS, Ring

from vhostd.errors import BadDescriptor, BadRing, RefusedRequest


cdef class SplitRing(Ring):
    """The device half of a split virtqueue: `base` is the avail index of the next chain to pop."""

    AREAS = (("descriptor table", 16), ("avail ring", 2), ("used ring", 4))
    HEAD = "head"
    INFLIGHT = SplitInflight

    def __cinit__(
        self, size, desc, avail, used, memory, *, features, base, SplitInflight inflight=None
    ):
        self.check_base(base)
        self.base = self.published = base
        self.used_index = load_u16(self.used.data + INDEX)
        if inflight is not None:
            self.resume(inflight)

    @staticmethod
    def check_size(size):
        """Raises RefusedRequest unless it is a power of two up to 32768."""
        if not 0 < size <= MOST_DESCRIPTORS or size & (size - 1):
            raise RefusedRequest(f"queue size {size}: not a power of two up to {MOST_DESCRIPTORS}")

    @staticmethod
    def check_base(base):
        """Raises RefusedRequest unless it is an index of the avail ring."""
        if not 0 <= base <= UINT16_MAX:
            raise RefusedRequest(f"avail index {base}: above {UINT16_MAX}")

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the descriptor table, the avail ring and the used ring (virtio 1.3, 2.7)."""
        return DESC_SIZE * size, ELEMENTS + 2 * size + 2, ELEMENTS + USED_SIZE * size + 2

    @staticmethod
    def spell(uint32_t base):
        """The avail index of the next chain."""
        return f"{base}"

    cdef int attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1:
        Ring.attach(self, memory, desc, avail, used)
        self.published = self.base
        return 0

    cdef int resume(self, SplitInflight inflight) except -1:
        """Finds out what was not finished before this ring started, from then on keeps record of it."""
        cdef list heads = inflight.resume(self.size, self.used_index)
        self.inflight = inflight
        if heads is not None:
            self.again = heads[::-1]
            self.unfinished = len(heads)
            # Whatever was popped has been pushed or is unfinished: the front-end need not know of the latter.
            self.base = self.published = <uint16_t> (self.used_index + self.unfinished)
        return 0

    # --- Available --------------------------------------------------------------------------------------

    cdef bint has_next(self) except -1:
        return self.base != self.published or self.look()

    cdef Chain take_next(self):
        cdef Chain chain
        if self.base == self.published and not self.look():
            return None
        chain = self.find(load_u16(self.avail.data + ELEMENTS + 2 * (self.base & (self.size - 1))))
        self.base = <uint16_t> (self.base + 1)
        return chain

    cdef Chain find_again(self, uint32_t entry):
        return self.find(entry)

    cdef void go_back(self, Chain chain) noexcept:
        # The driver's element is still there: it has no room for another until the chain is used.
        self.base = <uint16_t> (self.base - 1)

    cdef bint look(self) except -1:
        """Loads the driver's avail index; True if it announces chains."""
        cdef uint16_t index = load_acquire_u16(self.avail.data + INDEX)
        if <uint16_t> (index - self.base) > self.size:
            raise self.memory.error(
                BadRing, f"avail index went from {self.base} to {index}, past the queue size {self.size}"
            )
        self.memory.expect_whole()
        self.published = index
        return index != self.base

    cdef inline Chain find(self, uint32_t head):
        """The chain of the descriptors from `head` on."""
        self.expect_free(head, self.base)
        cdef Chain chain = self.new_chain()
        chain.head = head
        self.walk(chain, self.desc.data, self.size, head, False)
        self.memory.expect_whole()
        return chain

    cdef int walk_table(self, Chain chain, unsigned char *table, uint32_t entries) except -1:
        return self.walk(chain, table, entries, 0, True)

    cdef int walk(
        self, Chain chain, unsigned char *table, uint32_t entries, uint32_t at, bint nested
    ) except -1:
        """Adds the buffers of the descriptors from `at` on; the last may refer to an indirect table."""
        cdef uint32_t walked
        cdef descriptor found
        for walked in range(entries):
            if at >= entries:
                raise self.memory.error(
                    BadDescriptor, f"chain {chain.head}: next is {at}, of {entries} descriptors"
                )
            found = load_descriptor(table + DESC_SIZE * <size_t> at)
            if found.flags & DESC_F_INDIRECT:
                if nested:
                    raise self.memory.error(
                        BadDescriptor, f"chain {chain.head}: an indirect table in another"
                    )
                return self.walk_indirect(chain, found.addr, found.len, found.flags & DESC_F_NEXT)
            chain.add(found.addr, found.len, found.flags & DESC_F_WRITE)
            if not found.flags & DESC_F_NEXT:
                return 0
            at = found.next
        raise self.memory.error(
            BadDescriptor, f"chain {chain.head}: a loop, or more than {entries} descriptors"
        )

    # --- Used -------------------------------------------------------------------------------------------

    cdef int write_used(self, Chain chain, uint32_t behind) except -1:
        cdef uint32_t slot = (self.used_index + behind) & (self.size - 1)
        cdef unsigned char *element = self.used.data + ELEMENTS + USED_SIZE * slot
        store_u32(element, chain.head)
        store_u32(element + 4, <uint32_t> chain.written)
        self.wrote(element, USED_SIZE)
        return 0

    cdef int publish_used(self, uint32_t count) except -1:
        self.used_index += <uint16_t> count
        store_release_u16(self.used.data + INDEX, self.used_index)
        self.wrote(self.used.data + INDEX, 2)
        return 0

    # --- Event suppression (virtio 1.3, 2.7.7 and 2.7.10) ------------------------------------------------

    cdef int ask_for_kick(self) except -1:
        if self.event_idx:
            self.store(ELEMENTS + USED_SIZE * self.size, <uint16_t> self.base)
        else:
            self.store(FLAGS, 0)
        return 0

    cdef int ask_for_no_kicks(self) except -1:
        # With EVENT_IDX the flags must stay 0, and the event index, once passed, asks for nothing more.
        if not self.event_idx:
            self.store(FLAGS, USED_F_NO_NOTIFY)
        return 0

    cdef inline void store(self, size_t at, uint16_t value) noexcept:
        """Stores a field of the used ring."""
        store_u16(self.used.data + at, value)
        self.wrote(self.used.data + at, 2)

    cdef bint wants_call(self, uint32_t pushed) except -1:
        if not self.event_idx:
            return not load_u16(self.avail.data + FLAGS) & AVAIL_F_NO_INTERRUPT
        if pushed > UINT16_MAX:
            return True
        cdef uint16_t event = load_u16(self.avail.data + ELEMENTS + 2 * self.size)
        return passed(event, self.used_index, <uint16_t> (self.used_index - pushed))
