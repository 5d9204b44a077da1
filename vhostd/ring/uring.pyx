# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Uring: file I/O between guest memory and files that goes on while the program does something else.

An io_uring (io_uring(7)) is two queues in memory that we share with the kernel. We put requests into the one,
and the kernel takes them during a system call of ours. It puts results into the other whenever it has them.

Lifetime. The kernel touches guest memory until a request's result is in the queue, also after the io_uring was
closed. So a request owns its chain, which keeps the memory mapped, until its result was taken. Closing a Uring
waits for the kernel first.

Ordering. The kernel writes a result and then, with release, the tail of its queue. We load the tail with acquire
before we read the result, and the bytes in guest memory. We store the head with release when we have copied the
result. The queue of requests is read only while we are in io_uring_enter: no thread of the kernel polls it.

Bounds. There are at most `entries` requests, queued or in flight. The kernel's queues have room for more.

Restrictions. seccomp does not see what goes through an io_uring. So the kernel is told, before it takes a
request, which operations there will be. It refuses all others from then on.

Flags. With DEFER_TASKRUN epoll does not see results (on Linux 6.18), and only the thread that made a Uring could
close it. COOP_TASKRUN was no faster. So io_uring_setup gets neither.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, EBUSY, EFAULT, EINTR, ENOSYS, ETIME, ETIMEDOUT, errno
from libc.stdint cimport UINT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from posix.unistd cimport close
cimport cython

from vhostd.ring.chain cimport READ, WRITE, Chain, Stream
from vhostd.ring.system_calls cimport MOST_IOVECS, PyNumber_AsSsize_t, fits_file, iovec, touch

import os

from vhostd.errors import BadRequest

cdef extern from "barriers.h" nogil:
    uint32_t load_u32(const void *at)
    uint32_t load_acquire_u32(const void *at)
    void store_u32(void *at, uint32_t value)
    void store_release_u32(void *at, uint32_t value)

cdef extern from "<sys/mman.h>" nogil:
    enum: PROT_READ
    enum: PROT_WRITE
    enum: MAP_SHARED
    enum: MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long long offset)
    int munmap(void *addr, size_t length)

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>":
    enum: SYS_io_uring_setup
    enum: SYS_io_uring_enter
    enum: SYS_io_uring_register

cdef extern from "<linux/io_uring.h>":
    enum: IORING_OFF_SQ_RING
    enum: IORING_OFF_SQES
    enum: IORING_SETUP_R_DISABLED
    enum: IORING_REGISTER_RESTRICTIONS
    enum: IORING_REGISTER_ENABLE_RINGS
    enum: IORING_RESTRICTION_SQE_OP
    enum: IORING_RESTRICTION_SQE_FLAGS_ALLOWED
    enum: IOSQE_ASYNC
    enum: IORING_FEAT_EXT_ARG
    enum: IORING_ENTER_GETEVENTS
    enum: IORING_ENTER_EXT_ARG
    enum: IORING_OP_READV
    enum: IORING_OP_WRITEV
    enum: IORING_OP_FSYNC
    enum: IORING_OP_FALLOCATE
    enum: IORING_OP_ASYNC_CANCEL
    enum: IORING_FSYNC_DATASYNC
    enum: IORING_ASYNC_CANCEL_ALL
    enum: IORING_ASYNC_CANCEL_ANY
    struct io_uring_restriction:
        uint16_t opcode
        uint8_t sqe_op
        uint8_t sqe_flags
    struct io_uring_getevents_arg:
        uint64_t ts
    struct __kernel_timespec:
        int64_t tv_nsec

cdef enum:
    OPERATIONS = 5  # that we use

cdef uint64_t CANCEL = UINT64_MAX  # the user_data of what is no request
cdef long CANCEL_AGAIN = 10_000_000  # nanoseconds: a moment of waiting for the kernel


@cython.final
cdef class Uring:
    """An io_uring: file I/O on guest memory that goes on while the program does something else.

        uring.preadv(chain, fd, offset, n, token)       # as often as there is something to do; then
        uring.submit()                                  # one system call, and
        for token, result in uring.completions(): ...   # whenever `fileno` is readable

    Requests complete in any order. The result of each is what the system call of that name returns, or
    -errno; its token comes back as it is. A token that refers to the Uring keeps neither alive.

    From the call until its completion is taken, a request owns its chain: leave that alone. It stays, and its
    memory stays mapped, whatever else is dropped. An fd must stay open until `submit` only.

    `in_flight` counts the requests whose completions were not taken, queued ones included. It is all for one
    thread at a time; what a thread submitted, the kernel may cancel when that thread ends.
    """

    def __cinit__(self, uint32_t entries, *, bint in_threads=False):
        """Makes an io_uring for `entries` requests at a time, at most 32768.

        The kernel first tries whether a read or a write need not wait. Some file systems wait all the same, and
        `submit` with them; `in_threads` has the kernel try nothing and begin each in a thread of its own.

        Raises:
            OSError: the host has no io_uring, or none for us (ENOSYS, EPERM), or no more of what it takes
                (EMFILE, ENFILE, ENOMEM).
        """
        cdef io_uring_params params
        cdef uint32_t i
        self._set_up(entries, &params)
        self._map(&params)
        self.requests = <Request *> calloc(entries, sizeof(Request))
        self.numbers = <uint32_t *> calloc(entries, sizeof(uint32_t))
        if self.requests is NULL or self.numbers is NULL:
            raise MemoryError
        for i in range(entries):
            self.numbers[i] = i
        self.tokens = [None] * entries
        self.entries = entries
        self.in_threads = in_threads

    def __dealloc__(self):
        cdef uint32_t i
        self._shut(-1)
        if self.requests is not NULL:
            for i in range(self.entries):
                free(self.requests[i].iov)
        free(self.requests)
        free(self.numbers)

    def fileno(self):
        """An fd that is readable, for select and epoll, while there are completions to be taken."""
        self._expect_open()
        return self.fd

    # --- Requests ---------------------------------------------------------------------------------------

    def preadv(self, Chain chain not None, int fd, offset, n, token, int flags=0):
        """Queues a read of up to `n` bytes at `offset` of a file into the chain's writable stream.

        It may move less than `n`, as `Chain.preadv` may. The stream advances when the completion is taken.
        After -EFAULT for a page of guest memory that vanished, what is done next with the chain raises
        MemoryLost.

        Raises:
            BadRequest: fewer than `n` bytes are left, or no file has such an offset; nothing was queued.
            BlockingIOError: `entries` requests are in flight.
            ValueError: the chain is in flight already.
        """
        self._transfer(READ, chain, fd, offset, n, token, flags)

    def pwritev(self, Chain chain not None, int fd, offset, n, token, int flags=0):
        """Queues a write of up to `n` bytes of the chain's readable stream; otherwise like `preadv`."""
        self._transfer(WRITE, chain, fd, offset, n, token, flags)

    def fsync(self, int fd, token, *, bint data_only=True):
        """Queues an fdatasync, or an fsync: it makes durable what has completed, not what is in flight.

        Raises:
            BlockingIOError: `entries` requests are in flight.
        """
        self._queue(self._number(), IORING_OP_FSYNC, fd, 0, 0, 0, data_only * IORING_FSYNC_DATASYNC, token)

    def fallocate(self, int fd, int mode, offset, n, token):
        """Queues a fallocate, whose FALLOC_FL_* `mode` says what becomes of the `n` bytes at `offset`.

        Raises:
            BadRequest: no file has such a range.
            BlockingIOError: `entries` requests are in flight.
        """
        cdef long long position = 0
        cdef Py_ssize_t size = PyNumber_AsSsize_t(n, NULL)
        if not fits_file(offset, size, &position):
            raise BadRequest(f"no file has {n} bytes at offset {offset}")
        self._queue(self._number(), IORING_OP_FALLOCATE, fd, position, size, mode, 0, token)

    def submit(self):
        """Hands all that was queued to the kernel, in one system call; returns how many requests that were.

        What needs no waiting, a read from the page cache on most file systems, has completed on return. What
        the kernel has no resources for stays queued while others are in flight: `completions` hands it over.

        Raises:
            OSError: the kernel takes no request, and has none in flight; they stay queued.
        """
        self._expect_open()
        cdef uint32_t before = self.queued
        cdef long taken
        cdef int error
        while self.queued:
            with nogil:
                taken = enter(self.fd, self.queued, 0, 0, NULL, 0)
                error = errno
            if taken >= 0:
                self.queued -= min(taken, self.queued)
            elif error == EINTR:
                PyErr_CheckSignals()
            elif (error == EAGAIN or error == EBUSY) and self.in_flight > self.queued:
                break
            else:
                raise OSError(error, os.strerror(error))
        return before - self.queued

    def completions(self):
        """Takes what has completed: a list of `(token, result)`, which may be empty.

        It makes no system call, unless something is still queued, which it then submits.
        """
        cdef io_uring_cqe result
        cdef list found = []
        self._expect_open()
        if self.queued:
            self.submit()
        while self.open and self._next(&result):  # the garbage collector, at `append`, might close us
            found.append((self._complete(<uint32_t> result.user_data, result.res), result.res))
        return found

    def close(self, patience=None):
        """Ends all that is in flight, by cancelling it or by waiting for it; no completions will come.

        Meanwhile the thread waits, for ever or about `patience` seconds: a disk may take its time. May be called
        again.

        Raises:
            OSError: there was no way to wait, or not enough time (TimeoutError); the memory of what was in flight
                stays mapped for good, and the kernel may still do it.
        """
        cdef int error = self._shut(-1 if patience is None else patience * 1e9 / CANCEL_AGAIN)
        if error:
            raise OSError(error, os.strerror(error))

    # --- Queues -----------------------------------------------------------------------------------------

    cdef int _set_up(self, uint32_t entries, io_uring_params *params) except -1:
        memset(params, 0, sizeof(io_uring_params))
        params.flags = IORING_SETUP_R_DISABLED
        self.fd = <int> syscall(SYS_io_uring_setup, <long> entries, params)
        if self.fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.open = True
        if not params.features & IORING_FEAT_EXT_ARG:
            raise OSError(ENOSYS, "io_uring is there, but not as of Linux 5.11")
        return self._restrict()

    cdef int _restrict(self) except -1:
        """Has the kernel refuse all operations but ours, and begin to take requests."""
        cdef io_uring_restriction[OPERATIONS + 1] allowed
        cdef int i
        cdef uint8_t *ours = [
            IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_FSYNC, IORING_OP_FALLOCATE, IORING_OP_ASYNC_CANCEL
        ]
        memset(allowed, 0, sizeof(allowed))
        for i in range(OPERATIONS):
            allowed[i].opcode = IORING_RESTRICTION_SQE_OP
            allowed[i].sqe_op = ours[i]
        allowed[OPERATIONS].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED
        allowed[OPERATIONS].sqe_flags = IOSQE_ASYNC
        register(self.fd, IORING_REGISTER_RESTRICTIONS, allowed, OPERATIONS + 1)
        register(self.fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0)
        return 0

    cdef int _map(self, io_uring_params *params) except -1:
        """Maps the queues, which are one mapping since Linux 5.4, and the requests' slots."""
        cdef uint32_t i
        cdef uint32_t *slots
        self.queues_size = max(
            params.sq_off.array + params.sq_entries * sizeof(uint32_t),
            params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe),
        )
        self.sqes_size = params.sq_entries * sizeof(io_uring_sqe)
        self.queues = <unsigned char *> share(self.fd, self.queues_size, IORING_OFF_SQ_RING)
        self.sqes = <io_uring_sqe *> share(self.fd, self.sqes_size, IORING_OFF_SQES)
        self.sq_tail = self.queues + params.sq_off.tail
        self.sq_mask = params.sq_entries - 1
        self.cq_head = self.queues + params.cq_off.head
        self.cq_tail = self.queues + params.cq_off.tail
        self.cq_mask = params.cq_entries - 1
        self.cqes = <io_uring_cqe *> (self.queues + params.cq_off.cqes)
        slots = <uint32_t *> (self.queues + params.sq_off.array)
        for i in range(params.sq_entries):
            slots[i] = i
        return 0

    cdef int _expect_open(self) except -1:
        if not self.open:
            raise ValueError("the Uring is closed")
        return 0

    cdef int64_t _number(self) except -1:
        """The number of a request that is not in use; it is still not."""
        self._expect_open()
        if self.is_full():
            raise BlockingIOError(EAGAIN, f"{self.entries} requests are in flight")
        return self.numbers[self.in_flight]

    cdef int _transfer(self, int call, Chain chain, int fd, offset, amount, token, int flags) except -1:
        cdef Py_ssize_t n = chain._expect(amount, stream_of(call, chain), "transferred")
        return self.begin(call, chain, fd, chain._position(offset, n), n, token, flags)

    cdef bint is_full(self) noexcept:
        """Whether `begin` would raise BlockingIOError."""
        return self.in_flight == self.entries

    cdef int begin(
        self, int call, Chain chain, int fd, long long offset, size_t n, token, int flags
    ) except -1:
        """As `preadv` (READ) and `pwritev` (WRITE), for `n` bytes that are left, where a file may have them."""
        cdef Stream *stream = stream_of(call, chain)
        cdef int opcode = IORING_OP_READV if call == READ else IORING_OP_WRITEV
        cdef uint32_t number = <uint32_t> self._number()
        cdef Request *request = &self.requests[number]
        if chain.lent:
            raise ValueError(f"{chain!r} is in flight already")
        make_room(request, min(stream.end - stream.at, <size_t> MOST_IOVECS))
        request.count = chain._lend(stream, request.iov, n)
        self._queue(number, opcode, fd, offset, <uint64_t> request.iov, request.count, flags, token)
        Py_INCREF(chain)
        request.chain = <PyObject *> chain
        request.stream = stream
        chain.lent = True
        return 0

    cdef int _queue(
        self, uint64_t number, int opcode, int fd, uint64_t off, uint64_t addr, size_t size, int flags, token
    ) except -1:
        self.tokens[number] = token
        self._put(number, opcode, fd, off, addr, size, flags)
        self.in_flight += 1
        self.queued += 1
        return 0

    cdef void _put(
        self, uint64_t user_data, int opcode, int fd, uint64_t off, uint64_t addr, size_t size, int flags
    ) noexcept nogil:
        """Appends to the kernel's queue of requests, which has room."""
        cdef uint32_t tail = load_u32(self.sq_tail)
        cdef io_uring_sqe *sqe = &self.sqes[tail & self.sq_mask]
        memset(sqe, 0, sizeof(io_uring_sqe))
        sqe.opcode = <uint8_t> opcode
        sqe.flags = IOSQE_ASYNC if self.in_threads and user_data != CANCEL else 0
        sqe.fd = fd
        sqe.off = off
        sqe.addr = addr
        sqe.len = <uint32_t> size
        sqe.rw_flags = flags
        sqe.user_data = user_data
        store_release_u32(self.sq_tail, tail + 1)

    cdef void _take_back(self, uint32_t n) noexcept nogil:
        """Withdraws the `n` requests that were put last, and which the kernel has not seen."""
        store_u32(self.sq_tail, load_u32(self.sq_tail) - n)

    cdef bint _next(self, io_uring_cqe *result) noexcept nogil:
        """Takes a result out of the kernel's queue, if one is there."""
        cdef uint32_t head = load_u32(self.cq_head)
        if head == load_acquire_u32(self.cq_tail):
            return False
        result[0] = self.cqes[head & self.cq_mask]
        store_release_u32(self.cq_head, head + 1)
        return True

    cdef object _complete(self, uint32_t number, int result):
        """Ends a request, and returns its token."""
        cdef Request *request = &self.requests[number]
        token = self.tokens[number]
        self.tokens[number] = None
        self.in_flight -= 1
        self.numbers[self.in_flight] = number
        if request.chain is not NULL:
            if result > 0:
                (<Chain> request.chain)._advance(request.stream, result)
            elif result == -EFAULT:
                touch(request.iov, request.count)
            give_back(request)
        return token

    # --- The end ----------------------------------------------------------------------------------------

    cdef int _shut(self, long moments) noexcept:
        """Waits for the kernel, unless `moments` is negative only so long, and lets go of everything.

        Returns 0 or an errno.
        """
        cdef int error = 0
        if self.open:
            self.open = False
            with nogil:
                error = self._wait_for_all(moments)
            self._let_go()
            if not error:
                self._forget()
        return error

    cdef int _wait_for_all(self, long moments) noexcept nogil:
        """Waits until the kernel has nothing in flight; returns 0, or an errno if that is not to be had."""
        cdef io_uring_cqe result
        cdef uint32_t left = self.in_flight - self.queued
        cdef int error
        if left:
            self._take_back(self.queued)
        while left:
            self._cancel()
            error = wait(self.fd, left)
            if error and error != EINTR and error != ETIME and error != EAGAIN and error != EBUSY:
                return error
            while self._next(&result):
                left -= result.user_data != CANCEL
            if left and moments == 0:
                return ETIMEDOUT
            moments -= 1
        return 0

    cdef void _cancel(self) noexcept nogil:
        """Cancels what can be cancelled. It may miss what is just on its way through the kernel."""
        cdef int flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY
        self._put(CANCEL, IORING_OP_ASYNC_CANCEL, -1, 0, 0, 0, flags)
        if enter(self.fd, 1, 0, 0, NULL, 0) != 1:
            self._take_back(1)

    cdef void _let_go(self) noexcept:
        if self.queues is not NULL:
            munmap(self.queues, self.queues_size)
        if self.sqes is not NULL:
            munmap(self.sqes, self.sqes_size)
        close(self.fd)

    cdef void _forget(self) noexcept:
        """Drops all requests, of which the kernel has none."""
        cdef uint32_t i
        self.in_flight = self.queued = 0
        self.tokens = None
        for i in range(self.entries):
            if self.requests[i].chain is not NULL:
                give_back(&self.requests[i])


cdef inline Stream *stream_of(int call, Chain chain) noexcept:
    """What moves: the kernel reads into the one, and writes from the other."""
    return &chain.sink if call == READ else &chain.source


cdef long enter(
    int fd, uint32_t requests, uint32_t results, uint32_t flags, void *arg, size_t size
) noexcept nogil:
    return syscall(SYS_io_uring_enter, <long> fd, <long> requests, <long> results, <long> flags, arg, size)


cdef int register(int fd, uint32_t what, void *arguments, uint32_t count) except -1:
    if syscall(SYS_io_uring_register, <long> fd, <long> what, arguments, <long> count) < 0:
        raise OSError(errno, os.strerror(errno))
    return 0


cdef int wait(int fd, uint32_t results) noexcept nogil:
    """Waits a moment for so many results; returns 0 or an errno."""
    cdef __kernel_timespec moment
    cdef io_uring_getevents_arg arg
    memset(&moment, 0, sizeof(moment))
    memset(&arg, 0, sizeof(arg))
    moment.tv_nsec = CANCEL_AGAIN
    arg.ts = <uint64_t> &moment
    if enter(fd, 0, results, IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &arg, sizeof(arg)) < 0:
        return errno
    return 0


cdef void *share(int fd, size_t size, long long offset) except NULL:
    """Maps what we share with the kernel."""
    cdef void *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset)
    if mapping == MAP_FAILED:
        raise OSError(errno, os.strerror(errno))
    return mapping


cdef int make_room(Request *request, size_t count) except -1:
    """Makes room for so many iovecs."""
    cdef iovec *iov
    if count > request.room:
        iov = <iovec *> realloc(request.iov, count * sizeof(iovec))
        if iov is NULL:
            raise MemoryError
        request.iov = iov
        request.room = count
    return 0


cdef void give_back(Request *request) noexcept:
    """Lets go of the request's chain."""
    cdef PyObject *owned = request.chain
    cdef Chain chain = <Chain> owned
    request.chain = NULL
    chain.lent = False
    if request.stream is &chain.sink:
        chain.wrote(READ, request.iov, request.count, -1)  # as much as it may be
    Py_DECREF(chain)
