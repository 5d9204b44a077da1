# cython: language_level=3
"""A packed virtqueue's format, and its device half."""

cimport cython
from libc.stdint cimport uint16_t, uint32_t

from vhostd.ring.chain cimport Chain
from vhostd.ring.inflight_packed cimport PackedInflight
from vhostd.ring.ring cimport Ring

@cython.final
@cython.no_gc
cdef class PackedRing(Ring):
    cdef uint16_t avail_at  # the position of the next chain to pop
    cdef uint16_t used_at  # of the next used descriptor that the driver has not seen yet
    cdef uint16_t written_at  # of the next one that is written: beyond used_at while a batch is
    cdef bint found  # there is a chain at avail_at
    cdef uint32_t room  # descriptors that are in no chain in flight
    cdef uint32_t unsignalled  # descriptors passed since the driver's wish for an interrupt was last looked at
    cdef unsigned char *curtain  # the used descriptor that hides the rest of its batch
    cdef uint16_t curtain_flags  # what it gets at last
    cdef PackedInflight notes  # the inflight record, if there is one

    cdef int _begin(self, uint32_t base) except -1
    cdef int _resume(self, PackedInflight inflight) except -1
    cdef bint _is_fresh(self) noexcept
    cdef bint _look(self) noexcept
    cdef uint32_t _walk(self, Chain chain) except 0
    cdef void _note_base(self) noexcept
    cdef void _suppress(self, uint32_t event) noexcept
