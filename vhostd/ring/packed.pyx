# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""PackedRing: the device half of a packed virtqueue (virtio 1.3, 2.8).

There is one ring of descriptors, in which the driver writes chains, and the device overwrites them with used
descriptors. Both go round it. Each has a wrap counter, which changes with each round; two flags of a descriptor say
in which round it was made available, and in which it was used.

`base` has two positions in the ring: where the next chain is, and in the upper half where the next used descriptor is
put. positions.pxd says what a position is.

Ordering. It is that of split.pyx, with other fields:

1.  The driver writes the flags of a chain's first descriptor last. We load them with acquire before all the rest.
2.  We write a used descriptor's id and length, and last its flags, with release. In a batch the flags of the first one
    come last of all. The driver looks at them in order, so it sees none of the batch before.
3.  Suppression: as there, with a full fence between. A position and its flags are loaded, and stored, as one u32.

What is in flight is kept in the inflight area as well, if there is one; inflight_packed.pyx argues the order of that.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight_packed cimport PackedInflight
from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.positions cimport (
    EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, ID, LEN, PACKED_F_INDIRECT, PACKED_F_NEXT, PACKED_F_USED,
    PACKED_F_WRITE, PACKED_FLAGS, START, SUPPRESSION_SIZE, WRAP, index_of, is_available, is_wanted,
    load_acquire_u16, load_packed, load_u16, load_u32, marks, moved, packed_descriptor, store_release_u16,
    store_u16, store_u32,
)
from vhostd.ring.ring cimport DESC_SIZE, MOST_DESCRIPTORS, Ring

from vhostd.errors import BadDescriptor, BadRing, RefusedRequest


cdef class PackedRing(Ring):
    """The device half of a packed virtqueue: `base` has the positions of the next chain and of the next used one."""

    AREAS = (("descriptor ring", 16), ("driver event suppression", 4), ("device event suppression", 4))
    HEAD = "buffer id"
    START = 0x8000_8000
    STARTS = (0x8000_8000, 0x8000, 0)
    INFLIGHT = PackedInflight

    def __cinit__(
        self, size, desc, avail, used, memory, *, features, base, PackedInflight inflight=None
    ):
        self._begin(base)
        if inflight is not None:
            self._resume(inflight)
        self.written_at = self.used_at
        self._note_base()

    @staticmethod
    def check_size(size):
        """Raises RefusedRequest unless it is a number from 1 to 32768."""
        if not 0 < size <= MOST_DESCRIPTORS:
            raise RefusedRequest(f"queue size {size}: not from 1 to {MOST_DESCRIPTORS}")

    @staticmethod
    def check_base(base):
        """Accepts all: which positions there are, the ring's size says when it starts."""

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the descriptor ring and the two event suppression areas (virtio 1.3, 2.8)."""
        return DESC_SIZE * size, SUPPRESSION_SIZE, SUPPRESSION_SIZE

    @staticmethod
    def spell(uint32_t base):
        """Where the next chain is and, if that is elsewhere, the next used one: index and wrap counter."""
        cdef uint16_t avail = <uint16_t> base
        cdef uint16_t used = <uint16_t> (base >> 16)
        cdef str next = f"{index_of(avail)}:{avail >> 15}"
        return next if avail == used else f"{next}, used {index_of(used)}:{used >> 15}"

    cdef int attach(self, GuestMemory memory, Window desc, Window avail, Window used) except -1:
        Ring.attach(self, memory, desc, avail, used)
        self.found = False
        return 0

    cdef int _begin(self, uint32_t base) except -1:
        """Goes to the positions that a front-end gives."""
        cdef uint16_t avail = <uint16_t> base
        # DPDK's front-end gives the lower half alone. No chain is in flight then.
        cdef uint16_t used = <uint16_t> (base >> 16) or avail
        cdef int ahead = index_of(avail) - index_of(used) + (self.size if (avail ^ used) & WRAP else 0)
        if max(index_of(avail), index_of(used)) >= self.size or not 0 <= ahead <= <int> self.size:
            raise RefusedRequest(f"positions {base:#x} of a ring of {self.size} descriptors")
        if base == 0 and self._is_fresh():
            avail = used = START
        self.avail_at, self.used_at = avail, used
        self.room = self.size - ahead
        return 0

    cdef bint _is_fresh(self) noexcept:
        """Whether no descriptor was ever used. User-mode Linux says 0 then, which is a position after a round."""
        cdef uint32_t i
        for i in range(self.size):
            if load_u16(self.desc.data + DESC_SIZE * i + PACKED_FLAGS) & PACKED_F_USED:
                return False
        return True

    cdef int _resume(self, PackedInflight inflight) except -1:
        """Finds out what was not finished before this ring started, from then on keeps record of it."""
        cdef list entries = inflight.resume(self.size, self.used_at, self.desc.data)
        self.inflight = self.notes = inflight
        if entries is not None:
            self.again = entries[::-1]
            self.unfinished = len(entries)
            # Whatever was popped has been pushed or is unfinished: the front-end need not know of the latter.
            self.used_at = inflight.used_at
            self.avail_at = moved(self.used_at, inflight.descriptors, self.size)
            self.room = self.size - inflight.descriptors
        return 0

    cdef void _note_base(self) noexcept:
        self.base = self.avail_at | <uint32_t> self.used_at << 16

    # --- Available --------------------------------------------------------------------------------------

    cdef bint has_next(self) except -1:
        self._look()
        self.memory.expect_whole()
        return self.found

    cdef inline bint _look(self) noexcept:
        """Loads the flags of the next descriptor; True if the driver has made a chain available there."""
        if not self.found:
            self.found = is_available(
                load_acquire_u16(self.desc.data + DESC_SIZE * index_of(self.avail_at) + PACKED_FLAGS),
                self.avail_at,
            )
        return self.found

    cdef Chain take_next(self):
        if not self._look():
            self.memory.expect_whole()
            return None
        cdef Chain chain = self.new_chain()
        cdef uint32_t descriptors = self._walk(chain)
        self.memory.expect_whole()
        self.expect_free(chain.head, index_of(self.avail_at))
        chain.descriptors = <uint16_t> descriptors
        self.room -= descriptors
        self.avail_at = moved(self.avail_at, descriptors, self.size)
        self.found = False
        self._note_base()
        return chain

    cdef void go_back(self, Chain chain) noexcept:
        # The driver's descriptors are still there: it has no room for others until the chain is used.
        self.avail_at = moved(self.avail_at, self.size - chain.descriptors, self.size) ^ WRAP
        self.room += chain.descriptors
        self.found = False
        self._note_base()

    cdef uint32_t _walk(self, Chain chain) except 0:
        """Adds the buffers of the chain at avail_at; returns its number of descriptors.

        The id is in the last one (virtio 1.3, 2.8.6). The last may refer to an indirect table.
        """
        cdef uint16_t at = self.avail_at
        cdef packed_descriptor found
        cdef uint32_t count
        if self.notes is not None:
            self.notes.begin_chain(chain)
        for count in range(1, self.room + 1):
            found = load_packed(self.desc.data + DESC_SIZE * index_of(at))
            chain.head = found.id
            if self.notes is not None:
                self.notes.copy(found)
            if found.flags & PACKED_F_INDIRECT:
                self.walk_indirect(chain, found.addr, found.len, found.flags & PACKED_F_NEXT)
                return count
            chain.add(found.addr, found.len, found.flags & PACKED_F_WRITE)
            if not found.flags & PACKED_F_NEXT:
                return count
            at = moved(at, 1, self.size)
        raise self.memory.error(
            BadRing, f"the chain at {index_of(self.avail_at)} has more than the {self.room} descriptors that are left"
        )

    cdef Chain find_again(self, uint32_t entry):
        """A chain of which the inflight record has a copy: the driver may have written over its descriptors."""
        cdef Chain chain = self.new_chain()
        cdef uint32_t last = self.notes.lasts[entry]
        cdef packed_descriptor found
        chain.entry = entry
        while True:
            found = self.notes.descriptor(entry)
            chain.head = found.id
            chain.descriptors += 1
            if found.flags & PACKED_F_INDIRECT:
                self.walk_indirect(chain, found.addr, found.len, entry != last)
            else:
                chain.add(found.addr, found.len, found.flags & PACKED_F_WRITE)
            if entry == last:
                break
            entry = self.notes.links[entry]
        self.memory.expect_whole()
        self.expect_free(chain.head, index_of(self.used_at))
        return chain

    cdef int walk_table(self, Chain chain, unsigned char *table, uint32_t entries) except -1:
        """Of the flags in a table only WRITE counts (virtio 1.3, 2.8.7)."""
        cdef uint32_t i
        cdef packed_descriptor found
        for i in range(entries):
            found = load_packed(table + DESC_SIZE * <size_t> i)
            chain.add(found.addr, found.len, found.flags & PACKED_F_WRITE)
        return 0

    # --- Used -------------------------------------------------------------------------------------------

    cdef int write_used(self, Chain chain, uint32_t behind) except -1:
        cdef unsigned char *slot = self.desc.data + DESC_SIZE * index_of(self.written_at)
        cdef uint16_t flags = marks(self.written_at) | (PACKED_F_WRITE if chain.written else 0)
        store_u32(slot + LEN, <uint32_t> chain.written)
        store_u16(slot + ID, chain.head)
        if behind:
            store_u16(slot + PACKED_FLAGS, flags)
            self.wrote(slot, DESC_SIZE)
        else:
            self.curtain, self.curtain_flags = slot, flags
        self.written_at = moved(self.written_at, chain.descriptors, self.size)
        self.room += chain.descriptors
        self.unsignalled += chain.descriptors
        return 0

    cdef int publish_used(self, uint32_t count) except -1:
        store_release_u16(self.curtain + PACKED_FLAGS, self.curtain_flags)
        self.wrote(self.curtain, DESC_SIZE)
        self.used_at = self.written_at
        self._note_base()
        return 0

    # --- Event suppression (virtio 1.3, 2.8.10) ----------------------------------------------------------

    cdef int ask_for_kick(self) except -1:
        self._suppress(self.avail_at | EVENT_DESC << 16 if self.event_idx else EVENT_ENABLE << 16)
        return 0

    cdef int ask_for_no_kicks(self) except -1:
        # With EVENT_IDX the position, once passed, asks for nothing more.
        if not self.event_idx:
            self._suppress(EVENT_DISABLE << 16)
        return 0

    cdef inline void _suppress(self, uint32_t event) noexcept:
        store_u32(self.used.data, event)
        self.wrote(self.used.data, SUPPRESSION_SIZE)

    cdef bint wants_call(self, uint32_t pushed) except -1:
        cdef uint32_t count = self.unsignalled
        self.unsignalled = 0
        return is_wanted(load_u32(self.avail.data), self.event_idx, self.used_at, count, self.size)
