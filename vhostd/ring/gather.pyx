# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Gather: ranges of guest memory, one after the other, as one span of bytes.

Some requests do not carry data but say where it is: thousands of pages that a device reads from
again and again, long after the request was answered. They are checked once, and merged where they meet.
"""

from cpython.buffer cimport PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memmove

from vhostd.ring.memory cimport GuestMemory, Region, Span, fits_u64
from vhostd.ring.system_calls cimport MOST_IOVECS, SENDMSG, attempt, iovec, raise_for

from vhostd.errors import BadDescriptor, BadRequest

cdef uint64_t MOST_BYTES = INT64_MAX  # what `len` can say


cdef class Gather:
    """Ranges of guest memory, one after the other, as one span of bytes; `len` counts them.

    A `Gather` comes from `Chain.gather`. It never changes, though the bytes do, and keeps its memory mapped
    when the chain, the ring and the map that it comes from are gone.

    A range of the span that is not wholly inside raises BadRequest, whatever integers it is made of: it can
    only have come from the driver. A page that vanished raises MemoryLost.
    """

    def __cinit__(self, GuestMemory memory not None):
        self.memory = memory

    def __init__(self, *_):
        raise TypeError("a Gather comes from Chain.gather")

    def __dealloc__(self):
        free(self.pieces)

    def __len__(self):
        return self.size

    @property
    def ranges(self):
        """How many ranges are kept, of 32 bytes each: those that meet are one, one across regions is several."""
        return self.count

    def copy_rows(self, into, at, *, offset, row, rows, stride, into_stride):
        """Copies `rows` rows of `row` bytes: the i-th from `offset + i * stride` to `at + i * into_stride`.

        `into` is a writable buffer. When `row` and both strides are the same, one walk copies all.

        Raises:
            BadRequest: a row is not inside the span, or a number is negative; nothing was copied.
            ValueError: a row is not inside `into`, or rows overlap there; nothing was copied.
            MemoryLost: a page vanished; what was copied in its place are zeros.
        """
        cdef Py_buffer view
        cdef unsigned char *ours
        if not inside(self.size, offset, row, rows, stride):
            raise self._outside(f"{rows} rows of {row} bytes, {stride} apart, at {offset}")
        PyObject_GetBuffer(into, &view, PyBUF_WRITABLE)
        try:
            # Without an overlap there is no more to copy than `into` has room for, whatever a guest says.
            if not inside(view.len, at, row, rows, into_stride) or (rows > 1 and into_stride < row):
                raise ValueError(f"{rows} rows of {row} bytes, {into_stride} apart, at {at} of {view.len}")
            if rows and row:
                ours = <unsigned char *> view.buf + <size_t> at
                if rows == 1 or row == stride == into_stride:
                    self._copy(ours, offset, row * rows)
                else:
                    self._copy_rows(ours, offset, row, rows, stride, into_stride)
        finally:
            PyBuffer_Release(&view)
        self.memory.expect_whole()

    def sendmsg(self, int fd, offset, n, int flags=0):
        """Sends up to `n` bytes from `offset` on a socket; returns how many.

        One system call, without the GIL and without a copy on our side. It takes at most 1024 pieces of guest
        memory, and may send less than `n`.

        Raises:
            BadRequest: the bytes are not inside the span.
            OSError: the system call failed.
        """
        if not inside(self.size, offset, n, 1, 0):
            raise self._outside(f"{n} bytes at {offset}")
        cdef iovec iov[MOST_IOVECS]
        cdef size_t count = self._lend(iov, offset, n)
        return raise_for(attempt(self.memory, SENDMSG, fd, iov, count, 0, flags))

    def files(self):
        """The `(fd, offset in the file, length)` of each range that is kept, for sharing the memory.

        The fds are those of the regions: they are not to be closed, and open as long as the Gather lives.
        """
        cdef Piece piece
        cdef Region region
        found = []
        for piece in self.pieces[:self.count]:
            region = self.memory.regions[piece.span.index]
            found.append((region.fd, region.offset + (piece.host - piece.span.host), piece.length))
        return found

    def guest_ranges(self):
        """The `(guest_addr, length)` of each range that is kept, to gather the same in another memory."""
        cdef Piece piece
        return [
            (piece.span.first + <uint64_t> (piece.host - piece.span.host), piece.length)
            for piece in self.pieces[:self.count]
        ]

    # --- Ranges -----------------------------------------------------------------------------------------

    cdef int _add(self, guest_addr, length) except -1:
        """Appends a range: several pieces if it crosses regions, none if it is empty."""
        cdef Span *span
        cdef uint64_t addr = 0, left = 0, room
        if not (fits_u64(guest_addr, &addr) and fits_u64(length, &left)):
            raise self._refuse(guest_addr, length, "are outside guest memory")
        if left > MOST_BYTES - self.size:
            raise self._refuse(guest_addr, length, f"and {self.size} before are more than can be counted")
        while left:
            span = self.memory.find(addr)
            if span is NULL:
                raise self._refuse(guest_addr, length, "are outside guest memory")
            room = min(span.last - addr + 1, left)
            self._append(span, span.host + (addr - span.first), room)
            addr += room
            left -= room
        return 0

    cdef object _refuse(self, guest_addr, length, str why):
        return self.memory.error(BadDescriptor, f"{length} bytes at guest address {guest_addr:#x} {why}")

    cdef int _append(self, Span *span, unsigned char *host, size_t length) except -1:
        """Adds a piece behind all others, or to the last one if they meet."""
        # Regions may meet by chance where we map them; their files do not.
        cdef Piece *last = &self.pieces[self.count - 1] if self.count else NULL
        if last is not NULL and last.span is span and last.host + last.length == host:
            last.length += length
        else:
            if self.count == self.most:
                raise MemoryError(f"more than {self.most} ranges")
            if self.count == self.room:
                self._resize(2 * self.room + 1)
            self.pieces[self.count] = Piece(self.size, length, host, span)
            self.count += 1
        self.size += length
        return 0

    cdef int _resize(self, size_t room) except -1:
        cdef Piece *pieces = <Piece *> realloc(self.pieces, room * sizeof(Piece))
        if pieces is NULL:
            raise MemoryError
        self.pieces = pieces
        self.room = room
        return 0

    # --- The span ---------------------------------------------------------------------------------------

    cdef object _outside(self, str what):
        return self.memory.error(BadRequest, f"{what} are not inside the {self.size} gathered")

    cdef Piece *_find(self, size_t offset) noexcept:
        """The piece with the byte at `offset`, which must be there."""
        cdef size_t low = 0, high = self.count, middle
        while high - low > 1:
            middle = (low + high) // 2
            if self.pieces[middle].start <= offset:
                low = middle
            else:
                high = middle
        return &self.pieces[low]

    cdef void _copy_rows(
        self, unsigned char *ours, size_t offset, size_t row, size_t rows, size_t stride, size_t into_stride
    ) noexcept:
        cdef size_t i
        for i in range(rows):
            self._copy(ours + i * into_stride, offset + i * stride, row)

    cdef void _copy(self, unsigned char *ours, size_t offset, size_t n) noexcept:
        """Copies `n` bytes, at least 1, from `offset`; they must be there."""
        cdef Piece *piece = self._find(offset)
        cdef size_t skip = offset - piece.start, step
        while n:
            step = min(n, piece.length - skip)
            # The ranges may overlap: `into` may be a view of guest memory itself.
            memmove(ours, piece.host + skip, step)
            ours += step
            n -= step
            skip = 0
            piece += 1

    cdef size_t _lend(self, iovec *iov, size_t offset, size_t n) noexcept:
        """Writes the iovecs of the `n` bytes from `offset`, as far as a system call takes them."""
        if not n:
            return 0
        cdef Piece *piece = self._find(offset)
        cdef size_t skip = offset - piece.start, count = 0
        while n and count < MOST_IOVECS:
            iov[count] = iovec(piece.host + skip, min(n, piece.length - skip))
            n -= iov[count].iov_len
            count += 1
            skip = 0
            piece += 1
        return count


cdef bint inside(size_t size, start, row, rows, stride) except -1:
    """Are the rows inside `size` bytes? Any integers will do."""
    if start < 0 or row < 0 or rows < 0 or stride < 0:
        return False
    return start + ((rows - 1) * stride + row if rows else 0) <= size


cdef Gather gather(GuestMemory memory, ranges, size_t most):
    """The `(guest_addr, length)` ranges of the memory, or BadDescriptor if they are not all in it.

    MemoryError if more than `most` would have to be kept.
    """
    if memory.may_miss:
        raise TypeError("a device that gathers guest memory has to say so: `keeps_memory`")
    cdef Gather gathered = Gather.__new__(Gather, memory)
    gathered.most = most
    for guest_addr, length in ranges:
        gathered._add(guest_addr, length)
    if gathered.count:
        gathered._resize(gathered.count)
    return gathered
