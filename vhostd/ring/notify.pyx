# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Signals by eventfds and pipes that never wait, whatever flags the fd has.

O_NONBLOCK belongs to the open file description, and whoever passed us the fd shares that and may clear
the flag. So it is not relied on:

An eventfd that is full keeps write(2) waiting. The kernel's own way to signal one never waits. So the kernel is
asked for something that is complete at once, and to signal the eventfd for it: a poll of that eventfd (Linux AIO,
io_submit(2) with IOCB_FLAG_RESFD).

A pipe is written and read by vmsplice(2), which has a flag of its own.
"""

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.unistd cimport close

from vhostd.ring.system_calls cimport iovec

import os

cdef extern from "<poll.h>":
    enum: POLLIN
    enum: POLLOUT

cdef extern from "<sys/eventfd.h>" nogil:
    enum: EFD_CLOEXEC
    int eventfd(unsigned value, int flags)

cdef extern from "<sys/uio.h>" nogil:
    enum: RWF_NOWAIT
    ssize_t preadv2(int fd, const iovec *iov, int count, long long offset, int flags)

cdef extern from "<fcntl.h>" nogil:
    enum: SPLICE_F_NONBLOCK
    ssize_t vmsplice(int fd, const iovec *iov, size_t count, unsigned flags)

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
    enum: SYS_io_destroy
    enum: SYS_io_submit
    enum: SYS_io_getevents

cdef enum:
    RESULTS = 128  # of polls, which tell nothing, and are taken so many at a time
    MOST = 4096  # bytes of a pipe that are taken at a time; how many there are tells nothing

cdef aio_context_t context = 0  # of this process; 0 if there is none
cdef bint asked = False  # whether the kernel was asked for it
cdef uint64_t ONE = 1  # what is written to a pipe, which refers to it until it is read


def signal_eventfd(int fd):
    """Adds one to an eventfd; to a full one, too, which is read as full then.

    Raises:
        OSError: it is no eventfd, or there is no AIO (`has_aio`).
    """
    # It is polled for what is always true of it; that this is complete is the signal.
    cdef iocb request
    cdef iocb *requests = &request
    memset(&request, 0, sizeof(request))
    request.aio_lio_opcode = IOCB_CMD_POLL
    request.aio_fildes = request.aio_resfd = fd
    request.aio_flags = IOCB_FLAG_RESFD
    request.aio_buf = POLLIN | POLLOUT
    cdef long submitted = syscall(SYS_io_submit, context, <long> 1, &requests)
    if submitted < 0 and errno == EAGAIN:
        forget_results()
        submitted = syscall(SYS_io_submit, context, <long> 1, &requests)
    if submitted < 0:
        raise OSError(errno, os.strerror(errno))


def clear_eventfd(int fd):
    """Takes the count of an eventfd, or 1 of a semaphore's; False if it is 0.

    Raises:
        OSError: it cannot be read; with EOPNOTSUPP, not without waiting (before Linux 5.8).
    """
    cdef uint64_t count
    cdef iovec iov = iovec(&count, sizeof(count))
    if preadv2(fd, &iov, 1, -1, RWF_NOWAIT) >= 0:
        return True
    if errno == EAGAIN:
        return False
    raise OSError(errno, os.strerror(errno))


def has_aio():
    """Whether the kernel has given this process what it takes never to wait; it is asked the first time."""
    if not asked:
        set_up()
    return context != 0


def end_aio():
    """Does without it from now on. The kernel takes some ten milliseconds for that, be it at the process's end."""
    global context
    cdef aio_context_t ended = context
    context = 0
    if ended:
        with nogil:
            syscall(SYS_io_destroy, ended)


def write_pipe(int fd):
    """Writes the 8 bytes of an eventfd's 1 to a pipe.

    Raises:
        OSError: it cannot be written; BlockingIOError if it is full, BrokenPipeError if nobody reads it any more.
    """
    cdef iovec iov = iovec(&ONE, sizeof(ONE))
    if vmsplice(fd, &iov, 1, SPLICE_F_NONBLOCK) < 0:
        raise OSError(errno, os.strerror(errno))


def read_pipe(int fd):
    """Takes bytes out of a pipe, and returns how many; 0 once nobody writes it any more.

    Raises:
        OSError: it cannot be read; BlockingIOError if it is empty.
    """
    cdef unsigned char[MOST] taken
    cdef iovec iov = iovec(&taken[0], MOST)
    cdef ssize_t size = vmsplice(fd, &iov, 1, SPLICE_F_NONBLOCK)
    if size < 0:
        raise OSError(errno, os.strerror(errno))
    return size


cdef void forget_results() noexcept:
    cdef io_event[RESULTS] results
    while syscall(SYS_io_getevents, context, <long> 0, <long> RESULTS, results, NULL) == RESULTS:
        pass


cdef void set_up() noexcept:
    """Gets the least of AIO that there is, and tries it once."""
    global context, asked
    asked = True
    cdef int trial = eventfd(0, EFD_CLOEXEC)
    syscall(SYS_io_setup, <long> 1, &context)
    try:
        if context:
            signal_eventfd(trial)
    except OSError:
        context = 0
    finally:
        close(trial)
