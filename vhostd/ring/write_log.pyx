# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""WriteLog: is told what the device has written, so that a migration can copy that again. DirtyLog: writes it down.

A log belongs to a ring (`Ring.log_writes`), not to a map of memory: it can be replaced at any time, and the chains
in flight report to the one that there is when they are written to. A ring that has none pays for it with one
look at a pointer.

Order. We write a page, and then set its bit in the dirty log. The front-end takes bits away, and then copies their
pages. Each of the two touches a byte of the log by one atomic operation, which is a full barrier too: what was written
before a bit is there for whoever takes the bit away. A bit that is set is set again, since it may be taken away at any
moment.
"""

from libc.stdint cimport uint8_t, uint64_t

from vhostd.ring.memory cimport GuestMemory

cdef extern from "barriers.h" nogil:
    void set_bits_u8(void *at, uint8_t bits)

cdef enum:
    PAGE = 4096  # VHOST_LOG_PAGE: of guest memory, whatever the host's pages are
    BITS = 8  # of a byte


cdef class WriteLog:
    """Is told of the writes to guest memory for one ring; to derive from, in Cython, or in Python for tests."""

    cpdef void dirtied(self, uint64_t guest_addr, uint64_t length) noexcept:
        """These bytes were written, or may have been: it is called after each write.

        They lie in one region. Where the host does not say how much it has written, as of a read that failed,
        they are all that it may have written.
        """


cdef class DirtyLog(WriteLog):
    """A bit for each page of 4096 bytes of guest memory, in memory that the front-end shares (vhost-user, "Migration").

    Pages behind its end are not logged.
    """

    def __cinit__(self, GuestMemory memory not None, uint64_t size):
        """Takes the first `size` bytes of `memory`, the log mapped from address 0 on; BadDescriptor without them."""
        self.window = memory.guest(0, size)
        self.size = size

    @staticmethod
    def footprint(uint64_t last):
        """Bytes of a log for guest memory up to and with this address."""
        return last // (PAGE * BITS) + 1

    cpdef void dirtied(self, uint64_t guest_addr, uint64_t length) noexcept:
        cdef uint64_t page = guest_addr // PAGE
        cdef uint64_t end = page if not length else (guest_addr + length - 1) // PAGE + 1
        cdef unsigned int first, bits
        while page < end and page // BITS < self.size:
            first = page % BITS
            bits = min(end - page, BITS - first)
            set_bits_u8(self.window.data + page // BITS, ((1 << bits) - 1) << first)
            page += bits
