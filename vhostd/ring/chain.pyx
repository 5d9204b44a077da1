# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Chain: one request's buffers, read and written as two streams.

The specification forbids a device to assume anything about how a driver cuts a request into
descriptors (virtio 1.3, 2.7.4.1), so a chain does not show it: there are bytes to read, then bytes to write.

Of whatever is written to a chain, the ring's log is told by `Chain.wrote`, if there is one. A piece of a chain is
a pointer; which guest address that is, the map says then.
"""

from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN
from libc.stdint cimport SIZE_MAX, UINT32_MAX, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove
cimport cython

from vhostd.ring.gather cimport gather
from vhostd.ring.iotlb cimport Extent, Extents
from vhostd.ring.memory cimport READS, WRITES, GuestMemory
from vhostd.ring.system_calls cimport (
    HOLE, MOST_IOVECS, PREADV, PWRITEV, RECVMSG, SENDMSG, PyNumber_AsSsize_t, attempt, fits_file, iovec,
    is_hole, raise_for,
)

from vhostd.errors import BadDescriptor, BadRequest

# virtio 1.3, 2.7.5.2 allows 2^32 bytes; one less, and every count of bytes fits the used ring's u32.
cdef uint64_t MOST_BYTES = UINT32_MAX

cdef GuestMemory NOWHERE = GuestMemory()


@cython.final
cdef class InFlight:
    """The chains of one ring that the device has: from `pop` until they are pushed, dropped, or forgotten.

    A chain that nobody refers to any more is not in flight, though it was never pushed: no work on it can be
    left. What is called back may be called in any thread.
    """

    def __cinit__(self):
        self.named = set()

    cdef void add(self, Chain chain) noexcept:
        self.chains += 1
        self.pieces += chain.count
        self.effort += 1 + chain.count // PIECES_OF_EFFORT
        chain.among = self
        if chain.named is not None:
            self.named.add(chain.named)

    cdef void remove(self, Chain chain) noexcept:
        self.chains -= 1
        self.pieces -= chain.count
        if chain.named is not None:
            self.named.discard(chain.named)
        if self.emptied is not None or self.eased is not None or self.returned is not None:
            self.tell()
        chain.among = None  # which may be the end of this object

    cdef bint uses(self, Extent iova) except -1:
        """Whether a chain has a buffer at any of these I/O virtual addresses."""
        cdef Extents named
        for named in self.named:
            if named.overlap(iova):
                return True
        return False

    cdef void tell(self) noexcept:
        """Calls back for what has come true."""
        if self.emptied is not None and self.chains == self.waiting:
            emptied, self.emptied = self.emptied, None
            emptied()
        if self.returned is not None:
            returned, self.returned = self.returned, None
            returned()
        if self.eased is not None and not self.held and self.pieces <= MOST_PIECES // 2:
            eased, self.eased = self.eased, None
            eased()


@cython.freelist(64)
@cython.no_gc
cdef class Chain:
    """One request: two streams, readable then writable, independent of descriptor boundaries.

    Chains come from a ring's `pop` and go back with its `push`; between the two the device owns the buffers.
    A chain keeps the memory that it was resolved against mapped, also when the ring moves to a new map.

    A buffer may lie outside the memory that the front-end shares: `unreachable`. What would read or write a byte
    of it raises BadRequest, or OSError with EFAULT in an io_uring, and moves nothing; the rest of the chain is as
    good as any.

    Counts are in bytes. An `n` that is negative or more than what is left raises BadRequest and consumes
    nothing: it can only have come from the driver. After MemoryLost a chain is only good for `push`.
    """

    def __cinit__(self):
        self.iov = self.few
        self.room = FEW
        self.memory = NOWHERE

    def __init__(self):
        raise TypeError("a Chain comes from a ring's pop")

    def __dealloc__(self):
        if self.among is not None:
            if self.among.gone is not None:
                self.among.gone.add(self.number)
            self.among.remove(self)
        if self.iov is not self.few:
            free(self.iov)

    def __repr__(self):
        return (
            f"Chain(head={self.head}, readable={self.source.left}, "
            f"writable={self.sink.left}, written={self.written})"
        )

    @property
    def readable(self):
        """Bytes left to read."""
        return self.source.left

    @property
    def writable(self):
        """Bytes left to write."""
        return self.sink.left

    @property
    def given_up(self):
        """Whether nobody waits for it any more: what goes on for a while looks at this between its steps.

        Its driver gets it back in no case. It is pushed all the same, when the work on it has ended.
        """
        return self.among is not None and self.among.given_up

    @property
    def unreachable(self):
        """What to tell of a chain that is not wholly in guest memory; None for all others."""
        if not self.has_holes:
            return None
        return (
            f"chain {self.head}: {self.hole_length} bytes at guest address {self.hole_addr:#x} are outside the memory "
            "that the front-end shares; is share=on missing from a memory backend?"
        )

    def read(self, n):
        """Takes exactly `n` bytes from the readable stream."""
        cdef size_t size = self._expect(n, &self.source, "read")
        self._reach(&self.source, size)
        cdef bytes data = PyBytes_FromStringAndSize(NULL, size)
        self._copy(&self.source, <unsigned char *> PyBytes_AS_STRING(data), size)
        self.memory.expect_whole()
        return data

    def unpack(self, layout):
        """Takes a struct from the readable stream: `layout.unpack` of its next `layout.SIZE` bytes."""
        return layout.unpack(self.read(layout.SIZE))

    def write(self, data):
        """Writes all of `data` to the writable stream, or raises BadRequest and writes nothing."""
        cdef Py_buffer view
        cdef size_t size
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            size = self._expect(view.len, &self.sink, "written")
            self._reach(&self.sink, size)
            self._copy(&self.sink, <unsigned char *> view.buf, size)
        finally:
            PyBuffer_Release(&view)
        self.memory.expect_whole()

    def reserve(self, n):
        """Passes over `n` bytes of the writable stream, which are filled in later: `Reserved`.

        They count as written. For a header that says how much came after it.

        Raises:
            BadRequest: fewer are left, or one is not in guest memory.
        """
        cdef size_t size = self._expect(n, &self.sink, "reserved")
        self._reach(&self.sink, size)
        return reserve(self, size)

    def skip(self, n):
        """Passes over `n` bytes of the readable stream."""
        self._advance(&self.source, self._expect(n, &self.source, "skipped"))

    def skip_writable(self, n):
        """Passes over `n` bytes of the writable stream: they stay as they are and count as written."""
        self._advance(&self.sink, self._expect(n, &self.sink, "skipped"))

    def preadv(self, int fd, offset, n, int flags=0):
        """Reads up to `n` bytes at `offset` of a file into the writable stream; returns how many.

        One system call, without the GIL and without a copy on our side. It takes at most 1024 pieces of guest
        memory, may move less than `n`, and moves nothing at the end of a file. The stream advances by the
        result. `flags` are those of preadv2(2): with os.RWF_NOWAIT it moves what is in the page cache.

        Raises:
            BadRequest: fewer than `n` bytes are left, or no file has such an offset.
            OSError: the system call failed; the stream is where it was. BlockingIOError says that, with
                RWF_NOWAIT, there was nothing to move without waiting.
        """
        return self._submit(PREADV, fd, offset, n, flags)

    def pwritev(self, int fd, offset, n, int flags=0):
        """Writes up to `n` bytes of the readable stream at `offset` of a file; otherwise like `preadv`.

        With os.RWF_DSYNC they are on stable storage when it returns.
        """
        return self._submit(PWRITEV, fd, offset, n, flags)

    def sendmsg(self, int fd, n, int flags=0):
        """Sends up to `n` bytes of the readable stream on a socket; otherwise like `preadv`."""
        return self._submit(SENDMSG, fd, 0, n, flags)

    def recvmsg(self, int fd, n, int flags=0):
        """Receives up to `n` bytes from a socket into the writable stream; otherwise like `preadv`.

        With MSG_TRUNC the result may be more than `n`; the stream then advances by `n`.
        """
        return self._submit(RECVMSG, fd, 0, n, flags)

    def gather(self, ranges, size_t most=SIZE_MAX):
        """The `(guest_addr, length)` ranges of guest memory, one after the other, as one span of bytes.

        They are looked up in the memory that the chain was resolved against, and outlive the chain; nothing
        of the chain is consumed. Empty ranges add nothing.

        Raises:
            BadDescriptor: part of a range is not guest memory, or the span has 2^63 bytes or more.
            MemoryError: more than `most` ranges would have to be kept, counted as in `Gather.ranges`.
        """
        return gather(self.memory, ranges, most)

    # --- For shortcuts ----------------------------------------------------------------------------------

    cdef bint peek(self, void *into, size_t n) except -1:
        """Copies the next `n` bytes of the readable stream, which stay there, if they lie in one piece.

        So it returns True; False also for a chain that is not wholly in guest memory.

        Raises:
            MemoryLost: a page vanished.
        """
        if self.source.left < n or self.iov[self.source.at].iov_len < n or self.has_holes:
            return False
        memcpy(into, self.iov[self.source.at].iov_base, n)
        self.memory.expect_whole()
        return True

    cdef int take(self, void *into, size_t n) except -1:
        """Takes the next `n` bytes of the readable stream, as `read` does."""
        if n > self.source.left:
            self._expect(n, &self.source, "read")
        self._reach(&self.source, n)
        self._copy(&self.source, <unsigned char *> into, n)
        return self.memory.expect_whole()

    cdef int put(self, const void *ours, size_t n) except -1:
        """Writes the next `n` bytes of the writable stream, as `write` does."""
        if n > self.sink.left:
            self._expect(n, &self.sink, "written")
        self._reach(&self.sink, n)
        self._copy(&self.sink, <unsigned char *> ours, n)
        return self.memory.expect_whole()

    cdef ssize_t attempt(
        self, int call, int fd, long long offset, size_t n, int flags, size_t skip=0
    ) except? -1:
        """Has bytes read into the writable stream (READ, RECEIVE), or the readable ones written (WRITE, SEND).

        READ and WRITE are of a file, as `preadv` and `pwritev`; RECEIVE and SEND of a socket, as `recvmsg` and
        `sendmsg`. It is for the `n` bytes behind the next `skip`, both of which must be left; but the stream
        stays where it is, and a system call that fails is -errno.

        Raises:
            MemoryLost: a page vanished.
        """
        cdef iovec iov[MOST_IOVECS]
        cdef bint fills = call == READ or call == RECEIVE
        cdef size_t count = self._lend(&self.sink if fills else &self.source, iov, n, skip)
        cdef ssize_t done = self._call(call, fd, iov, count, offset, flags)
        if done > 0 and self.among is not None:
            self.among.effort += done // BYTES_OF_EFFORT
        return done

    cdef void finish(self, unsigned char status) noexcept:
        """Writes the last byte of the writable stream, which has one; what is before it counts as written."""
        self._advance(&self.sink, self.sink.left - 1)
        self._copy(&self.sink, &status, 1)

    # --- For the rings ----------------------------------------------------------------------------------

    cdef int add(self, uint64_t guest_addr, uint32_t length, bint writable) except -1:
        """Appends a buffer: several iovecs if it crosses regions, none if it is empty.

        What is left of it where there is no region is a hole, as far as the buffer goes.
        """
        cdef unsigned char *host
        cdef uint64_t room = 0
        if self.writing and not writable:
            raise self.memory.error(
                BadDescriptor, f"chain {self.head}: a readable buffer at {guest_addr:#x} after a writable one"
            )
        self.writing = writable
        if self.source.left + self.sink.left + length > MOST_BYTES:
            raise self.memory.error(BadDescriptor, f"chain {self.head}: more than {MOST_BYTES:#x} bytes")
        if length and self.memory.iotlb is not None:
            if self.named is None:
                self.named = Extents()
            self.named.add(guest_addr, length)
        while length:
            host = self.memory.locate(guest_addr, length, WRITES if writable else READS, &room)
            if host is NULL:
                if not self.has_holes:
                    self.has_holes, self.hole_addr, self.hole_length = True, guest_addr, length
                host = <unsigned char *> HOLE
            room = min(room, length)
            self._append(host, room, writable)
            guest_addr += room
            length -= <uint32_t> room
        return 0

    cdef int _append(self, unsigned char *host, size_t length, bint writable) except -1:
        """Adds an iovec behind all others; readable ones come first."""
        if self.count == self.room:
            self._grow()
        self.iov[self.count] = iovec(host, length)
        self.count += 1
        self.sink.end = self.count
        if writable:
            self.sink.left += length
        else:
            self.source.left += length
            self.source.end = self.sink.at = self.count
        return 0

    cdef int _grow(self) except -1:
        if self.room >= MOST_OF_CHAIN:
            raise self.memory.error(
                BadDescriptor, f"chain {self.head}: more than {MOST_OF_CHAIN} pieces of guest memory"
            )
        cdef iovec *more = <iovec *> malloc(2 * self.room * sizeof(iovec))
        if more is NULL:
            raise MemoryError
        memcpy(more, self.iov, self.room * sizeof(iovec))
        if self.iov is not self.few:
            free(self.iov)
        self.iov = more
        self.room *= 2
        return 0

    # --- Streams ----------------------------------------------------------------------------------------

    cdef Py_ssize_t _expect(self, amount, Stream *stream, str what) except -1:
        """The amount as a C number, if so many bytes are left in the stream."""
        cdef Py_ssize_t n = PyNumber_AsSsize_t(amount, NULL)
        if n < 0 or <size_t> n > stream.left:
            raise self.memory.error(
                BadRequest, f"chain {self.head}: {amount} bytes to be {what}, {stream.left} left"
            )
        return n

    cdef int _reach(self, Stream *stream, size_t n) except -1:
        """Raises BadRequest if any of the next `n` bytes, which must be left, is not in guest memory."""
        cdef size_t at = stream.at
        cdef size_t passed = 0
        while self.has_holes and passed < n:
            if is_hole(self.iov[at].iov_base):
                raise self.memory.error(BadRequest, self.unreachable)
            passed += self.iov[at].iov_len
            at += 1
        return 0

    cdef void _copy(self, Stream *stream, unsigned char *ours, size_t n) noexcept:
        """Moves `n` bytes, which must be left, out of the readable or into the writable stream.

        There is nothing to be moved in a hole, where `_reach` would have raised.
        """
        cdef iovec *iov
        cdef size_t step
        while n:
            iov = &self.iov[stream.at]
            step = min(n, iov.iov_len)
            # The ranges may overlap: `data` of `write` may be a view of guest memory itself.
            if is_hole(iov.iov_base):
                pass
            elif stream is &self.sink:
                memmove(iov.iov_base, ours, step)
                if self.is_logged():
                    self.wrote(RECVMSG, iov, 1, step)
            else:
                memcpy(ours, iov.iov_base, step)
            self._advance(stream, step)
            ours += step
            n -= step

    cdef void _advance(self, Stream *stream, size_t n) noexcept:
        """Passes over `n` bytes of the stream, or over what is left of it."""
        cdef iovec *iov
        cdef size_t step
        n = min(n, stream.left)
        stream.left -= n
        if stream is &self.sink:
            self.written += n
        while n:
            iov = &self.iov[stream.at]
            step = min(n, iov.iov_len)
            iov.iov_base = <unsigned char *> iov.iov_base + step
            iov.iov_len -= step
            stream.at += iov.iov_len == 0
            n -= step

    cdef size_t _lend(self, Stream *stream, iovec *iov, size_t n, size_t skip=0) noexcept:
        """Copies the iovecs of `n` bytes behind the next `skip`, both of which must be left.

        It copies as many as a system call takes, and returns how many.
        """
        cdef size_t count = 0
        cdef size_t at = stream.at
        while skip and skip >= self.iov[at].iov_len:
            skip -= self.iov[at].iov_len
            at += 1
        while n and count < MOST_IOVECS:
            iov[count] = iovec(<unsigned char *> self.iov[at].iov_base + skip, self.iov[at].iov_len - skip)
            iov[count].iov_len = min(n, iov[count].iov_len)
            n -= iov[count].iov_len
            skip = 0
            at += 1
            count += 1
        return count

    cdef long long _position(self, offset, Py_ssize_t n) except -1:
        """The offset as a C number, if a file may have `n` bytes there."""
        cdef long long position = 0
        if not fits_file(offset, n, &position):
            raise BadRequest(f"chain {self.head}: no file has {n} bytes at offset {offset}")
        return position

    cdef ssize_t _call(
        self, int call, int fd, iovec *iov, size_t count, long long offset, int flags
    ) except? -1:
        """Makes a system call on the pieces, as `attempt` of system_calls."""
        cdef ssize_t done = -1
        if not self.is_logged():
            return attempt(self.memory, call, fd, iov, count, offset, flags)
        try:
            done = attempt(self.memory, call, fd, iov, count, offset, flags)
        finally:
            self.wrote(call, iov, count, done)
        return done

    cdef void wrote(self, int call, iovec *iov, size_t count, ssize_t done) noexcept:
        """Such a call has written to these pieces, `done` bytes or -errno: all that is written passes here."""
        # How much a read has written that failed, or ended early, the kernel does not say.
        cdef size_t left = SIZE_MAX
        cdef size_t i, step
        if not self.is_logged() or call == PWRITEV or call == SENDMSG:
            return
        if call == RECVMSG and (done >= 0 or done == -EAGAIN):
            left = max(done, 0)
        for i in range(count):
            step = min(left, iov[i].iov_len)
            if step and not is_hole(iov[i].iov_base):
                self.among.log.dirtied(self.memory.guest_address(iov[i].iov_base), step)
            left -= step

    cdef object _submit(self, int call, int fd, offset, amount, int flags):
        cdef Stream *stream = &self.sink if call == PREADV or call == RECVMSG else &self.source
        cdef Py_ssize_t n = self._expect(amount, stream, "transferred")
        cdef long long position = self._position(offset, n)
        self._reach(stream, n)
        # The chain's own iovecs stay as they are: another thread may look at them meanwhile.
        cdef iovec iov[MOST_IOVECS]
        cdef size_t count = self._lend(stream, iov, n)
        cdef ssize_t done = raise_for(self._call(call, fd, iov, count, position, flags))
        self._advance(stream, min(done, n))
        return done


cdef class Reserved:
    """A part of a chain's writable stream, to be filled in once, before the chain is pushed.

    `size` is its length. It comes from `Chain.reserve`, and keeps the chain in flight until it is filled.
    """

    def __init__(self, *_):
        raise TypeError("a Reserved comes from Chain.reserve")

    def __dealloc__(self):
        free(self.iov)

    def fill(self, data):
        """Writes all of `data`.

        Raises:
            ValueError: it is not `size` bytes, or they were written before, or the chain was given back.
            MemoryLost: a page vanished.
        """
        cdef Chain chain = self.chain
        cdef Py_buffer view
        cdef unsigned char *ours
        cdef size_t i
        if chain is None or chain.among is None:
            raise ValueError("filled already, or the chain was given back")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if <size_t> view.len != self.size:
                raise ValueError(f"{view.len} bytes to fill {self.size}")
            ours = <unsigned char *> view.buf
            for i in range(self.count):
                memmove(self.iov[i].iov_base, ours, self.iov[i].iov_len)
                ours += self.iov[i].iov_len
            chain.wrote(RECVMSG, self.iov, self.count, self.size)
        finally:
            PyBuffer_Release(&view)
        self.chain = None
        chain.memory.expect_whole()


cdef Reserved reserve(Chain chain, size_t size):
    """The next `size` bytes of the writable stream, which are there and in guest memory."""
    cdef Reserved room = Reserved.__new__(Reserved)
    cdef Stream *sink = &chain.sink
    cdef size_t step
    room.chain = chain
    room.size = size
    room.iov = <iovec *> malloc((sink.end - sink.at + 1) * sizeof(iovec))
    if room.iov is NULL:
        raise MemoryError
    while size:
        step = min(size, chain.iov[sink.at].iov_len)
        room.iov[room.count] = iovec(chain.iov[sink.at].iov_base, step)
        room.count += 1
        chain._advance(sink, step)
        size -= step
    return room
