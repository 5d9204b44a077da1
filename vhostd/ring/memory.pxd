# cython: language_level=3
"""Guest memory, as the other native modules use it."""

cimport cython
from libc.stdint cimport uint64_t

from vhostd.ring.arrivals cimport Arrivals, Pages
from vhostd.ring.iotlb cimport DeviceIotlb


cdef enum:
    # What memory is looked up for: who translates addresses may allow one and not the other.
    READS = 1
    WRITES = 2


cdef struct Span:
    # A region as one of the two address spaces sees it; `last` is inclusive, so that nothing overflows.
    uint64_t first
    uint64_t last
    unsigned char *host
    size_t index


cdef bint fits_u64(value, uint64_t *into) except -1


@cython.final
@cython.no_gc
cdef class Region:
    cdef readonly uint64_t guest_addr
    cdef readonly uint64_t user_addr
    cdef readonly uint64_t size
    cdef uint64_t offset  # of the first byte, in the file
    cdef int fd  # our own
    cdef unsigned char *host
    cdef void *mapping
    cdef size_t mapped
    cdef int guard
    cdef Pages pages  # or None: all of them are there

    cdef int _check(self, int fd) except -1
    cdef int _map(self, int fd) except -1
    cdef int _keep(self, int fd) except -1
    cdef object _refuse(self, str why)


@cython.final
@cython.no_gc
cdef class Row:
    cdef unsigned char *start
    cdef size_t size
    cdef int guard
    cdef list pieces  # (where it ends in the row, its guest address)

    cdef int put(self, size_t at, Region region, unsigned char *host, size_t length) except -1
    cdef uint64_t guest_address(self, size_t offset) noexcept


@cython.final
@cython.no_gc
cdef class Window:
    cdef readonly Region region
    cdef Row row  # or None: where the bytes are side by side
    cdef unsigned char *data
    cdef size_t size

    cdef uint64_t guest_address(self, const void *host) noexcept


@cython.final
@cython.no_gc
cdef class GuestMemory:
    cdef readonly tuple regions
    cdef readonly DeviceIotlb iotlb
    cdef readonly Arrivals arrivals
    cdef Span *by_guest
    cdef Span *by_user
    cdef size_t count
    cdef Span *recent
    cdef unsigned losses_seen
    cdef bint found_lost
    cdef bint has_rows
    cdef bint may_miss  # what is looked for: its translation, or its pages

    cdef bint is_lost(self) noexcept
    cdef int expect_whole(self) except -1
    cdef object error(self, kind, str text)
    cdef Span *find(self, uint64_t guest_addr) noexcept
    cdef uint64_t guest_address(self, const void *host) noexcept
    cdef unsigned char *locate(
        self, uint64_t guest_addr, uint64_t length, int access, uint64_t *room
    ) noexcept
    cdef bint _has_arrived(self, unsigned char *host, uint64_t length) noexcept
    cdef void begin_look(self) noexcept
    cdef bint has_missed(self) noexcept
    cdef int end_look(self) except -1
    cdef unsigned char *translate(self, uint64_t iova, int access, uint64_t *room) noexcept
    cdef int _sort(self, Span *spans, str space) except -1
    cdef Window _window(self, Span *spans, addr, length)
    cdef Window _arrived(self, Window window)
    cdef Window _translated(self, uint64_t iova, uint64_t length)
    cdef Row _in_a_row(self, uint64_t iova, uint64_t length)
    cdef int _expect(self, guest_addr, length, int access, uint64_t *start, uint64_t *size) except -1
    cdef int _copy(self, uint64_t addr, unsigned char *ours, uint64_t left, bint to_guest) except -1
