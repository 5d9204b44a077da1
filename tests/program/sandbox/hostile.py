"""A program whose device does what a guest tells it, as if the guest had taken it over.

    python -m tests.program.sandbox.hostile --fd=N [--sandbox=none] [--victim=PATH] [--written=FOLDER]

A request names one of `DEEDS`; what is written back is "done", or the name of the error that it failed with.
"""

import argparse
import ctypes
import errno
import fcntl
import importlib
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TextIO

from vhostd import Device, DeviceType, Grants, Handler, Ioctl, Virtqueue, run
from vhostd.host.alarm import Alarm
from vhostd.program.sandbox.names import PLACES
from vhostd.ring.arrivals import open_userfaultfd

Deed = Callable[["Hostile"], object]

MAP_FIXED, MREMAP_MAYMOVE, MREMAP_FIXED = 0x10, 1, 2
CLONE_NEWUSER = 0x1000_0000
PTRACE_ATTACH = 16
SO_ATTACH_FILTER = 26
PR_SET_DUMPABLE = 4
BLKROGET, BLKRAGET, FS_IOC_GETFLAGS = 0x125E, 0x1263, 0x8008_6601
UFFDIO_COPY = 0xC028_AA03
ANY_KEYS = Ioctl.reading("E", 0x18)
_libc = ctypes.CDLL(None, use_errno=True)
_seccomp = ctypes.CDLL("libseccomp.so.2")


def call(name: str, *arguments: object) -> int:
    """A system call by its name."""
    number = _seccomp.seccomp_syscall_resolve_name(name.encode())
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def place_pages() -> None:
    uffd = open_userfaultfd()
    try:
        fcntl.ioctl(uffd, UFFDIO_COPY, bytes(40))
    finally:
        os.close(uffd)


def execute_memory() -> None:
    mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def make_executable() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        call("mprotect", ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 7)


def make_executable_later() -> None:
    """Written first, then executable and no longer to be written: never both at a time."""
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        memory[:1] = b"\xc3"
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        call("mprotect", ctypes.c_void_p(start), ctypes.c_size_t(mmap.PAGESIZE), 5)


def execute_file(fd: int) -> None:
    try:
        mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    finally:
        os.close(fd)


def written_memfd() -> int:
    fd = os.memfd_create("code")
    os.write(fd, bytes(mmap.PAGESIZE))
    return fd


def change_name(name: str, *arguments: int) -> None:
    """A system call by which memory below all other could be changed, or have other memory in its place."""
    call(name, *map(ctypes.c_size_t, arguments))


def move_onto_name() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as memory:
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        change_name("mremap", start, mmap.PAGESIZE, mmap.PAGESIZE, MREMAP_MAYMOVE | MREMAP_FIXED, PLACES[0])


def type_at_the_terminal() -> None:
    fcntl.ioctl(TERMINAL[1], termios.TIOCSTI, b"x")


def connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(address)


def send(kind: int, address: str) -> None:
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.sendmsg([b"x"], [], 0, address)


def send_by_a_pair(address: str) -> None:
    ours, theirs = socket.socketpair(type=socket.SOCK_DGRAM)
    with ours, theirs:
        ours.sendmsg([b"x"], [], 0, address)


def open_fast(sock: socket.socket, *, by_message: bool) -> None:
    """Connects a listening socket without connect(2): TCP Fast Open, in sendto(2) or sendmsg(2)."""
    address = LISTENERS[0].getsockname()
    sock.shutdown(socket.SHUT_RD)  # now it does not listen any more
    if by_message:
        sock.sendmsg([b"x"], [], socket.MSG_FASTOPEN, address)
    else:
        sock.sendto(b"x", socket.MSG_FASTOPEN, address)


def own_signals_of(pid: int) -> None:
    """Whoever owns a file gets the signals that it causes, of any kind."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fcntl.fcntl(ours, fcntl.F_SETOWN, pid)


def attach_program() -> None:
    """One of BPF, for what comes to a socket: it takes everything, RET 0xFFFF."""
    code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0xFFFF))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = struct.pack("@HP", 1, ctypes.addressof(code))
        ours.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def bind(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(address)


def fork() -> None:
    if not os.fork():
        os._exit(0)


def clone3() -> None:
    call("clone3", bytes(88), ctypes.c_size_t(88))


def make_a_pair() -> None:
    for sock in socket.socketpair():
        sock.close()


def in_a_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def end_as_at_the_end_of_python() -> None:
    """As a thread does that wants Python's lock when the program ends: glibc loads a library for it."""
    thread = threading.Thread(target=lambda: _libc.pthread_exit(None), daemon=True)
    thread.start()
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        os.sched_yield()


def stay_in_a_thread() -> None:
    threading.Thread(target=threading.Event().wait, daemon=True).start()


def fail_with_traceback() -> None:
    try:
        raise ValueError("a fault")
    except ValueError:
        assert "raise ValueError" in traceback.format_exc(), "the source could not be read"


def ask(device: "Hostile", request: int) -> None:
    """An ioctl, which the file's kind need not have."""
    try:
        fcntl.ioctl(device.file, request, bytes(8))
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise


def set_an_alarm() -> None:
    alarm = Alarm(1.0, lambda: None)
    alarm.set()
    alarm.close()


def grow_memory() -> None:
    fd = os.memfd_create("a")
    os.ftruncate(fd, 1 << 20)
    os.close(fd)


# Before the sandbox, in which there are none to be had.
TERMINAL = os.openpty()
LISTENERS = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
FREE: dict[str, Deed] = {  # what works in the sandbox as well
    "import": lambda _: importlib.import_module("wave"),
    "thread": lambda _: in_a_thread(),
    "end as at the end of Python": lambda _: end_as_at_the_end_of_python(),
    "stay in a thread": lambda _: stay_in_a_thread(),
    "alarm": lambda _: set_an_alarm(),
    "traceback": lambda _: fail_with_traceback(),
    "memfd": lambda _: grow_memory(),
    "getrandom": lambda _: os.getrandom(16),
    "pair": lambda _: make_a_pair(),
    "ioctl that is granted": lambda device: ask(device, BLKROGET),
    "ioctl that is granted in any size": lambda device: ask(device, ANY_KEYS.sized(96)),
    "ioctl that is granted in another size": lambda device: ask(device, ANY_KEYS.sized(1)),
    "call that is granted": lambda _: os.getsid(0),
}
GRANTED: dict[str, Deed] = {  # below the folder that is granted, and nowhere else
    "make a socket of messages": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close(),
    "write": lambda device: device.target.write_text("x"),
    "replace": lambda device: device.target.rename(device.target.with_name("another")),
    "remove": lambda device: device.target.with_name("another").unlink(),
}
POSTCOPY: dict[str, Deed] = {  # if it is offered; and what is not part of it
    "userfaultfd of own faults": lambda _: os.close(open_userfaultfd()),
    "userfaultfd": lambda _: os.close(call("userfaultfd", 0)),
    "place pages": lambda _: place_pages(),
}
# What could have a program that may remove its socket's file remove another one.
BESIDE: dict[str, Deed] = {
    "remove a file beside the socket": lambda device: device.victim.unlink(),
    "remove it by its name in a folder": lambda device: call("unlinkat", -100, bytes(device.victim), 0),
    "remove a folder": lambda device: device.victim.with_name("empty").rmdir(),
    "rename the socket": lambda device: device.victim.with_name("vhost.sock").rename(device.victim),
    "write to the name": lambda _: change_name("mprotect", PLACES[0], mmap.PAGESIZE, 3),
    "write to the name from below": lambda _: change_name("mprotect", mmap.PAGESIZE, PLACES[0], 3),
    "unmap the name": lambda _: change_name("munmap", PLACES[0], mmap.PAGESIZE),
    "unmap the name from below": lambda _: change_name("munmap", mmap.PAGESIZE, PLACES[0]),
    "move the name": lambda _: change_name("mremap", PLACES[0], mmap.PAGESIZE, 2 * mmap.PAGESIZE, 1),
    "move onto the name": lambda _: move_onto_name(),
    "map over the name": lambda _: change_name(
        "mmap", PLACES[0], mmap.PAGESIZE, 3, MAP_FIXED | mmap.MAP_ANONYMOUS | mmap.MAP_PRIVATE, 2**64 - 1, 0
    ),
}
DEEDS: dict[str, Deed] = {
    # files
    "read a secret": lambda _: Path("/etc/shadow").read_bytes(),
    "read a public file": lambda _: Path("/etc/passwd").read_bytes(),
    "read a file beside the libraries": lambda _: Path("/usr/lib/os-release").read_bytes(),
    "list a folder": lambda _: os.listdir("/"),
    "look at a process": lambda _: Path("/proc/1/status").read_text(),
    "look at itself": lambda _: Path("/proc/self/mem").open("rb+").close(),
    "write to a file": lambda device: device.victim.open("r+b").close(),
    "truncate a file": lambda device: os.truncate(device.victim, 0),
    "make a file": lambda device: device.victim.with_name("new").touch(),
    "make a folder": lambda device: device.victim.with_name("folder").mkdir(),
    "make a socket": lambda device: bind(str(device.victim.with_name("socket"))),
    "make a device": lambda device: os.mknod(device.victim.with_name("node"), 0o20600, os.makedev(1, 1)),
    "make a link": lambda device: os.link(device.victim, device.victim.with_name("link")),
    "make a symbolic link": lambda device: os.symlink("victim", device.victim.with_name("symlink")),
    "rename a file": lambda device: device.victim.rename(device.victim.with_name("renamed")),
    "remove a file": lambda device: device.victim.unlink(),
    "change a mode": lambda device: device.victim.chmod(0o4777),
    "change an owner": lambda device: os.chown(device.victim, 0, 0),
    "open a device": lambda _: Path("/dev/null").open("rb").close(),
    "change the folder": lambda _: os.chdir("/"),
    "change the root": lambda _: os.chroot("/"),
    "mount": lambda _: call("mount", b"none", b"/mnt", b"tmpfs", 0, None),
    # processes
    "execute a program": lambda _: os.execv("/bin/true", ["true"]),
    "start a program": lambda _: subprocess.run(["/bin/true"], check=True),
    "spawn a program": lambda _: os.posix_spawn("/bin/true", ["true"], {}),
    "fork": lambda _: fork(),
    "clone3": lambda _: clone3(),
    "kill the parent": lambda _: os.kill(os.getppid(), 0),
    "kill all": lambda _: os.kill(-1, 0),
    "signal a thread elsewhere": lambda _: call("tgkill", os.getppid(), os.getppid(), signal.SIGCONT),
    "have a process signalled": lambda _: own_signals_of(os.getppid()),
    "open a process": lambda _: os.close(os.pidfd_open(os.getppid())),
    "trace a process": lambda _: call("ptrace", PTRACE_ATTACH, os.getppid(), None, None),
    "read a process": lambda _: call("process_vm_readv", os.getppid(), None, 0, None, 0, 0),
    "unshare": lambda _: call("unshare", CLONE_NEWUSER),
    "enter a namespace": lambda _: call("setns", 0, 0),
    # memory
    "execute what was written": lambda _: execute_memory(),
    "make what was written executable": lambda _: make_executable(),
    "make what was written executable later": lambda _: make_executable_later(),
    "execute what is written elsewhere": lambda _: execute_file(written_memfd()),
    "execute a file": lambda _: execute_file(os.open(os.__file__, os.O_RDONLY)),
    "huge pages": lambda _: os.close(os.memfd_create("a", os.MFD_HUGETLB)),
    "userfaultfd": lambda _: os.close(call("userfaultfd", 0)),
    "userfaultfd of own faults": lambda _: os.close(open_userfaultfd()),
    # the network
    "TCP": lambda _: socket.create_server(("127.0.0.1", 0)).close(),
    "UDP": lambda _: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "netlink": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "vsock": lambda _: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
    "packets": lambda _: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "connect to a server": lambda device: connect(device.server),
    "send to a server": lambda device: send(socket.SOCK_DGRAM, f"{device.server}.datagrams"),
    "send raw to a server": lambda device: send(socket.SOCK_RAW, f"{device.server}.datagrams"),
    "send to a server by a pair": lambda device: send_by_a_pair(f"{device.server}.datagrams"),
    "TCP by sendto": lambda _: open_fast(LISTENERS[1], by_message=False),
    "TCP by sendmsg": lambda _: open_fast(LISTENERS[2], by_message=True),
    # the kernel
    "io_uring": lambda _: os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120))),
    "bpf": lambda _: call("bpf", 0, bytes(128), 128),
    "a socket's filter": lambda _: attach_program(),
    "perf": lambda _: call("perf_event_open", bytes(128), 0, -1, -1, 0),
    "keys": lambda _: call("keyctl", 0, -3, 1),
    "raise a limit": lambda _: call("prlimit64", 0, resource.RLIMIT_CORE, bytes(16), None),
    "be dumped": lambda _: call("prctl", PR_SET_DUMPABLE, 1, 0, 0, 0),
    "become another": lambda _: os.setuid(os.getuid()),
    "host name": lambda _: socket.sethostname(socket.gethostname()),
    "time": lambda _: call("settimeofday", None, None),
    "ioctl of another type": lambda device: ask(device, FS_IOC_GETFLAGS),
    "ioctl of the same type": lambda device: ask(device, BLKRAGET),
    "ioctl of the same type and another number": lambda device: ask(device, ANY_KEYS.sized(96) + 1),
    "flush": lambda device: os.fdatasync(device.file),
    "write at an offset": lambda _: os.pwritev(TERMINAL[0], [b"x"], 0),
    "have room made": lambda device: os.posix_fallocate(device.file.fileno(), 0, 1),
    "go on with an io_uring": lambda _: call("io_uring_enter", TERMINAL[0], 0, 0, 0, None, 0),
    "call that is not granted": lambda _: os.getpgid(0),
    "type at the terminal": lambda _: type_at_the_terminal(),
    "kernel log": lambda _: call("syslog", 10, None, 0),
}


class Hostile(Device):
    """what a guest makes of a device that it has taken over"""

    kind = DeviceType.RNG
    victim: Path
    file: TextIO
    target: Path
    server: str

    def __init__(self, victim: str, server: str, written: str | None) -> None:
        self.victim = Path(victim)
        self.server = server
        self.target = Path(written or victim, "made")
        self.file = self.victim.open()
        self._written = written

    def grants(self) -> Grants:
        written = () if self._written is None else (self._written,)
        return Grants(
            written=written,
            ioctls=(Ioctl(BLKROGET), ANY_KEYS),
            system_calls=("getsid",),
            sockets=((socket.AF_UNIX, socket.SOCK_SEQPACKET),),
        )

    @property
    def queues(self) -> Sequence[Handler]:
        return [self.requestq]

    async def requestq(self, queue: Virtqueue) -> None:
        async for chain in queue:
            deed = (DEEDS | GRANTED | BESIDE | FREE | POSTCOPY)[chain.read(chain.readable).decode()]
            chain.write(self.outcome(deed).encode())
            queue.push(chain)

    def outcome(self, deed: Deed) -> str:
        """What came of it."""
        try:
            deed(self)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        except Exception as error:
            return repr(error)
        return "done"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--victim", required=True)
        parser.add_argument("--server", required=True)
        parser.add_argument("--written")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(options.victim, options.server, options.written)

    def close(self) -> None:
        self.file.close()


if __name__ == "__main__":
    sys.exit(run(Hostile))
