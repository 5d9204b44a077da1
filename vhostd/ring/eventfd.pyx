# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Signals eventfds, and never waits for room in one.

Layer 3. write(2) on an eventfd that is full waits, unless O_NONBLOCK is set; but that flag belongs to the open
file description, and whoever passed us the fd shares it and may clear the flag. The kernel's own way to signal
never waits. So the kernel is asked for something that is complete at once, and to signal the eventfd for it: a
poll of that eventfd (Linux AIO, io_submit(2) with IOCB_FLAG_RESFD).
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport write

import os

cdef extern from "<poll.h>":
    enum: POLLIN
    enum: POLLOUT

cdef extern from "<linux/aio_abi.h>":
    ctypedef unsigned long aio_context_t
    enum: IOCB_CMD_POLL
    enum: IOCB_FLAG_RESFD
    struct iocb:
        uint32_t aio_fildes
        unsigned aio_lio_opcode
        uint64_t aio_buf
        uint32_t aio_flags
        uint32_t aio_resfd
    struct io_event:
        int64_t res

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>":
    enum: SYS_io_setup
    enum: SYS_io_submit
    enum: SYS_io_getevents

# How many polls may complete before somebody asks for their results, which tell nothing.
cdef enum:
    RESULTS = 128

# Of this process, for good; 0 where the kernel gives none.
cdef aio_context_t context = 0
syscall(SYS_io_setup, <long> RESULTS, &context)


def signal(int fd):
    """Adds one to an eventfd; to a full one, too, which is read as full then.

    Where the kernel gives no AIO this is write(2), and O_NONBLOCK has to be trusted.

    Raises:
        OSError: it is no eventfd, or, by write(2), full.
    """
    cdef uint64_t one = 1
    if context:
        _poll(fd)
    elif write(fd, &one, sizeof(one)) < 0:
        raise OSError(errno, os.strerror(errno))


cdef int _poll(int fd) except -1:
    """Polls an eventfd for what is always true of it; its completion is the signal."""
    cdef iocb request
    cdef iocb *requests = &request
    memset(&request, 0, sizeof(request))
    request.aio_lio_opcode = IOCB_CMD_POLL
    request.aio_fildes = request.aio_resfd = fd
    request.aio_flags = IOCB_FLAG_RESFD
    request.aio_buf = POLLIN | POLLOUT
    cdef long submitted = syscall(SYS_io_submit, context, <long> 1, &requests)
    if submitted < 0 and errno == EAGAIN:
        _forget_results()
        submitted = syscall(SYS_io_submit, context, <long> 1, &requests)
    if submitted < 0:
        raise OSError(errno, os.strerror(errno))
    return 0


cdef void _forget_results() noexcept:
    cdef io_event results[RESULTS]
    while syscall(SYS_io_getevents, context, <long> 0, <long> RESULTS, results, NULL) == RESULTS:
        pass
