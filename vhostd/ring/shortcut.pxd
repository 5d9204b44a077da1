# cython: language_level=3
"""What a device's own native module derives from, to serve chains without Python."""

from vhostd.ring.chain cimport Chain


cpdef enum Outcome:
    LEFT = 0  # the chain is as it was
    DONE = 1  # it has its answer, and is to be pushed
    BEGUN = 2  # the shortcut will push it to its queue


cdef class Shortcut:
    cdef public bint keeps
    cpdef int serve(self, queue, Chain chain) except -1
    cpdef void submit(self) except *
