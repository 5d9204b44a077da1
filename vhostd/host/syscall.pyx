# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""Any system call, for those that Python does not have."""

from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_SetFromErrno

cdef extern from "<unistd.h>" nogil:
    long c_syscall "syscall"(long number, ...)

cdef extern from "<sys/syscall.h>":
    enum:
        SYS_capget, SYS_capset, SYS_connect, SYS_fallocate, SYS_fstatfs, SYS_inotify_add_watch, SYS_inotify_init1
        SYS_mmap, SYS_prctl, SYS_statx, SYS_timerfd_create, SYS_timerfd_settime, SYS_unlinkat

CAPGET, CAPSET, CONNECT, FALLOCATE = SYS_capget, SYS_capset, SYS_connect, SYS_fallocate
FSTATFS, INOTIFY_ADD_WATCH, INOTIFY_INIT1 = SYS_fstatfs, SYS_inotify_add_watch, SYS_inotify_init1
MMAP, PRCTL, STATX, UNLINKAT = SYS_mmap, SYS_prctl, SYS_statx, SYS_unlinkat
TIMERFD_CREATE, TIMERFD_SETTIME = SYS_timerfd_create, SYS_timerfd_settime


def syscall(long number, *arguments):
    """Makes a system call without the GIL, and returns its result; raises OSError.

    Of `bytes`, and of a `bytearray` for what the kernel writes, the call gets the address. All else is a number.
    """
    cdef long words[6]
    cdef long result
    cdef int i
    words[:] = [0, 0, 0, 0, 0, 0]
    if len(arguments) > 6:
        raise TypeError("a system call has six arguments at most")
    for i in range(len(arguments)):
        words[i] = word(arguments[i])
    with nogil:
        result = c_syscall(number, words[0], words[1], words[2], words[3], words[4], words[5])
    if result == -1:
        PyErr_SetFromErrno(OSError)
    return result


cdef long word(argument) except? -1:
    if isinstance(argument, bytes):
        return <long> PyBytes_AS_STRING(argument)
    if isinstance(argument, bytearray):
        return <long> PyByteArray_AS_STRING(argument)
    return argument
