# cython: language_level=3
"""What is told of every write to guest memory."""

from libc.stdint cimport uint64_t


cdef class WriteLog:
    cpdef void dirtied(self, uint64_t guest_addr, uint64_t length) noexcept
