# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""One system call that moves bytes between guest memory and an fd, without a copy on our side.

For the native modules; nothing here is for Python.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EFAULT, EINTR, errno
from libc.stdint cimport INT64_MAX
from libc.string cimport memset

from vhostd.ring.memory cimport GuestMemory

import os

cdef extern from "<sys/uio.h>" nogil:
    ssize_t sys_preadv2 "preadv2"(int fd, iovec *iov, int count, long long offset, int flags)
    ssize_t sys_pwritev2 "pwritev2"(int fd, iovec *iov, int count, long long offset, int flags)

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sys_sendmsg "sendmsg"(int fd, msghdr *message, int flags)
    ssize_t sys_recvmsg "recvmsg"(int fd, msghdr *message, int flags)

cdef enum:
    SMALLEST_PAGE = 4096


cdef bint fits_file(offset, Py_ssize_t n, long long *into) except -1:
    """Stores the offset and returns True, or False if no file has `n` bytes there; any integer will do."""
    into[0] = PyNumber_AsSsize_t(offset, NULL)
    return n >= 0 and 0 <= into[0] < INT64_MAX - n  # INT64_MAX may be anything from there on, clipped


cdef ssize_t attempt(
    GuestMemory memory, int call, int fd, iovec *iov, size_t count, long long offset, int flags
) except? -1:
    """Makes the call without the GIL, again as long as signals interrupt it; the bytes it moved, or -errno.

    `iov` is `count` pieces of `memory`, none of them empty. Sockets take no `offset`; `flags` are RWF_* for a
    file and MSG_* for a socket.

    Raises:
        MemoryLost: a page vanished.
    """
    cdef ssize_t done = -1
    cdef int error = EINTR
    while done < 0 and error == EINTR:
        PyErr_CheckSignals()
        with nogil:
            done = call_once(call, fd, iov, count, offset, flags)
            error = errno
    if done < 0 and error == EFAULT:
        touch(iov, count)
    memory.expect_whole()
    return done if done >= 0 else -error


cdef ssize_t raise_for(ssize_t done) except -1:
    """Raises OSError for a call that failed: one whose result is -errno."""
    if done < 0:
        raise OSError(-done, os.strerror(-done))
    return done


cdef ssize_t call_once(
    int call, int fd, iovec *iov, size_t count, long long offset, int flags
) noexcept nogil:
    cdef msghdr message
    if call == PREADV:
        return sys_preadv2(fd, iov, <int> count, offset, flags)
    if call == PWRITEV:
        return sys_pwritev2(fd, iov, <int> count, offset, flags)
    memset(&message, 0, sizeof(message))
    message.msg_iov = iov
    message.msg_iovlen = count
    return sys_sendmsg(fd, &message, flags) if call == SENDMSG else sys_recvmsg(fd, &message, flags)


cdef void touch(iovec *iov, size_t count) noexcept nogil:
    """Reads from every page: where the kernel answers EFAULT we get the SIGBUS that tells of a lost page."""
    cdef volatile unsigned char *page
    cdef volatile unsigned char *last
    cdef size_t i
    for i in range(count):
        if is_hole(iov[i].iov_base):
            continue
        page = <volatile unsigned char *> iov[i].iov_base
        last = page + (iov[i].iov_len - 1)
        while page < last:
            page[0]
            page += SMALLEST_PAGE
        last[0]
