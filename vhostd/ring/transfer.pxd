# cython: language_level=3
"""System calls on guest memory, as the other native modules make them."""

from vhostd.ring.memory cimport GuestMemory

cdef extern from "<sys/uio.h>":
    struct iovec:
        void *iov_base
        size_t iov_len


cdef enum:
    MOST_IOVECS = 1024  # what Linux takes in one system call

cdef enum:
    PREADV
    PWRITEV
    SENDMSG
    RECVMSG


cdef ssize_t transfer(
    GuestMemory memory, int call, int fd, iovec *iov, size_t count, long long offset, int flags
) except -1
