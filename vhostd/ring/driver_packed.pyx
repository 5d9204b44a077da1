# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""PackedDriver: the driver half of a packed virtqueue (virtio 1.3, 2.8).

For the scriptable front-end, tests and benchmarks, as SplitDriver is.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
cimport cython

from vhostd.ring.memory cimport GuestMemory, Window
from vhostd.ring.positions cimport (
    EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, PACKED_F_AVAIL, PACKED_F_INDIRECT, PACKED_F_NEXT,
    PACKED_F_USED, PACKED_F_WRITE, PACKED_FLAGS, START, SUPPRESSION_SIZE, WRAP, full_fence, index_of, is_used,
    is_wanted, load_acquire_u16, load_packed, load_u32, marks, moved, packed_descriptor, store_release_u16,
    store_u32,
)
from vhostd.ring.ring cimport DESC_SIZE, EVENT_IDX, MOST_DESCRIPTORS

import struct

cdef object pack_descriptor = struct.Struct("<QIHH").pack


@cython.final
@cython.no_gc
cdef class PackedDriver:
    """The driver half of one packed virtqueue, laid out and zeroed from `guest_addr` on.

    It occupies `footprint` bytes of one region. `base` is where the ring began, as SET_VRING_BASE has it; `free` is
    the number of descriptors not in use. `avail_at` and `used_at` are the positions of the next chain that it makes
    available, and of the next used one.
    """

    cdef readonly uint32_t size
    cdef readonly uint64_t desc_addr
    cdef readonly uint64_t avail_addr
    cdef readonly uint64_t used_addr
    cdef readonly uint64_t footprint
    cdef readonly uint32_t base
    cdef readonly uint32_t free
    cdef readonly uint16_t avail_at
    cdef readonly uint16_t used_at
    cdef GuestMemory memory
    cdef Window window
    cdef unsigned char *desc
    cdef unsigned char *avail
    cdef unsigned char *used_area
    cdef bint event_idx
    cdef uint32_t unkicked  # descriptors made available since the device's wish for a kick was last looked at
    cdef list free_ids
    cdef uint16_t *length  # per id: descriptors of its chain, 0 if it is not out

    def __cinit__(
        self,
        GuestMemory memory not None,
        uint64_t guest_addr,
        uint32_t size,
        *,
        uint64_t features=0,
        uint32_t base=START | <uint32_t> START << 16,
    ):
        """Takes memory for `size` descriptors; both positions start at the lower half of `base`.

        Raises:
            BadDescriptor: the ring does not fit into the region.
        """
        if not 0 < size <= MOST_DESCRIPTORS:
            raise ValueError(f"queue size {size}: not from 1 to {MOST_DESCRIPTORS}")
        self.size = self.free = size
        self.event_idx = features >> EVENT_IDX & 1
        self.desc_addr = (guest_addr + 15) // 16 * 16
        self.avail_addr = self.desc_addr + DESC_SIZE * <uint64_t> size
        self.used_addr = self.avail_addr + SUPPRESSION_SIZE
        self.footprint = self.used_addr + SUPPRESSION_SIZE - guest_addr
        self.memory = memory
        memory.write(guest_addr, bytes(self.footprint))
        self.window = memory.guest(guest_addr, self.footprint)
        self.desc = self.window.data + (self.desc_addr - guest_addr)
        self.avail = self.window.data + (self.avail_addr - guest_addr)
        self.used_area = self.window.data + (self.used_addr - guest_addr)
        self.length = <uint16_t *> calloc(size, sizeof(uint16_t))
        if self.length is NULL:
            raise MemoryError
        self.free_ids = list(range(size - 1, -1, -1))
        self.base = base
        self.avail_at = self.used_at = <uint16_t> base
        self._mark_all()

    def __dealloc__(self):
        free(self.length)

    # --- Traffic ----------------------------------------------------------------------------------------

    def add(self, buffers, *, indirect=None):
        """Makes a chain of `(guest_addr, length, device_writes)` buffers available; returns its id.

        With `indirect` the buffers go into a table at that guest address, and one descriptor refers to it.

        Raises:
            IndexError: not enough descriptors are free.
            ValueError: there are no buffers.
        """
        cdef uint32_t count = 1 if indirect is not None else len(buffers)
        cdef uint16_t id
        if not buffers:
            raise ValueError("a chain needs a buffer")
        if count > self.free:
            raise IndexError(f"{count} descriptors needed, {self.free} free")
        id = self.free_ids.pop()
        self.length[id] = <uint16_t> count
        self.free -= count
        if indirect is not None:
            self.memory.write(indirect, self._table(buffers))
            self.offer([(indirect, DESC_SIZE * len(buffers), id, PACKED_F_INDIRECT)])
            return id
        self.offer(
            [
                (addr, length, id, (PACKED_F_WRITE if writes else 0) | (PACKED_F_NEXT if at < count else 0))
                for at, (addr, length, writes) in enumerate(buffers, 1)
            ]
        )
        return id

    def used(self):
        """The next `(id, written)` that the device returned, or None; the chain's descriptors are free."""
        cdef unsigned char *slot = self.desc + DESC_SIZE * index_of(self.used_at)
        cdef uint16_t flags = load_acquire_u16(slot + PACKED_FLAGS)
        cdef packed_descriptor found
        cdef uint32_t count = 1
        if not is_used(flags, self.used_at):
            return None
        found = load_packed(slot)
        if found.id < self.size and self.length[found.id]:
            count = self.length[found.id]
            self.length[found.id] = 0
            self.free += count
            self.free_ids.append(found.id)
        self.used_at = moved(self.used_at, count, self.size)
        return found.id, found.len

    def must_kick(self):
        """Does the device want a kick for what was made available since this was last asked?"""
        cdef uint32_t count = self.unkicked
        if not count:
            return False
        self.unkicked = 0
        full_fence()
        return is_wanted(load_u32(self.used_area), self.event_idx, self.avail_at, count, self.size)

    def arm(self):
        """Asks for an interrupt at the next used descriptor; True if there is one already."""
        self.suppress(self.used_at, EVENT_DESC if self.event_idx else EVENT_ENABLE)
        full_fence()
        cdef unsigned char *slot = self.desc + DESC_SIZE * index_of(self.used_at)
        cdef uint16_t flags = load_acquire_u16(slot + PACKED_FLAGS)
        return is_used(flags, self.used_at)

    def disarm(self):
        """Asks for no interrupts."""
        self.suppress(0, EVENT_DISABLE)

    # --- The fields themselves, for deliberate nonsense ---------------------------------------------------

    @property
    def device_event(self):
        """The device's event suppression area: a position, and in the upper half the flags."""
        return load_u32(self.used_area)

    def suppress(self, position, flags):
        """Writes the driver's event suppression area."""
        store_u32(self.avail, position % 2**16 | (flags % 2**16) << 16)

    def offer(self, descriptors):
        """Writes `(addr, length, id, flags)` descriptors from `avail_at` on, and makes them available.

        The flags that say so are added; `descriptor` writes others.
        """
        cdef uint16_t at = self.avail_at
        cdef uint16_t first = 0, flags
        cdef bint rest = False
        for addr, length, id, flags in descriptors:
            flags |= marks(at) ^ PACKED_F_USED
            self.descriptor(index_of(at), addr, length, id, flags if rest else flags ^ PACKED_F_AVAIL)
            if not rest:
                first, rest = flags, True
            at = moved(at, 1, self.size)
        store_release_u16(self.desc + DESC_SIZE * index_of(self.avail_at) + PACKED_FLAGS, first)
        self.avail_at = at
        self.unkicked += len(descriptors)

    def descriptor(self, i, addr, length, id, flags):
        """Writes descriptor `i`, modulo the queue size; each value is cut to its field's width."""
        cdef packed_descriptor new = packed_descriptor(
            addr % 2**64, length % 2**32, id % 2**16, flags % 2**16
        )
        memcpy(self.desc + DESC_SIZE * (<uint32_t> (i % self.size)), &new, DESC_SIZE)

    cdef int _mark_all(self) except -1:
        """Marks all descriptors as used in the round before, from where the ring begins."""
        cdef uint32_t i
        cdef uint16_t flags
        if self.avail_at == START:
            return 0  # they are zeroed, as those of a new ring
        for i in range(self.size):
            flags = marks(self.avail_at if i < index_of(self.avail_at) else self.avail_at ^ WRAP)
            self.descriptor(i, 0, 0, 0, flags)
        return 0

    cdef bytes _table(self, buffers):
        """The buffers as an indirect table."""
        return b"".join(
            [pack_descriptor(addr, length, 0, PACKED_F_WRITE if writes else 0) for addr, length, writes in buffers]
        )
