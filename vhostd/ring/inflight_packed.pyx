# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""PackedInflight: the inflight record of a packed virtqueue.

    features u64, version u16, desc_num u16, free_head u16, old_free_head u16, used_idx u16, old_used_idx u16,
    used_wrap_counter u8, old_used_wrap_counter u8, padding,
    and for each entry, 32 bytes: inflight u8, next u16 at 2, last u16 at 4, num u16 at 6, counter u64 at 8,
    id u16, flags u16, len u32, addr u64

An entry holds a copy of a descriptor, since the driver writes over the one in the ring once any chain was used. A
chain has as many entries as descriptors. They are linked by `next`, as are those of the free list, from which they are
taken. free_head and the used position are what the back-end is about to do; the *old* ones are what is done.

What belongs together is stored at once: free_head with its old value, and the used position with its own.

1.  `take`: the copies go into entries that are still free; then num, last, counter and inflight = 1; then both free
    heads move behind them. Until then the chain is not taken, and `resume` takes inflight from all that is free.
2.  `announce`, of each chain of a batch: its entries go in front of the free list, of which free_head alone tells, and
    the used position moves on. Then the ring publishes the batch by its first used descriptor. Until it does, `resume`
    finds an available descriptor at the old used position, and goes by the old free head: all are done again. From then
    on it finds another, and goes by the new one.
3.  `release`, of each chain of the batch: inflight = 0; and at last `end_batch`: the old free head becomes the new one,
    and then the used position. In between, the two used positions differ still.
4.  A chain that is put back goes in front of the free list, of which both heads tell; then inflight = 0.

There is no avail index: those in flight are all that were popped and not used, so it is the used position and their
descriptors.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from vhostd.ring.chain cimport Chain
from vhostd.ring.fields cimport (
    load_u8, load_u16, load_u64, store_release_u8, store_release_u16, store_u16, store_u64,
)
from vhostd.ring.inflight cimport ALIGNMENT, InflightQueue
from vhostd.ring.positions cimport (
    PACKED_FLAGS, WRAP, index_of, is_available, moved, packed_descriptor,
)
from vhostd.ring.ring cimport DESC_SIZE

from vhostd.errors import RefusedRequest


cdef inline uint16_t position(uint64_t index, uint64_t wrap_counter) noexcept:
    return <uint16_t> (index | (WRAP if wrap_counter else 0))


cdef class PackedInflight(InflightQueue):
    """The region of a packed virtqueue: entries with copies of the descriptors that are in flight."""

    def __cinit__(self, area, index, size):
        self.links = <uint16_t *> calloc(self.size, sizeof(uint16_t))
        self.lasts = <uint16_t *> calloc(self.size, sizeof(uint16_t))
        if self.links is NULL or self.lasts is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.links)
        free(self.lasts)

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the region of a queue with `size` descriptors."""
        cdef uint64_t length = STATES + STATE_SIZE * size
        return (length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    # --- For the ring -----------------------------------------------------------------------------------

    cdef list resume(self, uint32_t ring_size, uint16_t used_at, const unsigned char *ring):
        """The first entries of the chains in flight, oldest first; None if the area was new, and begins now.

        Then `used_at` and `descriptors` say where the ring goes on; a new area takes the `used_at` given.

        Raises:
            RefusedRequest: the area cannot be what a program left that served this ring.
            MemoryLost: a page of the area vanished.
        """
        cdef uint32_t entry
        self.ring_size = ring_size
        self.descriptors = 0
        if self.is_new(ring_size):
            self._start(used_at)
            return None
        cdef bytearray known = self._free_entries(ring)
        cdef list chains = [
            entry for entry in range(self.size) if not known[entry] and load_u8(self._state(entry) + INFLIGHT)
        ]
        cdef bytearray taken = bytearray(self.size)
        for entry in chains:
            self._follow(entry, taken)
        self._link_free(taken)
        cdef list oldest_first = sorted([(load_u64(self._state(entry) + COUNTER), entry) for entry in chains])
        self.counter = <uint64_t> oldest_first[-1][0] + 1 if oldest_first else 0
        self.memory.expect_whole()
        return [entry for _, entry in oldest_first]

    cdef void begin_chain(self, Chain chain) noexcept:
        """What is copied from now on is this chain, until it is taken or another begins."""
        chain.entry = self.free_behind = self.free_head
        self.copies = 0

    cdef void copy(self, packed_descriptor found) noexcept:
        """Has a copy of the chain's next descriptor. There are at least as many entries as the ring has room."""
        cdef unsigned char *state = self._state(self.free_behind)
        store_u16(state + ID, found.id)
        store_u16(state + FLAGS, found.flags)
        store_u32(state + LEN, found.len)
        store_u64(state + ADDR, found.addr)
        self.copied = self.free_behind
        self.free_behind = self.links[self.copied]
        self.copies += 1

    cdef packed_descriptor descriptor(self, uint32_t entry) noexcept:
        """The copy in an entry, as it is now."""
        cdef unsigned char *state = self._state(entry)
        return packed_descriptor(
            load_u64(state + ADDR), load_u32(state + LEN), load_u16(state + ID), load_u16(state + FLAGS)
        )

    cdef int take(self, Chain chain) except -1:
        cdef unsigned char *state = self._state(chain.entry)
        store_u16(state + NUM, self.copies)
        store_u16(state + LAST, self.copied)
        store_u64(state + COUNTER, self.counter)
        store_release_u8(state + INFLIGHT, 1)
        self.counter += 1
        self.lasts[chain.entry] = self.copied
        self.free_head = self.recorded_free_head = self.free_behind
        self._note_free()
        return self.memory.expect_whole()

    cdef void announce(self, Chain chain) noexcept:
        self._free(chain)
        self._note_free()
        self.used_at = moved(self.used_at, chain.descriptors, self.ring_size)
        self._note_used()

    cdef void release(self, Chain chain) noexcept:
        store_release_u8(self._state(chain.entry) + INFLIGHT, 0)

    cdef int end_batch(self, uint32_t count) except -1:
        self.recorded_free_head, self.recorded_used_at = self.free_head, self.used_at
        self._note_free()
        self._note_used()
        return self.memory.expect_whole()

    cdef void undo(self, Chain chain) noexcept:
        self._free(chain)
        self.recorded_free_head = self.free_head
        self._note_free()
        self.release(chain)

    cdef unsigned char *_state(self, uint32_t entry) noexcept:
        return self.region + STATES + STATE_SIZE * entry

    cdef void _free(self, Chain chain) noexcept:
        """Puts the entries of a chain in front of the free list."""
        cdef uint16_t last = self.lasts[chain.entry]
        self.links[last] = self.free_head
        store_u16(self._state(last) + NEXT, self.free_head)
        self.free_head = <uint16_t> chain.entry

    cdef void _note_free(self) noexcept:
        store_release_u32(self.region + FREE_HEADS, self.free_head | <uint32_t> self.recorded_free_head << 16)

    cdef void _note_used(self) noexcept:
        cdef uint64_t indices = index_of(self.used_at) | <uint64_t> index_of(self.recorded_used_at) << 16
        cdef uint64_t counters = self.used_at >> 15 | <uint64_t> (self.recorded_used_at >> 15) << 8
        store_release_u64(self.region + USED, indices | counters << 32)

    # --- What another left ------------------------------------------------------------------------------

    cdef int _start(self, uint16_t used_at) except -1:
        """Makes the region one with nothing in flight."""
        cdef uint32_t entry
        for entry in range(self.size):
            store_release_u8(self._state(entry) + INFLIGHT, 0)
        self.used_at = self.recorded_used_at = used_at
        self._link_free(bytearray(self.size))
        return self.begin()

    cdef bytearray _free_entries(self, const unsigned char *ring):
        """Finds out how far the last batch came; marks the entries that are free then, which are not in flight."""
        cdef uint32_t heads = load_u32(self.region + FREE_HEADS)
        cdef uint64_t used = load_u64(self.region + USED)
        self.memory.expect_whole()
        self._check_position(used & 0xFFFF)
        self._check_position(used >> 16 & 0xFFFF)
        self.used_at = position(used & 0xFFFF, used >> 32 & 0xFF)
        self.recorded_used_at = position(used >> 16 & 0xFFFF, used >> 40 & 0xFF)
        cdef uint16_t flags = load_u16(ring + DESC_SIZE * index_of(self.recorded_used_at) + PACKED_FLAGS)
        if self.used_at == self.recorded_used_at or is_available(flags, self.recorded_used_at):
            self.used_at = self.recorded_used_at
            heads >>= 16
        cdef uint16_t entry = <uint16_t> heads
        cdef bytearray free_ones = bytearray(self.size)
        while entry < self.size and not free_ones[entry]:
            free_ones[entry] = True
            store_release_u8(self._state(entry) + INFLIGHT, 0)
            entry = load_u16(self._state(entry) + NEXT)
        return free_ones

    cdef int _check_position(self, uint32_t index) except -1:
        if index >= self.ring_size:
            raise RefusedRequest(f"an inflight area at used index {index} of a ring of {self.ring_size}")
        return 0

    cdef int _follow(self, uint32_t entry, bytearray taken) except -1:
        """Finds the entries of a chain, and marks them."""
        cdef uint32_t first = entry
        cdef uint32_t count = load_u16(self._state(entry) + NUM)
        self.descriptors += count
        if not count or self.descriptors > self.ring_size:
            raise RefusedRequest(f"an inflight area with {count} descriptors at entry {entry}")
        for _ in range(count):
            if entry >= self.size or taken[entry]:
                raise RefusedRequest(f"an inflight area in which a chain has entry {entry}, of {self.size}")
            taken[entry] = True
            self.lasts[first] = <uint16_t> entry
            self.links[entry] = load_u16(self._state(entry) + NEXT)
            entry = self.links[entry]
        return 0

    cdef void _link_free(self, bytearray taken) noexcept:
        """Makes a free list of all entries that are not taken, and records that and the used position as done."""
        cdef uint32_t behind, entry
        self.free_head = <uint16_t> self.size
        for behind in range(self.size):
            entry = self.size - 1 - behind
            if not taken[entry]:
                self.links[entry] = self.free_head
                store_release_u16(self._state(entry) + NEXT, self.free_head)
                self.free_head = <uint16_t> entry
        self.recorded_free_head, self.recorded_used_at = self.free_head, self.used_at
        self._note_free()
        self._note_used()
