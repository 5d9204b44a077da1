# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""SplitDriver: the driver half of a split virtqueue (virtio 1.3, 2.7.13 and 2.7.14).

For the scriptable front-end, tests and benchmarks. It can also write deliberate nonsense, which is
why it believes nothing that it wrote: what it needs to know of its own descriptors it keeps on this side.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
cimport cython

from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.ring cimport DESC_SIZE, EVENT_IDX, MOST_DESCRIPTORS, PACKED
from vhostd.ring.split cimport (
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, ELEMENTS, FLAGS, INDEX, USED_F_NO_NOTIFY,
    USED_SIZE, descriptor, full_fence, load_acquire_u16, load_u16, load_u32, passed, store_release_u16, store_u16,
)

import struct

from vhostd.ring.driver_packed import PackedDriver
from vhostd.ring.split import SplitRing

# The flags of a descriptor (virtio 1.3, 2.7.5).
NEXT = DESC_F_NEXT
WRITE = DESC_F_WRITE
INDIRECT = DESC_F_INDIRECT

cdef object pack_descriptor = struct.Struct("<QIHH").pack


cdef inline uint64_t aligned(uint64_t addr, uint64_t alignment):
    return (addr + alignment - 1) // alignment * alignment


@cython.final
@cython.no_gc
cdef class SplitDriver:
    """The driver half of one split virtqueue, laid out and zeroed from `guest_addr` on.

    It occupies `footprint` bytes of one region. `base` is where the ring began. `avail_index` is the published avail
    index, `free` the number of descriptors not in use.
    """

    cdef readonly uint32_t size
    cdef readonly uint64_t desc_addr
    cdef readonly uint64_t avail_addr
    cdef readonly uint64_t used_addr
    cdef readonly uint64_t footprint
    cdef readonly uint32_t base
    cdef readonly uint32_t free
    cdef readonly uint16_t avail_index
    cdef GuestMemory memory
    cdef Window window
    cdef unsigned char *desc
    cdef unsigned char *avail
    cdef unsigned char *used_ring
    cdef bint event_idx
    cdef uint16_t offered  # elements written and not yet published
    cdef uint16_t seen  # the used index of the next element to look at
    cdef uint32_t unkicked  # chains published since the device's wish for a kick was last looked at
    cdef uint16_t first_free
    cdef uint16_t *following  # per descriptor: the next one of its chain, or of the free list
    cdef uint16_t *length  # per head: descriptors of its chain, 0 if it was not added here

    def __cinit__(
        self,
        GuestMemory memory not None,
        uint64_t guest_addr,
        uint32_t size,
        *,
        uint64_t features=0,
        uint16_t base=0,
    ):
        """Takes memory for `size` descriptors; both indices start at `base`.

        Raises:
            BadDescriptor: the ring does not fit into the region.
        """
        cdef uint32_t i
        if not 0 < size <= MOST_DESCRIPTORS or size & (size - 1):
            raise ValueError(f"queue size {size}: not a power of two up to {MOST_DESCRIPTORS}")
        desc, avail, used = SplitRing.footprint(size)
        self.size = self.free = size
        self.event_idx = features >> EVENT_IDX & 1
        self.desc_addr = aligned(guest_addr, 16)
        self.avail_addr = self.desc_addr + desc
        self.used_addr = aligned(self.avail_addr + avail, 4)
        self.footprint = self.used_addr + used - guest_addr
        self.memory = memory
        memory.write(guest_addr, bytes(self.footprint))
        self.window = memory.guest(guest_addr, self.footprint)
        self.desc = self.window.data + (self.desc_addr - guest_addr)
        self.avail = self.window.data + (self.avail_addr - guest_addr)
        self.used_ring = self.window.data + (self.used_addr - guest_addr)
        self.following = <uint16_t *> calloc(size, sizeof(uint16_t))
        self.length = <uint16_t *> calloc(size, sizeof(uint16_t))
        if self.following is NULL or self.length is NULL:
            raise MemoryError
        for i in range(size):
            self.following[i] = <uint16_t> (i + 1)
        self.base = self.avail_index = self.seen = base
        store_u16(self.avail + INDEX, base)
        store_u16(self.used_ring + INDEX, base)

    def __dealloc__(self):
        free(self.following)
        free(self.length)

    # --- Traffic ----------------------------------------------------------------------------------------

    def add(self, buffers, *, indirect=None):
        """Makes a chain of `(guest_addr, length, device_writes)` buffers available; returns its head.

        With `indirect` the buffers go into a table at that guest address, and one descriptor refers to it.

        Raises:
            IndexError: not enough descriptors are free.
            ValueError: there are no buffers.
        """
        cdef uint16_t head
        if not buffers:
            raise ValueError("a chain needs a buffer")
        if indirect is not None:
            self.memory.write(indirect, self._table(buffers))
            head = self._take(1)
            self._store(head, indirect, DESC_SIZE * len(buffers), DESC_F_INDIRECT, 0)
        else:
            head = self._take(len(buffers))
            self._chain(buffers, head)
        self.offer(head)
        self.publish()
        return head

    def used(self):
        """The next `(head, written)` that the device returned, or None; the chain's descriptors are free."""
        if load_acquire_u16(self.used_ring + INDEX) == self.seen:
            return None
        cdef unsigned char *element = self.used_ring + ELEMENTS + USED_SIZE * (self.seen & (self.size - 1))
        cdef uint32_t head = load_u32(element)
        self.seen += 1
        if head < self.size and self.length[head]:
            self._release(<uint16_t> head)
        return head, load_u32(element + 4)

    def must_kick(self):
        """Does the device want a kick for what was published since this was last asked?"""
        cdef uint32_t published = self.unkicked
        if not published:
            return False
        self.unkicked = 0
        full_fence()
        if not self.event_idx:
            return not load_u16(self.used_ring + FLAGS) & USED_F_NO_NOTIFY
        return published > 0xFFFF or passed(
            self.avail_event, self.avail_index, <uint16_t> (self.avail_index - published)
        )

    def arm(self):
        """Asks for an interrupt at the next used element; True if there is one already."""
        if self.event_idx:
            self.set_used_event(self.seen)
        else:
            store_u16(self.avail + FLAGS, 0)
        full_fence()
        return load_u16(self.used_ring + INDEX) != self.seen

    def disarm(self):
        """Asks for no interrupts; with EVENT_IDX there is no such wish, only an event index left behind."""
        if self.event_idx:
            self.set_used_event(<uint16_t> (self.seen - 1))
        else:
            store_u16(self.avail + FLAGS, AVAIL_F_NO_INTERRUPT)

    # --- The fields themselves, for deliberate nonsense ---------------------------------------------------

    @property
    def used_index(self):
        """The used index in guest memory: where the device will put its next element."""
        return load_acquire_u16(self.used_ring + INDEX)

    @property
    def avail_event(self):
        """The avail index at whose passing the device wants a kick (EVENT_IDX)."""
        return load_u16(self.used_ring + ELEMENTS + USED_SIZE * self.size)

    @property
    def used_flags(self):
        """The flags of the used ring: 1 if the device wants no kicks (without EVENT_IDX)."""
        return load_u16(self.used_ring + FLAGS)

    def descriptor(self, i, addr, length, flags, following):
        """Writes descriptor `i`, modulo the queue size; each value is cut to its field's width."""
        self._store(i % self.size, addr % 2**64, length % 2**32, flags % 2**16, following % 2**16)

    def offer(self, head):
        """Writes a head, valid or not, into the next avail element, without publishing it."""
        cdef uint16_t at = self.avail_index + self.offered
        store_u16(self.avail + ELEMENTS + 2 * (at & (self.size - 1)), head % 2**16)
        self.offered += 1

    def publish(self, uint32_t n=1):
        """Advances the avail index by `n`, whether so many heads were offered or not."""
        self.offered -= <uint16_t> min(n, self.offered)
        self.unkicked += n
        self.avail_index += <uint16_t> n
        store_release_u16(self.avail + INDEX, self.avail_index)

    def set_avail_index(self, uint16_t index):
        """Publishes this avail index."""
        self.offered = 0
        self.avail_index = index
        store_release_u16(self.avail + INDEX, index)

    def set_used_event(self, uint16_t index):
        """Asks for an interrupt when the used index passes this one (EVENT_IDX)."""
        store_u16(self.avail + ELEMENTS + 2 * self.size, index)

    # --- Descriptors ------------------------------------------------------------------------------------

    cdef uint16_t _take(self, size_t n) except? 0:
        """Takes `n` descriptors, linked through `following`, off the free list; returns the first."""
        cdef uint16_t head = self.first_free
        cdef size_t i
        if n > self.free:
            raise IndexError(f"{n} descriptors needed, {self.free} free")
        self.free -= n
        self.length[head] = <uint16_t> n
        for i in range(n):
            self.first_free = self.following[self.first_free]
        return head

    cdef int _release(self, uint16_t head) except -1:
        """Puts the descriptors of a chain in front of the free list."""
        cdef uint16_t last = head
        cdef uint16_t i
        for i in range(self.length[head] - 1):
            last = self.following[last]
        self.following[last] = self.first_free
        self.first_free = head
        self.free += self.length[head]
        self.length[head] = 0
        return 0

    cdef int _chain(self, buffers, uint16_t at) except -1:
        """Writes the buffers into the descriptors from `at` on."""
        cdef size_t left = len(buffers)
        cdef uint16_t flags
        for addr, length, writes in buffers:
            left -= 1
            flags = (DESC_F_WRITE if writes else 0) | (DESC_F_NEXT if left else 0)
            self._store(at, addr, length, flags, self.following[at] if left else 0)
            at = self.following[at]
        return 0

    cdef int _store(
        self, uint32_t i, uint64_t addr, uint32_t length, uint16_t flags, uint16_t following
    ) except -1:
        cdef descriptor new = descriptor(addr, length, flags, following)
        memcpy(self.desc + DESC_SIZE * i, &new, DESC_SIZE)
        return 0

    cdef bytes _table(self, buffers):
        """The buffers as an indirect table."""
        cdef size_t i = 0, count = len(buffers)
        table = bytearray()
        for addr, length, writes in buffers:
            i += 1
            flags = (DESC_F_WRITE if writes else 0) | (DESC_F_NEXT if i < count else 0)
            table += pack_descriptor(addr, length, flags, i if i < count else 0)
        return bytes(table)


def driver_format(features):
    """The class of a ring's driver half under the features that were negotiated."""
    return PackedDriver if features >> PACKED & 1 else SplitDriver
