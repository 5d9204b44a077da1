# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Shortcut: what serves most requests of a busy device before Python sees them.

On its way through a device's Python a request costs microseconds, and many ask for less work than that. A device
with such requests does this work in a native module of its own: as a Shortcut, which its queue asks first
(`Virtqueue.use_shortcut`). All else, what is rare and what is wrong, stays in Python.

Where it is the host that has something for the driver, such as packets, a shortcut is a pump: it fills chains
whenever an fd of the host's is readable (`Virtqueue.pump`).
"""

from vhostd.ring.chain cimport Chain


cdef class Shortcut:
    """Serves the chains that it can; to derive from, in Cython, or in Python where time does not matter.

    A pump `keeps` something while it has read more of its fd than it has put into chains.
    """

    cpdef int serve(self, queue, Chain chain) except -1:
        """Does all that a chain of this queue asks for, or begins it, or leaves it as it was: an Outcome.

        A pump leaves a chain when the host has nothing for it now. While the fd stays readable, it is asked again.

        What it raises is the queue's, as if the device's handler had raised it.
        """
        return LEFT

    cpdef void submit(self) except *:
        """No more chains come for now: what was begun, and is only queued, has to go on."""

    def take(self, queue, Chain chain not None):
        """Has it serve one chain, which is pushed now or after `submit`; False if it leaves it."""
        cdef int outcome = self.serve(queue, chain)
        if outcome == DONE:
            queue.push(chain)
        return outcome != LEFT
