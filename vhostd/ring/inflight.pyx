# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""InflightQueue: which chains of a split virtqueue are in flight, in memory that outlives this program.

A chain is in flight from the ring's `pop` to its `push`, or `put_back`. The front-end keeps the inflight area, and
gives it to the next program if this one dies; that one does again what the area says was not finished (vhost-user,
"Inflight I/O tracking"). Each queue has a region in it:

    features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16,
    and for each descriptor: inflight u8, padding, next u16 at 6, counter u64 at 8

What we write we never read back. What another wrote is read once, when a ring starts, and checked then: the area
is the front-end's, and need not be what one of us left.

Ordering. What is to be survived is the end of this process between any two of its stores. There is no other reader
meanwhile, and what the processor has begun to store arrives; so the order of the program suffices, but the compiler
must keep it. Each store that means something is therefore a release: none before it is moved behind it.

1.  `take`: the counter, then inflight = 1; then the chain is worked on.
2.  `announce`, of each chain of a batch: next, then last_batch_head; then the ring publishes its used index, once for
    all of them. Until it does, they are in flight and will be done again, whatever last_batch_head says: the two
    indices are equal, and `resume` looks at no batch. From then on they are used.
3.  `release`, of each chain of the batch: inflight = 0; and at last `end_batch`: used_idx. Between the used index and
    this, the two indices differ by the length of the batch, and `resume` finds what was used: it begins at
    last_batch_head and follows next so many times. That stays in the batch: its chains were all in flight, so no head
    is there twice, and each next was written by this batch before the used index was published.
4.  A chain that is put back is released alone: it is not in flight, and not used. The record is then right at any
    moment, because the chains in flight are still all that were popped and not used: the one put back was the last.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t

from vhostd.ring.memory cimport GuestMemory

from vhostd.errors import RefusedRequest


cdef class InflightQueue:
    """The region of one queue in an inflight area: what is in flight there.

    `size` is how many descriptors it has room for. A ring that is given it keeps it up to date.
    """

    def __cinit__(self, GuestMemory area not None, uint32_t index, uint32_t size):
        """Finds region `index` in `area`, the area mapped from address 0 on; nothing is read or written yet.

        Raises:
            BadDescriptor: the area ends before the region does.
            RefusedRequest: the area is not aligned to 8 bytes.
        """
        cdef uint64_t length = self.footprint(size)
        self.size = size
        self.memory = area
        self.window = area.guest(index * length, length)
        self.region = self.window.data
        if <uintptr_t> self.region % sizeof(uint64_t):
            raise RefusedRequest("an inflight area that is not aligned to 8 bytes")

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the region of a queue with `size` descriptors."""
        cdef uint64_t length = STATES + STATE_SIZE * size
        return (length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    # --- For the ring -----------------------------------------------------------------------------------

    cdef list resume(self, uint32_t ring_size, uint16_t used_index):
        """The heads that are in flight, oldest first; None if the area was new, and begins now.

        Raises:
            RefusedRequest: the area cannot be what a program left that served this ring.
            MemoryLost: a page of the area vanished.
        """
        if ring_size > self.size:
            raise RefusedRequest(f"an inflight area for {self.size} descriptors, and a ring of {ring_size}")
        if load_u16(self.region + VERSION) == 0:
            self._begin(used_index)
            return None
        self._check(ring_size)
        cdef uint32_t head
        cdef set heads = {head for head in range(ring_size) if load_u8(self._state(head) + INFLIGHT)}
        if heads:  # else the indices do not matter: the ring may have begun anew
            self._finish_batch(ring_size, used_index, heads)
        store_release_u16(self.region + USED_IDX, used_index)
        self.used_index = used_index
        cdef list oldest_first = sorted([(load_u64(self._state(head) + COUNTER), head) for head in heads])
        self.counter = <uint64_t> oldest_first[-1][0] + 1 if oldest_first else 0
        self.memory.expect_whole()
        return [head for _, head in oldest_first]

    cdef int take(self, uint16_t head) except -1:
        """The chain is in flight; must come before anything is done with it. MemoryLost if that is not kept."""
        cdef unsigned char *state = self._state(head)
        store_u64(state + COUNTER, self.counter)
        store_release_u8(state + INFLIGHT, 1)
        self.counter += 1
        return self.memory.expect_whole()

    cdef void announce(self, uint16_t head) noexcept:
        """The chain will be in the used ring next; must come before the used index is published."""
        store_u16(self._state(head) + NEXT, self.last_batch_head)
        store_release_u16(self.region + LAST_BATCH_HEAD, head)
        self.last_batch_head = head

    cdef void release(self, uint16_t head) noexcept:
        """The chain is not in flight any more: the driver sees it in the used ring, or it was put back."""
        store_release_u8(self._state(head) + INFLIGHT, 0)

    cdef int end_batch(self, uint32_t count) except -1:
        """All so many chains that the driver has just seen were released. MemoryLost if that is not kept."""
        self.used_index += <uint16_t> count
        store_release_u16(self.region + USED_IDX, self.used_index)
        return self.memory.expect_whole()

    cdef unsigned char *_state(self, uint32_t head) noexcept:
        return self.region + STATES + STATE_SIZE * head

    # --- What another left ------------------------------------------------------------------------------

    cdef int _begin(self, uint16_t used_index) except -1:
        """Makes the region one with nothing in flight; it counts as new until the last store."""
        cdef uint32_t head
        self.used_index = used_index
        for head in range(self.size):
            store_release_u8(self._state(head) + INFLIGHT, 0)
        store_u64(self.region + FEATURES, 0)
        store_u16(self.region + DESC_NUM, <uint16_t> self.size)
        store_u16(self.region + LAST_BATCH_HEAD, 0)
        store_u16(self.region + USED_IDX, used_index)
        store_release_u16(self.region + VERSION, CURRENT_VERSION)
        return self.memory.expect_whole()

    cdef int _check(self, uint32_t ring_size) except -1:
        cdef uint64_t features = load_u64(self.region + FEATURES)
        cdef uint16_t version = load_u16(self.region + VERSION)
        cdef uint16_t desc_num = load_u16(self.region + DESC_NUM)
        self.memory.expect_whole()
        if version != CURRENT_VERSION or features:
            raise RefusedRequest(f"an inflight area of version {version} with features {features:#x}")
        if desc_num != self.size:
            raise RefusedRequest(f"an inflight area of {desc_num} descriptors, {self.size} expected")
        return 0

    cdef int _finish_batch(self, uint32_t ring_size, uint16_t used_index, set heads) except -1:
        """Takes from `heads`, and out of the area, what was used before its release was recorded."""
        cdef uint16_t recorded = load_u16(self.region + USED_IDX)
        cdef uint16_t count = used_index - recorded
        cdef uint16_t head = load_u16(self.region + LAST_BATCH_HEAD)
        self.memory.expect_whole()
        if count > ring_size:
            raise RefusedRequest(f"an inflight area at used index {recorded} of a ring at {used_index}")
        for _ in range(count):
            if head >= ring_size:
                raise RefusedRequest(f"an inflight area whose last batch has head {head}, of {ring_size}")
            heads.discard(head)
            store_release_u8(self._state(head) + INFLIGHT, 0)
            head = load_u16(self._state(head) + NEXT)
        return 0
