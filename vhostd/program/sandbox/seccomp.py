"""seccomp: the system calls that are left; any other fails with EPERM (seccomp(2), by libseccomp)."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from typing import TypeAlias

from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.program.sandbox.libseccomp import (
    ALLOW,
    FAIL,
    GREATER_EQUAL,
    MASKED_EQUAL,
    UNKNOWN,
    Rules,
    load_library,
)
from vhostd.program.sandbox.names import FixedNames

LIBRARY = "libseccomp.so.2"
UNWINDER = "libgcc_s.so.1"  # which glibc loads when a thread ends while Python does, and aborts without

# Linux, include/uapi/linux/{sched,memfd,net,mman}.h and asm-generic/{mman,ioctls}.h
CLONE_THREAD = 0x10000
SOCK_TYPE_MASK = 0xF
PROT_NONE, PROT_EXEC, MAP_FIXED, MREMAP_FIXED = 0, 4, 0x10, 2
FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
INT, LONG = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

# What serving any device takes. Some are never called here, but by another glibc, libuv or Python than ours.
ALLOWED = (
    # bytes of what is open, such as modules and log lines; an inflight area's size
    "read readv write writev lseek ftruncate",
    # what signals an eventfd or a pipe, and hears of it, without waiting
    "preadv2 io_setup io_submit io_getevents io_destroy vmsplice",
    # fds
    "close close_range dup dup2 dup3 pipe2 eventfd2",
    # files, as far as Landlock lets one reach them: what is imported, and told of in a traceback
    "openat stat lstat fstat newfstatat statx fstatfs access faccessat faccessat2 readlink readlinkat",
    "getcwd getdents64",
    # sockets that are there
    "accept accept4 recvfrom recvmsg shutdown",
    "getsockname getpeername getsockopt",
    # waiting
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6",
    "nanosleep clock_nanosleep restart_syscall timerfd_create timerfd_settime",
    # memory
    "brk madvise membarrier",
    # threads and signals
    "futex futex_wait futex_wake set_robust_list rseq sched_yield sched_getaffinity getcpu",
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack exit exit_group",
    # what this process, and the time, is
    "getpid getppid gettid getuid geteuid getgid getegid getrusage times sysinfo uname",
    "clock_gettime clock_getres gettimeofday time getrandom",
)
WRITTEN = "unlink unlinkat rename renameat renameat2"
# No owner is set, who would get the signals that a file causes, and no kind of signal.
FCNTLS = (
    *(fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL),
    *(fcntl.F_ADD_SEALS, fcntl.F_GETPIPE_SZ),
)

Condition: TypeAlias = tuple[int, int, int, int]  # as libseccomp.Rules.add takes it


def _equal(argument: int, value: int, mask: int = INT) -> Condition:
    return argument, MASKED_EQUAL, mask, value


def _without(argument: int, bits: int) -> Condition:
    return argument, MASKED_EQUAL, bits, 0


def _from(argument: int, least: int) -> Condition:
    return argument, GREATER_EQUAL, least, 0


class Filter:
    """What serving any device takes, what is granted to this one, and the removal of files of these names.

    Any file may be removed, and renamed, if some may be written: then Landlock alone says which. Raises
    OSError if there is no libseccomp, SetupError for a grant of a system call that nobody knows.
    """

    def __init__(self, grants: Grants, names: FixedNames) -> None:
        self._rules = Rules(LIBRARY, FAIL | errno.EPERM)
        written = WRITTEN if grants.written else ""
        for name in " ".join((*ALLOWED, written)).split():
            self._add(name)
        for name in grants.system_calls:
            if self._rules.number(name) == UNKNOWN:
                raise SetupError(f"a grant: libseccomp knows no system call {name!r}")
            self._add(name)
        self._add_threads()
        self._add_memory(names.end, PROT_NONE if grants.code else PROT_EXEC)
        self._add_sockets(grants)
        removed, connected = names.addresses[: len(grants.removed)], names.addresses[len(grants.removed) :]
        for address in removed:
            self._add("unlinkat", _equal(1, address, LONG), _equal(2, 0))
        for address in connected:
            self._add("connect", _equal(1, address, LONG))
        for command in FCNTLS:
            self._add("fcntl", _equal(1, command))
        # Those of a terminal could type at it.
        for request in (FIONREAD, FIONBIO, FIONCLEX, FIOCLEX):
            self._add("ioctl", _equal(1, request))
        for flags in grants.userfaultfds:
            self._add("userfaultfd", _equal(0, flags))
        for number, mask in grants.ioctls:
            self._add("ioctl", _equal(1, number & mask, mask))

    def load(self) -> None:
        """Puts it in force for all threads of the process, for good; raises OSError."""
        self._rules.load()

    def _add_threads(self) -> None:
        """Threads, but no processes. What clone3 is told no filter can see: glibc falls back to clone."""
        self._add("clone", _equal(0, CLONE_THREAD, CLONE_THREAD))
        self._add("clone3", action=FAIL | errno.ENOSYS)
        self._add("tgkill", _equal(0, os.getpid()))  # abort() and raise()
        with suppress(OSError):
            load_library(UNWINDER)

    def _add_memory(self, end: int, forbidden: int) -> None:
        """Memory from this address on, none of it to be executed: what is executed was there before.

        That holds unless `forbidden`, the protections that no memory gets, lacks PROT_EXEC.
        """
        self._add("mmap", _without(2, forbidden), _without(3, MAP_FIXED))
        self._add("mmap", _without(2, forbidden), _from(0, end))
        self._add("mprotect", _without(2, forbidden), _from(0, end))
        self._add("munmap", _from(0, end))
        self._add("mremap", _without(3, MREMAP_FIXED), _from(0, end))
        self._add("memfd_create", _without(1, INT & ~(os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)))

    def _add_sockets(self, grants: Grants) -> None:
        """The event loop's pairs of sockets; none of datagrams, which would reach any server's path."""
        for family, kind in grants.sockets:
            for name in ("socket", "socketpair"):
                self._add(name, _equal(0, family), _equal(1, kind, SOCK_TYPE_MASK))
        for name in ("socket", "socketpair"):
            self._add(name, _equal(0, socket.AF_UNIX), _equal(1, socket.SOCK_STREAM, SOCK_TYPE_MASK))
        # A name that the kernel chooses, for a socket that has none (sockaddr_un, cut after the family).
        self._add("bind", _equal(2, 2))
        # TCP Fast Open: with that flag they connect.
        self._add("sendto", _without(3, socket.MSG_FASTOPEN))
        self._add("sendmsg", _without(2, socket.MSG_FASTOPEN))

    def _add(self, name: str, *conditions: Condition, action: int = ALLOW) -> None:
        """Lets a call through if all conditions are met."""
        number = self._rules.number(name)
        if number >= 0:  # it is not newer than the library, nor of another architecture
            self._rules.add(action, number, *conditions)
