"""A file system that is a single file, served by a process of its own over /dev/fuse; to run a command on.

The requests are those of Linux's include/uapi/linux/fuse.h, version 7.31.
"""

import ctypes
import errno
import os
import select
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

UNAVAILABLE = 77  # exit status where this machine lets nobody mount such a disk

VERSION = (7, 31)
GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FSYNC = 3, 4, 14, 15, 16, 18, 20
FLUSH, INIT, FALLOCATE, LSEEK = 25, 26, 43, 46
UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
ASYNC_READ, BIG_WRITES = 1 << 0, 1 << 5
DIRECT_IO, PARALLEL_DIRECT_WRITES = 1 << 0, 1 << 6  # of an open file

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
OPEN_OUT = struct.Struct("=QII")  # file, flags, padding
ATTR_OUT = struct.Struct("=QII QQQ QQQ III IIIIIII")
TRANSFER = struct.Struct("=QQII16x")  # of READ and of WRITE: file, offset, size, flags
ALLOCATION = struct.Struct("=QQQII")  # file, offset, length, mode, padding
MOST = 1 << 17  # bytes of a WRITE

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # fallocate(2)
MS_NOSUID, MS_NODEV = 2, 4
CHECKOUT = Path(__file__).parents[2]


class Refused(Exception):
    """A request ends with an errno."""


class Request(NamedTuple):
    """What the kernel asks."""

    opcode: int
    unique: int
    body: bytes

    @property
    def place(self) -> tuple[int, int]:
        """The offset and the size of a READ, a WRITE or a FALLOCATE; zeros for all others."""
        if self.opcode in (READ, WRITE):
            _, offset, size, _ = TRANSFER.unpack_from(self.body)
        elif self.opcode == FALLOCATE:
            _, offset, size, _, _ = ALLOCATION.unpack_from(self.body)
        else:
            return 0, 0
        return offset, size


class Disk:
    """The file that is mounted. Whoever derives from it says where its contents are."""

    lasting = 3600  # seconds for which the kernel believes what it was told of the size
    open_flags = 0

    def __init__(self) -> None:
        self._calls: dict[int, Callable[[Request], bytes]] = {
            INIT: self._init,
            GETATTR: self._attributes,
            SETATTR: self._attributes,
            OPEN: lambda _: OPEN_OUT.pack(0, self.open_flags, 0),
            READ: lambda request: self.read(*request.place),
            WRITE: self._write,
            FSYNC: self._sync,
            FALLOCATE: self._zero,
            RELEASE: lambda _: b"",
            FLUSH: self._flush,
        }

    def size(self) -> int:
        """In bytes."""
        raise NotImplementedError

    def read(self, offset: int, size: int) -> bytes:
        """What is there; less where the file ends."""
        raise NotImplementedError

    def change(self, offset: int, data: bytes) -> None:
        """Writes within the file."""
        raise NotImplementedError

    def sync(self) -> None:
        """Makes what was written safe."""

    def flush(self) -> None:
        """A close(2), which makes nothing safe."""

    def answer(self, fuse: int, request: Request) -> None:
        """Carries a request out, and tells the kernel."""
        code, body = self._call(request)
        with suppress(FileNotFoundError):  # whoever asked was killed, and waits no more
            os.write(fuse, OUT_HEADER.pack(OUT_HEADER.size + len(body), -code, request.unique) + body)

    def serve(self, fuse: int, command: int) -> None:
        """Answers the kernel's requests, one after the other, until the command of this pidfd has ended."""
        waiting = select.poll()
        for fd in (fuse, command):
            waiting.register(fd, select.POLLIN)
        while command not in dict(waiting.poll()):
            request = receive(fuse)
            if request is None:
                return
            if request.opcode not in UNANSWERED:
                self.answer(fuse, request)

    def _call(self, request: Request) -> tuple[int, bytes]:
        if request.opcode not in self._calls:
            return errno.ENOSYS, b""
        try:
            return 0, self._calls[request.opcode](request)
        except Refused as error:
            return error.args[0], b""

    def _init(self, _: Request) -> bytes:
        return INIT_OUT.pack(*VERSION, MOST, ASYNC_READ | BIG_WRITES, 16, 12, MOST, 1, 0, 0, 0, 0)

    def _attributes(self, _: Request) -> bytes:
        size, mode = self.size(), stat.S_IFREG | 0o600
        return ATTR_OUT.pack(self.lasting, 0, 0, 1, size, size // 512, *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _write(self, request: Request) -> bytes:
        offset, size = request.place
        if offset + size > self.size():
            raise Refused(errno.ENOSPC)
        self.change(offset, request.body[TRANSFER.size : TRANSFER.size + size])
        return struct.pack("=II", size, 0)

    def _zero(self, request: Request) -> bytes:
        _, offset, size, mode, _ = ALLOCATION.unpack_from(request.body)
        if mode not in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE):
            raise Refused(errno.EOPNOTSUPP)
        self.change(offset, bytes(max(min(size, self.size() - offset), 0)))
        return b""

    def _sync(self, _: Request) -> bytes:
        self.sync()
        return b""

    def _flush(self, _: Request) -> bytes:
        self.flush()
        return b""


def receive(fuse: int) -> Request | None:
    """The kernel's next request; None if the file system is mounted no more."""
    try:
        data = os.read(fuse, MOST + 4096)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    _, opcode, unique, *_ = IN_HEADER.unpack_from(data)
    return Request(opcode, unique, data[IN_HEADER.size :])


def run(disk: Disk, target: Path, command: Sequence[str]) -> None:
    """Mounts the disk over the file `target`, and becomes the command; another process serves the disk.

    When the command ends, the disk ends at once. It is closed once before, so that the kernel knows whether
    the disk wants to be told of that.
    """
    try:
        fuse = _mount(target)
    except OSError as error:
        print(f"a FUSE file system cannot be mounted here: {error}", file=sys.stderr)
        raise SystemExit(UNAVAILABLE) from None
    ready, tell = os.pipe()
    if os.fork():
        os.read(ready, 1)
        os.close(os.open(target, os.O_RDONLY))
        os.execvp(command[0], list(command))
    # The disk is to vanish with the command, which does not begin before that is sure. PR_SET_PDEATHSIG would
    # not do: a program in its sandbox sends no signals, not even then.
    ended = os.pidfd_open(os.getppid())
    os.write(tell, b".")
    disk.serve(fuse, ended)


def on_disk(module: str, *arguments: str | Path) -> list[str]:
    """The beginning of a command, to be run in the checkout, that has the disk of that module."""
    return [
        *("unshare", "--map-root-user", "--mount", "--propagation=unchanged"),
        *(sys.executable, "-m", module, *map(str, arguments)),
    ]


def why_not(beginning: Sequence[str], fds: Sequence[int] = ()) -> str | None:
    """Why no command can be run on such a disk here: in a container without privileges, for example."""
    done = subprocess.run(
        [*beginning, "true"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        pass_fds=fds,
    )
    if done.returncode == UNAVAILABLE or done.stderr.startswith("unshare:"):
        return done.stderr.strip()
    assert done.returncode == 0, done.stderr
    return None


def _mount(target: Path) -> int:
    """Mounts a file system over `target`; the fd from which it is served. OSError if that is impossible."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
    if libc.mount(b"test", bytes(target), b"fuse", MS_NOSUID | MS_NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fuse
