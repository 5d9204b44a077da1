# cython: language_level=3
"""What a packed ring is made of: its descriptors, and the positions in it (virtio 1.3, 2.8).

A position is an index, with the wrap counter there in bit 15.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from "barriers.h" nogil:
    struct packed_descriptor:
        uint64_t addr
        uint32_t len
        uint16_t id
        uint16_t flags
    packed_descriptor load_packed(const void *at)
    uint16_t load_u16(const void *at)
    uint16_t load_acquire_u16(const void *at)
    uint32_t load_u32(const void *at)
    void store_u16(void *at, uint16_t value)
    void store_u32(void *at, uint32_t value)
    void store_release_u16(void *at, uint16_t value)
    void full_fence()
    bint passed(uint16_t event, uint16_t now, uint16_t old)


cdef enum:
    # Flags of a descriptor (virtio 1.3, 2.8.1, 2.8.6 and 2.8.7).
    PACKED_F_NEXT = 1
    PACKED_F_WRITE = 2
    PACKED_F_INDIRECT = 4
    PACKED_F_AVAIL = 0x80
    PACKED_F_USED = 0x8000
    # Fields of a descriptor, behind its address.
    LEN = 8
    ID = 12
    PACKED_FLAGS = 14
    # An event suppression area: a position u16, and flags u16 (2.8.10).
    SUPPRESSION_SIZE = 4
    EVENT_ENABLE = 0
    EVENT_DISABLE = 1
    EVENT_DESC = 2
    EVENT_FLAGS = 3  # the bits of the flags that count
    # A position in the ring: an index, and in this bit the wrap counter, which begins with 1.
    WRAP = 0x8000
    START = 0x8000


cdef inline uint16_t index_of(uint16_t position) noexcept nogil:
    return position & 0x7FFF


cdef inline uint16_t moved(uint16_t position, uint32_t count, uint32_t size) noexcept nogil:
    """The position so many descriptors further on, a whole ring at most."""
    cdef uint32_t index = index_of(position) + count
    if index < size:
        return <uint16_t> (position & WRAP | index)
    return <uint16_t> ((position & WRAP ^ WRAP) | index - size)


cdef inline uint16_t marks(uint16_t position) noexcept nogil:
    """The two flags of a descriptor that was used there."""
    return PACKED_F_AVAIL | PACKED_F_USED if position & WRAP else 0


cdef inline bint is_available(uint16_t flags, uint16_t position) noexcept nogil:
    """Has the driver made the descriptor with these flags available, in the round of this position?"""
    return (flags ^ marks(position)) & (PACKED_F_AVAIL | PACKED_F_USED) == PACKED_F_USED


cdef inline bint is_used(uint16_t flags, uint16_t position) noexcept nogil:
    """Has the device used the descriptor with these flags, in the round of this position?"""
    return not (flags ^ marks(position)) & (PACKED_F_AVAIL | PACKED_F_USED)


cdef inline bint is_wanted(
    uint32_t event, bint event_idx, uint16_t at, uint32_t count, uint32_t size
) noexcept nogil:
    """Does the side with this event suppression area want to hear of so many descriptors before `at`?"""
    cdef uint32_t flags = event >> 16 & EVENT_FLAGS
    cdef uint16_t index = index_of(<uint16_t> event)
    cdef uint16_t now = index_of(at)
    if flags != EVENT_DESC or not event_idx:
        return flags != EVENT_DISABLE
    if count >= size:
        return True
    if (event ^ at) & WRAP:  # it is of the round before
        index -= <uint16_t> size
    return passed(index, now, <uint16_t> (now - count))
