# cython: language_level=3
"""What is told of a ring's chains."""

from vhostd.ring.chain cimport Chain


cdef class Watcher:
    cpdef void popped(self, Chain chain) except *
    cpdef void pushed(self, Chain chain) except *
    cpdef void put_back(self, Chain chain) except *
