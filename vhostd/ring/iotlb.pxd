# cython: language_level=3
"""The translation of I/O virtual addresses, as guest memory asks for it."""

cimport cython
from libc.stdint cimport uint64_t


cdef enum:
    # More than the longest chain needs, if each piece of it is translated alone: so each can be walked to its end.
    MOST_TRANSLATIONS = 131072
    # That one look at a ring tells of; the next look finds more.
    MOST_MISSES = 64
    IOMMU_PAGE = 4096  # the least that is translated


cdef struct Extent:
    # Of addresses; `last` is inclusive, so that nothing overflows.
    uint64_t first
    uint64_t last


cdef struct Translation:
    Extent iova
    uint64_t user_addr  # of the first byte
    int access  # READS and WRITES of memory.pxd, as bits


cdef struct Miss:
    uint64_t iova
    int access


@cython.final
cdef class Extents:
    cdef Extent *each  # `count` of `room`
    cdef size_t count
    cdef size_t room

    cdef int add(self, uint64_t first, uint64_t length) except -1
    cdef bint overlap(self, Extent other) noexcept


@cython.final
@cython.no_gc
cdef class DeviceIotlb:
    cdef Translation *table  # `count` of `room`, by their addresses, without overlaps
    cdef size_t count
    cdef size_t room
    cdef size_t recent  # the one that was found last
    cdef Miss misses[MOST_MISSES]
    cdef size_t missed
    cdef object tell

    cdef Translation *find(self, uint64_t iova, int access) noexcept
    cdef void begin(self) noexcept
    cdef bint has_missed(self, Miss miss) noexcept
    cdef int end(self) except -1
    cdef void note(self, uint64_t iova, int access) noexcept
    cdef size_t search(self, uint64_t iova) noexcept
    cdef void merge(self, Translation *new) noexcept
    cdef int splice(self, Extent cut, const Translation *new) except -1
    cdef int make_room(self) except -1
