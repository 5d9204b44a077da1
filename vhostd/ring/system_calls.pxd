# cython: language_level=3
"""System calls on guest memory, as the other native modules make them."""

from libc.stdint cimport intptr_t, uintptr_t  # for HOLE

from vhostd.ring.memory cimport GuestMemory

cdef extern from "Python.h":
    # With NULL for the exception it clips to the type's range instead of raising OverflowError.
    Py_ssize_t PyNumber_AsSsize_t(object number, void *error) except? -1

cdef extern from "<sys/uio.h>":
    struct iovec:
        void *iov_base
        size_t iov_len


cdef enum:
    MOST_IOVECS = 1024  # what Linux takes in one system call

cdef extern from *:
    """
    // What stands for guest memory that is not shared: an address of the kernel's half, where nothing of a process
    // ever is. A system call that is given it fails with EFAULT, and moves nothing; no code of ours goes there.
    #define HOLE ((void *) ((uintptr_t) 3 << (sizeof(void *) * 8 - 2)))
    #define is_hole(address) ((intptr_t) (address) < 0)
    """
    void *HOLE
    bint is_hole(void *address) noexcept nogil

cdef enum:
    PREADV
    PWRITEV
    SENDMSG
    RECVMSG


cdef bint fits_file(offset, Py_ssize_t n, long long *into) except -1
cdef ssize_t attempt(
    GuestMemory memory, int call, int fd, iovec *iov, size_t count, long long offset, int flags
) except? -1
cdef ssize_t raise_for(ssize_t done) except -1
cdef void touch(iovec *iov, size_t count) noexcept nogil
