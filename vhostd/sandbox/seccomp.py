"""seccomp: the system calls that are left; any other fails with EPERM (seccomp(2), by libseccomp)."""

import ctypes
import errno
import os
import socket
from collections.abc import Iterable

LIBRARY = "libseccomp.so.2"
# libseccomp, seccomp.h
ALLOW, FAIL = 0x7FFF_0000, 0x0005_0000
TSYNC = 4
MASKED_EQUAL = 7

# Linux, include/uapi/linux/sched.h and asm-generic/{mman,ioctls}.h
CLONE_THREAD = 0x10000
PROT_WRITE, PROT_EXEC = 2, 4
FIONREAD, FIONBIO, FIONCLEX, FIOCLEX = 0x541B, 0x5421, 0x5450, 0x5451
INT = 0xFFFF_FFFF

ALLOWED = (
    # bytes of what is open
    "read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek",
    "fsync fdatasync fallocate ftruncate fadvise64 io_uring_enter",
    # what signals an eventfd or a pipe without waiting
    "io_submit io_getevents vmsplice",
    # fds
    "close close_range dup dup2 dup3 fcntl pipe2 eventfd2 memfd_create",
    # files, as far as Landlock lets one reach them
    "openat stat lstat fstat newfstatat statx fstatfs access faccessat faccessat2 readlink readlinkat",
    "getcwd getdents64 unlink unlinkat rename renameat renameat2",
    # sockets that are there
    "accept accept4 recvfrom recvmsg sendto sendmsg shutdown",
    "getsockname getpeername getsockopt setsockopt",
    # waiting
    "epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll select pselect6",
    "nanosleep clock_nanosleep restart_syscall",
    # memory
    "brk munmap mremap madvise membarrier",
    # threads and signals
    "futex futex_wait futex_wake set_robust_list rseq sched_yield sched_getaffinity getcpu",
    "rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sigaltstack exit exit_group",
    # what this process, and the time, is
    "getpid getppid gettid getuid geteuid getgid getegid getrusage times sysinfo uname",
    "clock_gettime clock_getres gettimeofday time getrandom",
)


class _Condition(ctypes.Structure):
    """struct scmp_arg_cmp: an argument, of which some bits are as they must be."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operation", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


class _Filter:
    """A filter that is made by rule after rule."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(FAIL | errno.EPERM))
        if not self._context:
            raise MemoryError

    def add(
        self, name: str, argument: int = 0, mask: int = 0, value: int = 0, *, action: int = ALLOW
    ) -> None:
        """Lets calls through if these bits of the argument have this value; any call for a mask of 0."""
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number < 0:  # newer than the library, or of another architecture
            return
        condition = _Condition(argument, MASKED_EQUAL, mask, value)
        self._check(
            self._library.seccomp_rule_add_array(
                self._context, action, number, 1 if mask else 0, ctypes.byref(condition)
            )
        )

    def load(self) -> None:
        """Puts it in force for all threads of the process, for good."""
        self._check(self._library.seccomp_attr_set(self._context, TSYNC, 1))
        self._check(self._library.seccomp_load(self._context))
        self._library.seccomp_release(self._context)

    def _check(self, result: int) -> None:
        if result < 0:
            raise OSError(-result, os.strerror(-result))


def restrict(ioctls: Iterable[int]) -> None:
    """Leaves what serving takes, and ioctls of these types; raises OSError."""
    rules = _Filter()
    for name in " ".join(ALLOWED).split():
        rules.add(name)
    # Threads, but no processes. What clone3 is told no filter can see: glibc falls back to clone.
    rules.add("clone", 0, CLONE_THREAD, CLONE_THREAD)
    rules.add("clone3", action=FAIL | errno.ENOSYS)
    rules.add("tgkill", 0, INT, os.getpid())  # abort() and raise()
    # Memory is never to be written and executed: what is executed are modules.
    for name in ("mmap", "mprotect"):
        for protection in (0, PROT_WRITE, PROT_EXEC):
            rules.add(name, 2, PROT_WRITE | PROT_EXEC, protection)
    # The event loop's pairs of sockets; libsystemd's, through which it tells the service manager.
    for name in ("socket", "socketpair"):
        rules.add(name, 0, INT, socket.AF_UNIX)
    # A name that the kernel chooses, for a socket that has none (struct sockaddr_un, cut after the family).
    rules.add("bind", 2, INT, 2)
    # Those of a terminal could type at it.
    for request in (FIONREAD, FIONBIO, FIONCLEX, FIOCLEX):
        rules.add("ioctl", 1, INT, request)
    for kind in ioctls:
        rules.add("ioctl", 1, 0xFF00, kind << 8)
    rules.load()
