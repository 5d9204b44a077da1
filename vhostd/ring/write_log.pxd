# cython: language_level=3
"""What is told of every write to guest memory, and the log that a front-end shares."""

cimport cython
from libc.stdint cimport uint64_t

from vhostd.ring.memory cimport Window


cdef class WriteLog:
    cpdef void dirtied(self, uint64_t guest_addr, uint64_t length) noexcept


@cython.final
cdef class DirtyLog(WriteLog):
    cdef Window window
    cdef uint64_t size
