# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Watcher: what a ring tells of the chains that come and go, for whoever counts them.

A ring that is not watched pays for it with one look at a pointer.
"""

from vhostd.ring.chain cimport Chain


cdef class Watcher:
    """Is told of the chains of one ring (`Ring.watch`); to derive from, in Python or in Cython."""

    cpdef void popped(self, Chain chain) except *:
        """The device has the chain from now on; nothing of it was read or written yet."""

    cpdef void pushed(self, Chain chain) except *:
        """The driver has it back, with `chain.written` bytes."""

    cpdef void put_back(self, Chain chain) except *:
        """It is as if it had never been popped."""
