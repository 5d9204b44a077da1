# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Guest memory: files of the front-end's, mapped, and found again by guest or by user address.

A guest address is what a driver writes into a descriptor; a user address is what a front-end writes
into a message: the same byte's address in the front-end's own process. Neither is ever a pointer of ours.
If there is an IOMMU, what the driver writes are I/O virtual addresses, and a DeviceIotlb translates them to
user addresses.

A map is never changed. Replacing it means making a new `GuestMemory` (with some of the same regions, if they
stay); a ring or a chain that was resolved against the old one keeps its regions mapped until it is done.

While a guest comes by postcopy, an Arrivals knows which pages are there already.

Seam. A log of writes (write_log.pyx) asks `guest_address`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport calloc, free, qsort
from libc.string cimport memmove
from posix.fcntl cimport fcntl
from posix.stat cimport S_ISREG, fstat, struct_stat
from posix.unistd cimport close

import os

from vhostd.ring.arrivals cimport Arrivals, Pages
from vhostd.ring.iotlb cimport IOMMU_PAGE, DeviceIotlb, Translation

from vhostd.errors import BadDescriptor, MemoryLost, NotThereYet, RefusedRequest

cdef extern from "<fcntl.h>":
    enum: F_DUPFD_CLOEXEC

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ
    enum: PROT_WRITE
    enum: PROT_NONE
    enum: MAP_SHARED
    enum: MAP_PRIVATE
    enum: MAP_ANONYMOUS
    enum: MAP_FIXED
    enum: MAP_NORESERVE
    enum: MADV_DONTDUMP
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long long offset)
    int munmap(void *addr, size_t length)
    int madvise(void *addr, size_t length, int advice)

cdef extern from "<sys/vfs.h>" nogil:
    struct statfs_t "statfs":
        long f_type
        long f_bsize
    int fstatfs(int fd, statfs_t *result)

cdef extern from "<linux/magic.h>":
    enum: HUGETLBFS_MAGIC

cdef extern from "<unistd.h>" nogil:
    enum: _SC_PAGESIZE
    long sysconf(int name)

cdef extern from "sigbus.h" nogil:
    int sigbus_install()
    int sigbus_guard(void *start, size_t length, size_t page)
    void sigbus_release(int number)
    bint sigbus_lost(int number)
    unsigned sigbus_losses()

# What other back-ends and vhost in the kernel allow: KVM once had 512 slots, and kept three to itself.
MAX_REGIONS = 509

cdef str LOST = (
    "guest memory vanished: the file behind it shrank, or the host has no page for it, such as a huge page, left"
)


cdef size_t page_size(int fd) noexcept nogil:
    """The page size of a mapping of the file, of which its offset and length must be multiples."""
    cdef statfs_t filesystem
    if fstatfs(fd, &filesystem) == 0 and filesystem.f_type == HUGETLBFS_MAGIC:
        return filesystem.f_bsize
    return sysconf(_SC_PAGESIZE)


cdef class Region:
    """One range of guest memory: a part of a file, mapped shared and writable.

    The mapping lives as long as the region or anything that was resolved through it, and so does a duplicate
    of `fd`, for sharing the memory further; `fd` itself stays the caller's. Guest memory is left out of core
    dumps. The first region installs a SIGBUS handler, see sigbus.h.
    """

    def __cinit__(
        self, int fd, *, uint64_t guest_addr, uint64_t user_addr, uint64_t size, uint64_t offset=0
    ):
        """Maps `size` bytes from `offset` of the file.

        Raises:
            RefusedRequest: the range is empty, wraps around, is not wholly inside a regular file, or cannot
                be mapped shared and writable, or no fd is left for the duplicate; the text names the values.
                Nothing stays mapped or open.
        """
        self.guest_addr = guest_addr
        self.user_addr = user_addr
        self.size = size
        self.offset = offset
        self._check(fd)
        self._map(fd)
        self._keep(fd)

    def __dealloc__(self):
        if self.mapping is not NULL:  # else `fd` was never set either
            sigbus_release(self.guard)
            munmap(self.mapping, self.mapped)
            if self.fd >= 0:
                close(self.fd)

    cdef int _check(self, int fd) except -1:
        cdef struct_stat status
        if self.size == 0:
            raise self._refuse("is empty")
        if self.size > UINT64_MAX - max(self.guest_addr, self.user_addr, self.offset):
            raise self._refuse("wraps around")
        if fstat(fd, &status) != 0:
            raise self._refuse(f"fd {fd}: {os.strerror(errno)}")
        if not S_ISREG(status.st_mode):
            raise self._refuse(f"fd {fd} is not a regular file (mode {status.st_mode:#o})")
        if self.offset + self.size > <uint64_t> status.st_size:
            raise self._refuse(f"the file has {status.st_size:#x} bytes only")
        return 0

    cdef int _map(self, int fd) except -1:
        cdef size_t page = page_size(fd)
        cdef uint64_t start = self.offset - self.offset % page
        cdef size_t length = self.offset + self.size - start
        length += (page - length % page) % page
        cdef void *mapping = mmap(
            NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, <long long> start
        )
        if mapping == MAP_FAILED:
            raise self._refuse(f"cannot be mapped: {os.strerror(errno)}")
        cdef int guard = sigbus_guard(mapping, length, page) if sigbus_install() == 0 else -1
        if guard < 0:
            munmap(mapping, length)
            raise self._refuse("too many regions are mapped")
        madvise(mapping, length, MADV_DONTDUMP)  # best effort
        self.mapping = mapping
        self.mapped = length
        self.guard = guard
        self.host = <unsigned char *> mapping + (self.offset - start)
        return 0

    cdef int _keep(self, int fd) except -1:
        self.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)
        if self.fd < 0:
            raise self._refuse(f"fd {fd} cannot be duplicated: {os.strerror(errno)}")
        return 0

    @property
    def host_addr(self):
        """Where we see its first byte: for a front-end that is told of our faults."""
        return <size_t> self.host

    def await_pages(self, Arrivals arrivals not None):
        """Has its pages awaited. Nobody may have touched it yet.

        Raises:
            RefusedRequest: the file is of a kind for which the kernel does not do that, or the pages are too many.
        """
        try:
            self.pages = arrivals.register(self.mapping, self.mapped, page_size(self.fd))
        except OSError as error:
            raise self._refuse(f"its pages cannot be awaited: {error.strerror}") from None
        except MemoryError:
            raise self._refuse("it has too many pages to be awaited") from None

    def await_no_more(self, Arrivals arrivals not None):
        """Takes all pages as there. What is missing still is filled with zeros."""
        if self.pages is not None:
            arrivals.unregister(self.pages)
            self.pages = None

    cdef object _refuse(self, str why):
        return RefusedRequest(f"{self!r} at offset {self.offset:#x}: {why}")

    def __repr__(self):
        return f"Region(guest_addr={self.guest_addr:#x}, user_addr={self.user_addr:#x}, size={self.size:#x})"


cdef class Row:
    """Pages of regions that do not lie side by side, mapped once more as if they did."""

    def __cinit__(self, size_t size):
        """Room for so many bytes, whole pages, which `put` fills."""
        self.guard = -1
        self.pieces = []
        self.size = size
        cdef void *start = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
        if start == MAP_FAILED:
            raise RefusedRequest(f"{size} bytes of address space: {os.strerror(errno)}")
        self.start = <unsigned char *> start
        self.guard = sigbus_guard(start, size, IOMMU_PAGE)
        if self.guard < 0:
            raise RefusedRequest("too many regions are mapped")

    def __dealloc__(self):
        if self.guard >= 0:
            sigbus_release(self.guard)
        if self.start is not NULL:
            munmap(self.start, self.size)

    cdef int put(self, size_t at, Region region, unsigned char *host, size_t length) except -1:
        """Maps whole pages of a region, from where we see them; RefusedRequest for parts of larger pages."""
        cdef uint64_t offset = region.offset + (host - region.host)
        cdef int flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE
        # The kernel makes a part of a huge page a whole one, which would replace what is mapped behind the row.
        cdef size_t page = page_size(region.fd)
        if offset % page or at % page or length % page or mmap(
            self.start + at, length, PROT_READ | PROT_WRITE, flags, region.fd, <long long> offset
        ) == MAP_FAILED:
            raise RefusedRequest(
                f"{length} bytes at offset {offset:#x} cannot be mapped alone; are they huge pages?"
            )
        madvise(self.start + at, length, MADV_DONTDUMP)
        self.pieces.append((at + length, region.guest_addr + (host - region.host) - at))
        return 0

    cdef uint64_t guest_address(self, size_t offset) noexcept:
        """The guest address of a byte of the row."""
        for end, ahead in self.pieces:
            if offset < end:
                return <uint64_t> ahead + offset  # which may wrap around
        return UINT64_MAX


cdef class Window:
    """Contiguous bytes of guest memory, through the buffer protocol: `memoryview(window)` is writable.

    A window, and every view of it, keeps its region mapped. The guest may change the bytes at any time: copy
    first, then check, then use. Windows come from `GuestMemory.guest` and `GuestMemory.user`.
    """

    def __init__(self):
        raise TypeError("a Window comes from GuestMemory.guest or GuestMemory.user")

    def __len__(self):
        return self.size

    cdef uint64_t guest_address(self, const void *host) noexcept:
        """The guest address of a byte, by where we see it; UINT64_MAX if it is not here."""
        cdef unsigned char *byte = <unsigned char *> host
        if byte < self.data or byte >= self.data + self.size:
            return UINT64_MAX
        if self.row is not None:
            return self.row.guest_address(byte - self.row.start)
        return self.region.guest_addr + (byte - self.region.host)

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)


cdef int by_address(const void *a, const void *b) noexcept nogil:
    cdef uint64_t left = (<const Span *> a).first, right = (<const Span *> b).first
    return (left > right) - (left < right)


cdef Span *search(Span *spans, size_t count, uint64_t addr) noexcept nogil:
    """The span that holds the address, or NULL."""
    cdef size_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) // 2
        if addr < spans[middle].first:
            high = middle
        elif addr > spans[middle].last:
            low = middle + 1
        else:
            return &spans[middle]
    return NULL


cdef bint fits_u64(value, uint64_t *into) except -1:
    """Stores the integer and returns True, or False for one that no u64 can hold: sums may be too large."""
    try:
        into[0] = value
    except OverflowError:
        return False
    return True


cdef class GuestMemory:
    """The memory of one guest: an immutable set of regions.

    `regions` is what it was made of, in that order. With an `iotlb` all guest addresses are I/O virtual addresses.
    With `arrivals`, pages of regions that are awaited may be missing.
    """

    def __cinit__(self, regions=(), DeviceIotlb iotlb=None, Arrivals arrivals=None):
        """Gathers the regions.

        Raises:
            RefusedRequest: regions overlap, in guest or in user addresses, or are more than MAX_REGIONS.
        """
        cdef Region region
        cdef size_t i
        self.regions = tuple(regions)
        self.iotlb = iotlb
        self.arrivals = arrivals
        self.may_miss = iotlb is not None or arrivals is not None
        self.count = len(self.regions)
        if self.count > <size_t> MAX_REGIONS:
            raise RefusedRequest(f"{self.count} regions, of at most {MAX_REGIONS}")
        self.by_guest = <Span *> calloc(self.count + 1, sizeof(Span))
        self.by_user = <Span *> calloc(self.count + 1, sizeof(Span))
        if self.by_guest is NULL or self.by_user is NULL:
            raise MemoryError
        for i in range(self.count):
            region = <Region?> self.regions[i]
            self.by_guest[i] = Span(region.guest_addr, region.guest_addr + (region.size - 1), region.host, i)
            self.by_user[i] = Span(region.user_addr, region.user_addr + (region.size - 1), region.host, i)
        self._sort(self.by_guest, "guest")
        self._sort(self.by_user, "user")

    def __dealloc__(self):
        free(self.by_guest)
        free(self.by_user)

    cdef int _sort(self, Span *spans, str space) except -1:
        cdef size_t i
        qsort(spans, self.count, sizeof(Span), by_address)
        for i in range(1, self.count):
            if spans[i].first <= spans[i - 1].last:
                one, other = self.regions[spans[i - 1].index], self.regions[spans[i].index]
                raise RefusedRequest(f"{one!r} and {other!r} overlap in {space} addresses")
        return 0

    @property
    def lost(self):
        """True once a page vanished under an access: its file shrank, and zeros were read or bytes lost."""
        return self.is_lost()

    cdef bint is_lost(self) noexcept:
        cdef Region region
        cdef unsigned losses = sigbus_losses()
        if losses != self.losses_seen:
            self.found_lost |= self.has_rows  # it may have been in a row
            for region in self.regions:
                self.found_lost |= sigbus_lost(region.guard)
            self.losses_seen = losses
        return self.found_lost

    cdef int expect_whole(self) except -1:
        """Raises MemoryLost once a page vanished."""
        if self.is_lost():
            raise MemoryLost(LOST)
        return 0

    cdef object error(self, kind, str text):
        """The exception for what was read: `kind(text)`, unless the driver did not write what we read."""
        if self.is_lost():
            return MemoryLost(f"{LOST} ({text})")
        return kind(text)

    cdef Span *find(self, uint64_t guest_addr) noexcept:
        """The region that holds the guest physical address, or NULL. Mostly it is the one that was found last."""
        cdef Span *span = self.recent
        if span is NULL or guest_addr < span.first or guest_addr > span.last:
            span = search(self.by_guest, self.count, guest_addr)
            if span is not NULL:
                self.recent = span
        return span

    cdef unsigned char *locate(
        self, uint64_t guest_addr, uint64_t length, int access, uint64_t *room
    ) noexcept:
        """Where we see the first of `length` bytes, with `room` contiguous bytes from there on, at least 1.

        NULL if nowhere, or not yet, and `room` says how far to look no more. All that a driver names is looked up
        here, for what will be done there: READS or WRITES. All regions allow both.
        """
        cdef Span *span
        cdef unsigned char *host
        if self.iotlb is not None:
            host = self.translate(guest_addr, access, room)
        else:
            span = self.find(guest_addr)
            if span is NULL:
                room[0] = UINT64_MAX
                return NULL
            room[0] = span.last - guest_addr + 1
            host = span.host + (guest_addr - span.first)
        if self.arrivals is None or host is NULL or self._has_arrived(host, min(room[0], length)):
            return host
        return NULL

    cdef bint _has_arrived(self, unsigned char *host, uint64_t length) noexcept:
        """Whether these bytes are there, of the region that was found last."""
        cdef Region region = self.regions[self.recent.index]
        return self.arrivals.have(region, region.pages, host, length)

    cdef void begin_look(self) noexcept:
        """What is looked for from now on belongs together."""
        if self.iotlb is not None:
            self.iotlb.begin()
        if self.arrivals is not None:
            self.arrivals.begin()

    cdef bint has_missed(self) noexcept:
        """Whether a part of it has no translation, or is not there, yet: what was found counts for nothing."""
        return (self.iotlb is not None and self.iotlb.missed > 0) or (
            self.arrivals is not None and self.arrivals.missed > 0
        )

    cdef int end_look(self) except -1:
        """Tells of what is missing."""
        if self.iotlb is not None and self.iotlb.missed:
            self.iotlb.end()
        if self.arrivals is not None and self.arrivals.missed:
            self.arrivals.end()
        return 0

    cdef unsigned char *translate(self, uint64_t iova, int access, uint64_t *room) noexcept:
        """As `locate`, by the translation, whose access counts; NULL may be a miss of the IOTLB as well."""
        cdef Span *span = self.recent
        cdef uint64_t addr
        cdef Translation *found = self.iotlb.find(iova, access)
        room[0] = IOMMU_PAGE - iova % IOMMU_PAGE
        if found is NULL:
            return NULL
        addr = found.user_addr + (iova - found.iova.first)
        if span is NULL or addr < span.first or addr > span.last:
            span = search(self.by_user, self.count, addr)
            if span is NULL:
                return NULL
            self.recent = span
        room[0] = min(span.last - addr, found.iova.last - iova) + 1
        return span.host + (addr - span.first)

    cdef uint64_t guest_address(self, const void *host) noexcept:
        """The guest address of a byte of a region, by where we see it: the reverse of `locate`."""
        cdef unsigned char *byte = <unsigned char *> host
        cdef Span *span
        cdef size_t i
        for i in range(self.count):
            span = &self.by_guest[i]
            if span.host <= byte and <uint64_t> (byte - span.host) <= span.last - span.first:
                return span.first + <uint64_t> (byte - span.host)
        return UINT64_MAX

    cdef Window _window(self, Span *spans, addr, length):
        """The window in one of the two address spaces, or None if it is not inside one region."""
        cdef uint64_t start = 0, size = 0
        if not (fits_u64(addr, &start) and fits_u64(length, &size)):
            return None
        cdef Span *span = search(spans, self.count, start)
        if span is NULL or size > span.last - start + 1:
            return None
        cdef Window window = Window.__new__(Window)
        window.region = self.regions[span.index]
        window.data = span.host + (start - span.first)
        window.size = size
        return window

    def guest(self, addr, length):
        """The `length` bytes at a guest address.

        Raises:
            BadDescriptor: the range is not inside one region.
        """
        window = self._window(self.by_guest, addr, length)
        if window is None:
            raise BadDescriptor(f"{length} bytes at guest address {addr:#x} are not inside one region")
        return window

    def area(self, addr, length):
        """The `length` bytes of a ring's area, to be read and written: at a user address, or an I/O virtual one.

        All of them are asked for with both permissions. A driver shares its rings like that anyway.

        Raises:
            RefusedRequest: they are not inside one region; or, if they are translated, some are in none, or they
                are apart in parts of huge pages.
            NotThereYet: not all of them are translated, or there; it was told of the others.
        """
        cdef uint64_t start = 0, size = 0
        if self.iotlb is None:
            return self._arrived(self.user(addr, length))
        if not (fits_u64(addr, &start) and fits_u64(length, &size)) or not size or size - 1 > UINT64_MAX - start:
            raise RefusedRequest(f"{length} bytes at I/O virtual address {addr:#x}")
        return self._translated(start, size)

    cdef Window _arrived(self, Window window):
        """The window, if it is there."""
        cdef Region region = window.region
        if self.arrivals is not None and window.size:
            self.begin_look()
            if not self.arrivals.have(region, region.pages, window.data, window.size):
                self.end_look()
                raise NotThereYet(f"{window.size} bytes of {region!r}")
        return window

    cdef Window _translated(self, uint64_t iova, uint64_t length):
        """The window at an I/O virtual address, of at least one byte."""
        cdef uint64_t passed = 0, room = 0
        cdef unsigned char *first = NULL
        cdef unsigned char *host
        cdef Span *span = NULL
        cdef bint together = True
        self.begin_look()
        while passed < length:
            host = self.locate(iova + passed, length - passed, READS | WRITES, &room)
            if not passed:
                first, span = host, self.recent
            together &= host is not NULL and host == first + passed and self.recent is span
            passed += min(room, length - passed)
        if self.has_missed():
            self.end_look()
            raise NotThereYet(f"{length} bytes at I/O virtual address {iova:#x}")
        cdef Window window = Window.__new__(Window)
        if not together:
            window.row = self._in_a_row(iova - iova % IOMMU_PAGE, length + iova % IOMMU_PAGE)
            first = window.row.start + iova % IOMMU_PAGE
        window.region = self.regions[self.recent.index]
        window.data = first
        window.size = length
        return window

    cdef Row _in_a_row(self, uint64_t iova, uint64_t length):
        """The bytes at an I/O virtual address, which are translated, and which begin with a page."""
        cdef uint64_t passed = 0, room = 0
        cdef unsigned char *host
        cdef uint64_t size = length + (IOMMU_PAGE - length % IOMMU_PAGE) % IOMMU_PAGE
        cdef Row row = Row(size)
        self.is_lost()  # what was lost before is no matter of the row's
        self.has_rows = True
        while passed < size:
            host = self.translate(iova + passed, READS | WRITES, &room)
            room = min(room, size - passed)
            if host is NULL or room % IOMMU_PAGE:
                raise RefusedRequest(
                    f"{length} bytes at I/O virtual address {iova:#x} are not pages of shared memory"
                )
            row.put(passed, self.regions[self.recent.index], host, room)
            passed += room
        return row

    def user(self, addr, length):
        """The `length` bytes at a user address.

        Raises:
            RefusedRequest: the range is not inside one region.
        """
        window = self._window(self.by_user, addr, length)
        if window is None:
            raise RefusedRequest(f"{length} bytes at user address {addr:#x} are not inside one region")
        return window

    def read(self, guest_addr, length):
        """Copies `length` bytes from a guest address; the range may cross adjacent regions.

        Raises:
            BadDescriptor: part of the range is not guest memory.
            MemoryLost: a page vanished.
        """
        cdef uint64_t start = 0, size = 0
        self._expect(guest_addr, length, READS, &start, &size)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        self._copy(start, <unsigned char *> PyBytes_AS_STRING(data), size, False)
        return data

    def write(self, guest_addr, data):
        """Copies `data` to a guest address; the range may cross adjacent regions.

        Raises:
            BadDescriptor: part of the range is not guest memory; nothing was written.
            MemoryLost: a page vanished.
        """
        cdef Py_buffer view
        cdef uint64_t start = 0, size = 0
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._expect(guest_addr, view.len, WRITES, &start, &size)
            self._copy(start, <unsigned char *> view.buf, size, True)
        finally:
            PyBuffer_Release(&view)

    cdef int _expect(self, guest_addr, length, int access, uint64_t *start, uint64_t *size) except -1:
        """Stores the range as C numbers, or raises BadDescriptor unless all of it is guest memory."""
        cdef bint inside = fits_u64(guest_addr, start) and fits_u64(length, size)
        cdef uint64_t addr = start[0], left = size[0], room = 0
        while inside and left:
            inside = self.locate(addr, left, access, &room) is not NULL
            addr += min(room, left)
            left -= min(room, left)
        if not inside:
            raise BadDescriptor(f"{length} bytes at guest address {guest_addr:#x} are outside guest memory")
        return 0

    cdef int _copy(self, uint64_t addr, unsigned char *ours, uint64_t left, bint to_guest) except -1:
        """Copies between a buffer of ours and a range that `_expect` approved of."""
        cdef unsigned char *theirs
        cdef uint64_t room = 0
        while left:
            theirs = self.locate(addr, left, WRITES if to_guest else READS, &room)
            room = min(room, left)
            # The ranges may overlap: `data` may be a view of guest memory itself.
            memmove(theirs if to_guest else ours, ours if to_guest else theirs, room)
            ours += room
            addr += room
            left -= room
        self.expect_whole()
        return 0
