# cython: language_level=3
"""The pages of guest memory that have arrived, as guest memory asks for them."""

cimport cython
from libc.stdint cimport uint8_t, uint64_t


cdef enum:
    # That one look at a ring tells of; the next look finds more.
    MOST_ABSENT = 64


cdef struct Absence:
    # Borrowed: who looks holds the region meanwhile.
    void *region
    void *pages
    size_t first
    size_t end


@cython.final
@cython.no_gc
cdef class Pages:
    cdef unsigned char *start
    cdef size_t count
    cdef size_t unit  # bytes of a page
    cdef uint8_t *known  # a bit for each page

    cdef bint is_known(self, size_t page) noexcept


@cython.final
@cython.no_gc
cdef class Absent:
    cdef readonly object region
    cdef Pages pages
    cdef size_t first
    cdef size_t end
    cdef uint64_t touched  # the page that is touched now, and 1; or 0
    cdef uint64_t stopped

    cdef void touch(self) noexcept nogil


@cython.final
@cython.no_gc
cdef class Arrivals:
    cdef int uffd
    cdef Absence absences[MOST_ABSENT]
    cdef size_t missed
    cdef object tell

    cdef Pages register(self, void *start, size_t size, size_t unit)
    cdef int unregister(self, Pages pages) except -1
    cdef void begin(self) noexcept
    cdef bint have(self, object region, Pages pages, unsigned char *at, uint64_t length) noexcept
    cdef Absent last(self)
    cdef int end(self) except -1
