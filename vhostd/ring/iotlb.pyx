# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""DeviceIotlb: where the I/O virtual addresses lie that a driver behind an IOMMU uses.

The front-end knows the IOMMU's page tables. It sends translations that were asked for, and takes them back when
the guest changes its tables (vhost-user, "IOMMU support"). A translation leads to a user address; GuestMemory finds
that in its regions, or finds that it is not shared.

An address without a translation is a *miss*. Whoever looks addresses up begins, looks, and ends: if there were
misses, what was found counts for nothing, the front-end is told of all of them, and it is looked again later.
"""

from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memmove

from vhostd.errors import RefusedRequest

cdef int ANY_ACCESS = 3
cdef size_t FEW = 4


cdef class DeviceIotlb:
    """The translations that the front-end has sent. More than MOST_TRANSLATIONS make it forget all others."""

    def __dealloc__(self):
        free(self.table)

    def __len__(self):
        return self.count

    def when_missed(self, call):
        """Has `call` called with the misses of each look, as `(iova, access)`; None calls that off.

        They are one for each page of 4096 bytes. The access is 1 to read there, 2 to write, 3 for both.
        """
        self.tell = call

    def update(self, uint64_t iova, uint64_t size, uint64_t user_addr, int access):
        """Takes a translation, in place of all others of these addresses.

        Raises:
            RefusedRequest: it is empty, wraps around, or gives no access that there is.
        """
        if size == 0 or size - 1 > UINT64_MAX - max(iova, user_addr):
            raise RefusedRequest(f"a translation of {size:#x} bytes from {iova:#x} to {user_addr:#x}")
        if not 0 < access <= ANY_ACCESS:
            raise RefusedRequest(f"a translation of {iova:#x} with permissions {access}")
        cdef Translation new = Translation(Extent(iova, iova + (size - 1)), user_addr, access)
        self.merge(&new)
        self.splice(new.iova, &new)

    def invalidate(self, uint64_t first, uint64_t last):
        """Forgets the translations of the addresses from `first` to and with `last`."""
        self.splice(Extent(first, last), NULL)

    def clear(self):
        """Forgets all translations."""
        self.count = 0

    def allows(self, uint64_t iova, int access):
        """Whether there is a translation of the address, for such an access."""
        cdef size_t at = self.search(iova)
        return at < self.count and self.table[at].iova.first <= iova and self.table[at].access & access == access

    def covers(self, uint64_t iova):
        """Whether there is a translation of the address, for any access."""
        return self.allows(iova, 0)

    # --- For guest memory -------------------------------------------------------------------------------

    cdef Translation *find(self, uint64_t iova, int access) noexcept:
        """The translation of an address, for such an access; else NULL, and it is a miss."""
        cdef size_t at = self.recent
        if at >= self.count or iova < self.table[at].iova.first or iova > self.table[at].iova.last:
            at = self.search(iova)
            if at == self.count or iova < self.table[at].iova.first:
                self.note(iova, access)
                return NULL
            self.recent = at
        if self.table[at].access & access != access:
            self.note(iova, access)
            return NULL
        return &self.table[at]

    cdef void begin(self) noexcept:
        """The looks from now on belong together."""
        self.missed = 0

    cdef bint has_missed(self, Miss miss) noexcept:
        """Whether that is one of their misses, or in the page of one."""
        cdef size_t i
        for i in range(self.missed):
            if self.misses[i].access == miss.access and (self.misses[i].iova ^ miss.iova) < IOMMU_PAGE:
                return True
        return False

    cdef int end(self) except -1:
        """Tells of the misses."""
        cdef size_t i
        if self.tell is not None:
            self.tell([(self.misses[i].iova, self.misses[i].access) for i in range(self.missed)])
        return 0

    cdef void note(self, uint64_t iova, int access) noexcept:
        cdef Miss miss = Miss(iova, access)
        if self.missed < MOST_MISSES and not self.has_missed(miss):
            self.misses[self.missed] = miss
            self.missed += 1

    # --- The table --------------------------------------------------------------------------------------

    cdef size_t search(self, uint64_t iova) noexcept:
        """The first translation that does not end before the address: all before it do; `count` if all do."""
        cdef size_t low = 0, high = self.count, middle
        while low < high:
            middle = (low + high) // 2
            if self.table[middle].iova.last < iova:
                low = middle + 1
            else:
                high = middle
        return low

    cdef void merge(self, Translation *new) noexcept:
        """Makes it cover its neighbours as well, if they say the same of addresses next to it."""
        cdef size_t at = self.search(new.iova.first)
        cdef Translation *near
        if at:
            near = &self.table[at - 1]
            if near.iova.last + 1 == new.iova.first and follows(near, new):
                new.iova.first = near.iova.first
                new.user_addr = near.user_addr
        if new.iova.last < UINT64_MAX:
            at = self.search(new.iova.last + 1)
            near = &self.table[at]
            if at < self.count and near.iova.first == new.iova.last + 1 and follows(new, near):
                new.iova.last = near.iova.last

    cdef int splice(self, Extent cut, const Translation *new) except -1:
        """Takes these addresses out of all translations, and puts a new one there, or none."""
        cdef Translation left[3]
        cdef size_t count = 0, low, high
        self.make_room()
        low = high = self.search(cut.first)
        while high < self.count and self.table[high].iova.first <= cut.last:
            high += 1
        if low < high and self.table[low].iova.first < cut.first:
            left[count] = self.table[low]
            left[count].iova.last = cut.first - 1
            count += 1
        if new is not NULL:
            left[count] = new[0]
            count += 1
        if low < high and self.table[high - 1].iova.last > cut.last:
            left[count] = self.table[high - 1]
            left[count].user_addr += cut.last + 1 - left[count].iova.first
            left[count].iova.first = cut.last + 1
            count += 1
        memmove(&self.table[low + count], &self.table[high], (self.count - high) * sizeof(Translation))
        memcpy(&self.table[low], left, count * sizeof(Translation))
        self.count = self.count + count - (high - low)
        return 0

    cdef int make_room(self) except -1:
        """For two more than there are: a translation may be cut in two, and one be put in between."""
        cdef Translation *table
        if self.count + 2 > MOST_TRANSLATIONS:
            self.clear()
        if self.count + 2 > self.room:
            table = <Translation *> realloc(self.table, (2 * self.room + 2) * sizeof(Translation))
            if table is NULL:
                raise MemoryError
            self.table = table
            self.room = 2 * self.room + 2
        return 0


cdef bint follows(const Translation *one, const Translation *other) noexcept:
    """Does the other go on, where it lies, behind the one?"""
    cdef uint64_t length = one.iova.last - one.iova.first + 1
    return one.access == other.access and one.user_addr + length == other.user_addr


cdef class Extents:
    """Several extents of addresses: those of a chain's buffers, whose invalidation waits for the chain."""

    def __dealloc__(self):
        free(self.each)

    cdef int add(self, uint64_t first, uint64_t length) except -1:
        """Adds one, of at least one byte. One that wraps around counts as all addresses."""
        cdef Extent *each
        cdef uint64_t last = first + length - 1
        if self.count == self.room:
            each = <Extent *> realloc(self.each, (2 * self.room + FEW) * sizeof(Extent))
            if each is NULL:
                raise MemoryError
            self.each = each
            self.room = 2 * self.room + FEW
        self.each[self.count] = Extent(first, last) if first <= last else Extent(0, UINT64_MAX)
        self.count += 1
        return 0

    cdef bint overlap(self, Extent other) noexcept:
        """Whether one of them has an address that is in the other as well."""
        cdef size_t i
        for i in range(self.count):
            if self.each[i].first <= other.last and other.first <= self.each[i].last:
                return True
        return False
