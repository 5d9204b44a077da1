# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""WriteLog: is told what the device has written, so that a migration can copy that again.

A log belongs to a ring (`Ring.log_writes`), not to a map of memory: it can be replaced at any time, and the chains
in flight report to the one that there is when they are written to. A ring that has none pays for it with one
look at a pointer.
"""

from libc.stdint cimport uint64_t


cdef class WriteLog:
    """Is told of the writes to guest memory for one ring; to derive from, in Cython, or in Python for tests."""

    cpdef void dirtied(self, uint64_t guest_addr, uint64_t length) noexcept:
        """These bytes were written, or may have been: it is called after each write.

        They lie in one region. Where the host does not say how much it has written, as of a read that failed,
        they are all that it may have written.
        """
