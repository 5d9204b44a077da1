# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""InflightQueue: which chains of a virtqueue are in flight, in memory that outlives this program.

A chain is in flight from the ring's `pop` to its `push`, or `put_back`. The front-end keeps the inflight area, and
gives it to the next program if this one dies; that one does again what the area says was not finished (vhost-user,
"Inflight I/O tracking"). Each queue has a region in it, which begins with

    features u64, version u16, desc_num u16,

and goes on by the ring's format: inflight_split.pyx and inflight_packed.pyx.

What we write we never read back. What another wrote is read once, when a ring starts, and checked then: the area
is the front-end's, and need not be what one of us left.

Ordering. What is to be survived is the end of this process between any two of its stores. There is no other reader
meanwhile, and what the processor has begun to store arrives; so the order of the program suffices, but the compiler
must keep it. Each store that means something is therefore a release: none before it is moved behind it.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t, uintptr_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.fields cimport load_u16, load_u64, store_release_u16, store_u16, store_u64
from vhostd.ring.memory cimport GuestMemory

from vhostd.errors import RefusedRequest


cdef class InflightQueue:
    """The region of one queue in an inflight area: what is in flight there; one of its formats, never this class.

    `size` is how many descriptors it has room for. A ring that is given it keeps it up to date, by

    - `take`: a chain was popped; comes before anything is done with it;
    - `announce`: the driver will see it next, with its batch; comes before the ring publishes that;
    - `release`: the driver sees it; and `end_batch`, when all so many of the batch were released;
    - `undo`: it was put back: it is not in flight, and not used. It was the last that was taken.

    MemoryLost says that this is not kept.
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
        raise NotImplementedError

    cdef int take(self, Chain chain) except -1:
        raise NotImplementedError

    cdef void announce(self, Chain chain) noexcept:
        pass

    cdef void release(self, Chain chain) noexcept:
        pass

    cdef int end_batch(self, uint32_t count) except -1:
        raise NotImplementedError

    cdef void undo(self, Chain chain) noexcept:
        pass

    # --- For the formats --------------------------------------------------------------------------------

    cdef bint is_new(self, uint32_t ring_size) except -1:
        """Whether no program has used it. RefusedRequest if one did that we cannot go on from."""
        if ring_size > self.size:
            raise RefusedRequest(f"an inflight area for {self.size} descriptors, and a ring of {ring_size}")
        if load_u16(self.region + VERSION) == 0:
            return True
        self.expect_version()
        return False

    cdef int begin(self) except -1:
        """Makes a region one of ours, when all else is written: it counts as new until the last store."""
        store_u64(self.region + FEATURES, 0)
        store_u16(self.region + DESC_NUM, <uint16_t> self.size)
        store_release_u16(self.region + VERSION, CURRENT_VERSION)
        return self.memory.expect_whole()

    cdef int expect_version(self) except -1:
        cdef uint64_t features = load_u64(self.region + FEATURES)
        cdef uint16_t version = load_u16(self.region + VERSION)
        cdef uint16_t desc_num = load_u16(self.region + DESC_NUM)
        self.memory.expect_whole()
        if version != CURRENT_VERSION or features:
            raise RefusedRequest(f"an inflight area of version {version} with features {features:#x}")
        if desc_num != self.size:
            raise RefusedRequest(f"an inflight area of {desc_num} descriptors, {self.size} expected")
        return 0
