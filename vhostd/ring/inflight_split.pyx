# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""SplitInflight: the inflight record of a split virtqueue.

    features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16,
    and for each descriptor: inflight u8, padding, next u16 at 6, counter u64 at 8

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

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.fields cimport (
    load_u8, load_u16, load_u64, store_release_u8, store_release_u16, store_u16, store_u64,
)
from vhostd.ring.inflight cimport ALIGNMENT, InflightQueue

from vhostd.errors import RefusedRequest


cdef class SplitInflight(InflightQueue):
    """The region of a split virtqueue: a state for each descriptor, by its index."""

    @staticmethod
    def footprint(uint64_t size):
        """Bytes of the region of a queue with `size` descriptors."""
        cdef uint64_t length = STATES + STATE_SIZE * size
        return (length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT

    cdef list resume(self, uint32_t ring_size, uint16_t used_index):
        """The heads that are in flight, oldest first; None if the area was new, and begins now.

        Raises:
            RefusedRequest: the area cannot be what a program left that served this ring.
            MemoryLost: a page of the area vanished.
        """
        if self.is_new(ring_size):
            self._begin(used_index)
            return None
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

    cdef int take(self, Chain chain) except -1:
        cdef unsigned char *state = self._state(chain.head)
        store_u64(state + COUNTER, self.counter)
        store_release_u8(state + INFLIGHT, 1)
        self.counter += 1
        return self.memory.expect_whole()

    cdef void announce(self, Chain chain) noexcept:
        store_u16(self._state(chain.head) + NEXT, self.last_batch_head)
        store_release_u16(self.region + LAST_BATCH_HEAD, chain.head)
        self.last_batch_head = chain.head

    cdef void release(self, Chain chain) noexcept:
        store_release_u8(self._state(chain.head) + INFLIGHT, 0)

    cdef int end_batch(self, uint32_t count) except -1:
        self.used_index += <uint16_t> count
        store_release_u16(self.region + USED_IDX, self.used_index)
        return self.memory.expect_whole()

    cdef void undo(self, Chain chain) noexcept:
        self.release(chain)

    cdef unsigned char *_state(self, uint32_t head) noexcept:
        return self.region + STATES + STATE_SIZE * head

    cdef int _begin(self, uint16_t used_index) except -1:
        """Makes the region one with nothing in flight."""
        cdef uint32_t head
        self.used_index = used_index
        for head in range(self.size):
            store_release_u8(self._state(head) + INFLIGHT, 0)
        store_u16(self.region + LAST_BATCH_HEAD, 0)
        store_u16(self.region + USED_IDX, used_index)
        return self.begin()

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
