# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Shortcut: what serves most requests of a busy device before Python sees them.

Layer 3. On its way through a device's Python a request costs microseconds, and many ask for less work than
that. A device with such requests does this work in a native module of its own: as a Shortcut, which its queue
asks first (`Virtqueue.shorten`). All else, what is rare and what is wrong, stays in Python.
"""

from vhostd.ring.chain cimport Chain


cdef class Shortcut:
    """Serves the chains that it can; to derive from, in Cython."""

    cdef int serve(self, queue, Chain chain) except -1:
        """Does all that a chain of this queue asks for, or begins it, or leaves it as it was: an Outcome.

        What it raises is the queue's, as if the device's handler had raised it.
        """
        return LEFT

    cpdef int settle(self) except -1:
        """No more chains come for now: what was begun has to go on."""
        return 0

    def take(self, queue, Chain chain not None):
        """Has it serve one chain, which is pushed now or after `settle`; False if it leaves it."""
        cdef int outcome = self.serve(queue, chain)
        if outcome == DONE:
            queue.push(chain)
        return outcome != LEFT
