# cython: language_level=3
"""An io_uring, as the other native modules use it."""

cimport cython
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from vhostd.ring.chain cimport Chain, Stream
from vhostd.ring.system_calls cimport iovec

cdef extern from "<linux/io_uring.h>":
    struct io_sqring_offsets:
        uint32_t tail
        uint32_t ring_mask
        uint32_t array
    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t cqes
    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        int rw_flags  # for other operations the same field has other names
        uint64_t user_data
    struct io_uring_cqe:
        uint64_t user_data
        int32_t res


cdef struct Request:
    # `stream` of `chain`, which the request owns, moves when it is done; both are NULL if only a file counts.
    PyObject *chain
    Stream *stream
    # What the kernel was told of the stream; the array has `room`, and stays for the next request.
    iovec *iov
    size_t count
    size_t room


@cython.final
cdef class Uring:
    cdef readonly uint32_t in_flight
    cdef uint32_t entries
    cdef uint32_t queued  # of those in flight: the kernel does not know of them yet
    cdef bint in_threads  # of the kernel's, from the beginning
    cdef bint open  # `fd` is ours: when __cinit__ was not even called, all fields are 0
    cdef int fd
    cdef unsigned char *queues  # both
    cdef size_t queues_size
    cdef io_uring_sqe *sqes
    cdef size_t sqes_size
    cdef void *sq_tail
    cdef uint32_t sq_mask
    cdef void *cq_head
    cdef void *cq_tail
    cdef uint32_t cq_mask
    cdef io_uring_cqe *cqes
    cdef Request *requests  # `entries`: a request's number is its user_data
    cdef uint32_t *numbers  # `entries`: those from `in_flight` on are not in use
    cdef list tokens  # by number

    cdef int begin(
        self, int call, Chain chain, int fd, long long offset, size_t n, token, int flags
    ) except -1
    cdef bint is_full(self) noexcept
    cdef int _set_up(self, uint32_t entries, io_uring_params *params) except -1
    cdef int _restrict(self) except -1
    cdef int _map(self, io_uring_params *params) except -1
    cdef int _expect_open(self) except -1
    cdef int64_t _number(self) except -1
    cdef int _transfer(self, int call, Chain chain, int fd, offset, amount, token, int flags) except -1
    cdef int _queue(
        self, uint64_t number, int opcode, int fd, uint64_t off, uint64_t addr, size_t size, int flags, token
    ) except -1
    cdef void _put(
        self, uint64_t user_data, int opcode, int fd, uint64_t off, uint64_t addr, size_t size, int flags
    ) noexcept nogil
    cdef void _take_back(self, uint32_t n) noexcept nogil
    cdef bint _next(self, io_uring_cqe *result) noexcept nogil
    cdef object _complete(self, uint32_t number, int result)
    cdef int _shut(self, long moments) noexcept
    cdef int _wait_for_all(self, long moments) noexcept nogil
    cdef void _cancel(self) noexcept nogil
    cdef void _let_go(self) noexcept
    cdef void _forget(self) noexcept
