# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Arrivals: which pages of guest memory have arrived, while a guest comes from another host by postcopy.

The guest runs before all of its memory is there. Whoever touches a page that is not there is suspended by the
kernel, which tells the front-end by a userfaultfd; the front-end fetches the page (userfaultfd(2)). So the event loop
touches no page that may be missing. A thread touches it first, by `Absent.fetch`. A page that was there once stays.

The userfaultfd sees faults of our own code only, not those of system calls. That needs no privilege. System calls get
only pages that a thread has touched. One that meets a missing page would fail with EFAULT, and keep nobody waiting.

Whoever looks for pages begins, looks, and ends: if pages were missing, what was found counts for nothing, whoever
fetches them is told, and it is looked again later.
"""

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free

import os

cdef extern from "barriers.h" nogil:
    uint64_t load_u64(const void *at)
    void store_u64(void *at, uint64_t value)
    void full_fence()

cdef extern from "<fcntl.h>":
    enum: O_CLOEXEC
    enum: O_NONBLOCK

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)
    int close(int fd)

cdef extern from "<sys/syscall.h>":
    enum: SYS_userfaultfd

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_FIXED
    enum: MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long long offset)

cdef extern from *:
    """
    #include <linux/userfaultfd.h>
    #ifndef UFFD_USER_MODE_ONLY  /* Linux 5.11 */
    #define UFFD_USER_MODE_ONLY 1
    #endif
    """
    enum: UFFD_USER_MODE_ONLY
    enum: UFFDIO_REGISTER_MODE_MISSING
    const uint64_t UFFD_API
    const unsigned long UFFDIO_API
    const unsigned long UFFDIO_REGISTER
    const unsigned long UFFDIO_UNREGISTER
    const unsigned long UFFDIO_WAKE
    struct uffdio_api:
        uint64_t api
        uint64_t features
    struct uffdio_range:
        uint64_t start
        uint64_t len
    struct uffdio_register:
        uffdio_range range
        uint64_t mode

# What a sandbox has to let through.
USERFAULTFD_FLAGS = O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY
USERFAULTFD_IOCTLS = (UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE)


def open_userfaultfd():
    """A new userfaultfd, which is the caller's to close; OSError if the kernel gives none to this process."""
    cdef long uffd = syscall(SYS_userfaultfd, <int> USERFAULTFD_FLAGS)
    cdef uffdio_api api
    cdef int error
    if uffd >= 0:
        api.api, api.features = UFFD_API, 0
        if ioctl(uffd, UFFDIO_API, &api) == 0:
            return uffd
        error = errno
        close(uffd)
    else:
        error = errno
    raise OSError(error, f"userfaultfd: {os.strerror(error)}")


cdef class Pages:
    """The pages of one mapping, and which of them are known to be there."""

    def __cinit__(self, size_t count):
        self.count = count
        self.known = <uint8_t *> calloc(count // 8 + 1, 1)
        if self.known is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.known)

    cdef bint is_known(self, size_t page) noexcept:
        return self.known[page // 8] >> (page % 8) & 1


cdef class Absent:
    """Pages that are side by side and may be missing; it keeps them mapped. Equal ones name the same pages."""

    def __init__(self):
        raise TypeError("an Absent comes from a look at guest memory")

    def __eq__(self, other):
        cdef Absent one
        if type(other) is not Absent:
            return NotImplemented
        one = other
        return self.pages is one.pages and self.first == one.first and self.end == one.end

    def __hash__(self):
        return hash((<size_t> <void *> self.pages, self.first, self.end))

    def fetch(self):
        """Touches the pages one by one, as long as it takes, without the GIL. False if it was stopped."""
        with nogil:
            self.touch()
        return not self.stopped

    cdef void touch(self) noexcept nogil:
        cdef size_t page
        for page in range(self.first, self.end):
            # Either we see that we were stopped, or who stops us sees which page we touch.
            store_u64(&self.touched, page + 1)
            full_fence()
            if load_u64(&self.stopped):
                break
            (<volatile unsigned char *> self.pages.start + page * self.pages.unit)[0]
        store_u64(&self.touched, 0)

    def arrived(self):
        """Takes note that the pages are there."""
        cdef size_t page
        for page in range(self.first, self.end):
            self.pages.known[page // 8] |= <uint8_t> (1 << page % 8)

    def stop(self, int uffd):
        """Ends a `fetch` in another thread, before the guest's memory is let go of.

        Nothing must be put where a page is missing: other processes would see it there. So the thread is given a page
        of its own.
        """
        cdef uffdio_range place
        cdef uint64_t touched
        store_u64(&self.stopped, 1)
        full_fence()
        touched = load_u64(&self.touched)
        if not touched:
            return
        place.start = <uint64_t> self.pages.start + (touched - 1) * self.pages.unit
        place.len = self.pages.unit
        if self.pages.is_known(touched - 1) or mmap(
            <void *> place.start, place.len, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0,
        ) != MAP_FAILED:
            ioctl(uffd, UFFDIO_WAKE, &place)


cdef class Arrivals:
    """Finds pages that may be missing. The userfaultfd stays the caller's, and open."""

    def __cinit__(self, int uffd):
        self.uffd = uffd

    def when_missed(self, call):
        """Has `call` called with a list of the Absent of each look, in their order; None calls that off."""
        self.tell = call

    cdef Pages register(self, void *start, size_t size, size_t unit):
        """Has faults in a mapping told by the userfaultfd; OSError if it is of a kind that cannot have any."""
        cdef Pages pages = Pages(size // unit)
        cdef uffdio_register what
        pages.start, pages.unit = <unsigned char *> start, unit
        what.range.start, what.range.len = <uint64_t> start, size
        what.mode = UFFDIO_REGISTER_MODE_MISSING
        if ioctl(self.uffd, UFFDIO_REGISTER, &what) != 0:
            raise OSError(errno, os.strerror(errno))
        return pages

    cdef int unregister(self, Pages pages) except -1:
        """Has what is missing from now on filled with zeros, also for who waits for it."""
        cdef uffdio_range all_of_them
        all_of_them.start, all_of_them.len = <uint64_t> pages.start, pages.count * pages.unit
        if ioctl(self.uffd, UFFDIO_UNREGISTER, &all_of_them) != 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    # --- For guest memory -------------------------------------------------------------------------------

    cdef void begin(self) noexcept:
        """The looks from now on belong together."""
        self.missed = 0

    cdef bint have(self, object region, Pages pages, unsigned char *at, uint64_t length) noexcept:
        """Whether all of these bytes are known to be there, at least one; else their pages are missing."""
        cdef size_t first, end
        if pages is None:
            return True
        first = (at - pages.start) // pages.unit
        end = (at - pages.start + length - 1) // pages.unit + 1
        while first < end and pages.is_known(first):
            first += 1
        if first == end:
            return True
        while pages.is_known(end - 1):
            end -= 1
        if self.missed < MOST_ABSENT:
            self.absences[self.missed] = Absence(<void *> region, <void *> pages, first, end)
            self.missed += 1
        return False

    cdef Absent last(self):
        """The last of the missing pages; there are some."""
        return absent_of(&self.absences[self.missed - 1])

    cdef int end(self) except -1:
        """Tells of the missing pages."""
        cdef size_t i
        if self.tell is not None:
            self.tell([absent_of(&self.absences[i]) for i in range(self.missed)])
        return 0


cdef Absent absent_of(const Absence *absence):
    cdef Absent absent = Absent.__new__(Absent)
    absent.region, absent.pages = <object> absence.region, <Pages> absence.pages
    absent.first, absent.end = absence.first, absence.end
    return absent
