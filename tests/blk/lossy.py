"""A disk that loses what was not flushed, as a power failure does; to run a command with.

    unshare --map-root-user --mount python -m tests.blk.lossy [--ask | --fail] DISK STABLE COMMAND...

mounts a FUSE file system that is a single file over DISK, as long as STABLE, and becomes COMMAND. What
COMMAND writes to DISK reaches STABLE at fsync and fdatasync only, by whatever way it asks for them. When
COMMAND ends, the disk ends at once, and STABLE is what a power failure has left.

With --ask every fsync is told as a line on stdout and waits for one on stdin; with --fail each fails. The
requests are those of Linux's include/uapi/linux/fuse.h, version 7.31.
"""

import argparse
import ctypes
import errno
import os
import select
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path

UNAVAILABLE = 77  # exit status where this machine lets nobody mount such a disk

VERSION = (7, 31)
GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FSYNC = 3, 4, 14, 15, 16, 18, 20
FLUSH, INIT, FALLOCATE = 25, 26, 43
UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
ASYNC_READ, BIG_WRITES = 1 << 0, 1 << 5

IN_HEADER = struct.Struct("=IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extensions, padding
OUT_HEADER = struct.Struct("=IiQ")  # len, error, unique
INIT_OUT = struct.Struct("=IIIIHHIIHHII24x")
ATTR_OUT = struct.Struct("=QII QQQ QQQ III IIIIIII")
TRANSFER = struct.Struct("=QQII16x")  # of READ and of WRITE: file, offset, size, flags
ALLOCATION = struct.Struct("=QQQII")  # file, offset, length, mode, padding
MOST = 1 << 17  # bytes of a WRITE

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # fallocate(2)
MS_NOSUID, MS_NODEV = 2, 4


class Refused(Exception):
    """A request ends with an errno."""


class Disk:
    """The file that is mounted: what a guest sees in `contents`, what is safe in the file `stable`."""

    def __init__(self, stable: Path, synced: Callable[[], None]) -> None:
        self._contents = bytearray(stable.read_bytes())
        self._stable = os.open(stable, os.O_WRONLY | os.O_CLOEXEC)
        self._dirty: list[tuple[int, int]] = []  # offset, size
        self._synced = synced
        self._calls: dict[int, Callable[[bytes], bytes]] = {
            INIT: self._init,
            GETATTR: self._attributes,
            SETATTR: self._attributes,
            OPEN: lambda _: bytes(16),
            READ: self._read,
            WRITE: self._write,
            FSYNC: self._sync,
            FALLOCATE: self._zero,
            RELEASE: lambda _: b"",
            FLUSH: lambda _: b"",  # a close(2), which makes nothing safe
        }

    def serve(self, fuse: int, command: int) -> None:
        """Answers the kernel's requests, one after the other, until the command of this pidfd has ended."""
        waiting = select.poll()
        for fd in (fuse, command):
            waiting.register(fd, select.POLLIN)
        while command not in dict(waiting.poll()):
            try:
                request = os.read(fuse, MOST + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
            if opcode in UNANSWERED:
                continue
            code, body = self._call(opcode, request[IN_HEADER.size :])
            os.write(fuse, OUT_HEADER.pack(OUT_HEADER.size + len(body), -code, unique) + body)

    def _call(self, opcode: int, body: bytes) -> tuple[int, bytes]:
        if opcode not in self._calls:
            return errno.ENOSYS, b""
        try:
            return 0, self._calls[opcode](body)
        except Refused as error:
            return error.args[0], b""

    def _init(self, _body: bytes) -> bytes:
        return INIT_OUT.pack(*VERSION, MOST, ASYNC_READ | BIG_WRITES, 16, 12, MOST, 1, 0, 0, 0, 0)

    def _attributes(self, _body: bytes) -> bytes:
        size, mode = len(self._contents), stat.S_IFREG | 0o600
        return ATTR_OUT.pack(3600, 0, 0, 1, size, size // 512, *[0] * 6, mode, 1, 0, 0, 0, 4096, 0)

    def _read(self, body: bytes) -> bytes:
        _, offset, size, _ = TRANSFER.unpack_from(body)
        return bytes(self._contents[offset : offset + size])

    def _write(self, body: bytes) -> bytes:
        _, offset, size, _ = TRANSFER.unpack_from(body)
        if offset + size > len(self._contents):
            raise Refused(errno.ENOSPC)
        self._change(offset, body[TRANSFER.size : TRANSFER.size + size])
        return struct.pack("=II", size, 0)

    def _zero(self, body: bytes) -> bytes:
        _, offset, size, mode, _ = ALLOCATION.unpack_from(body)
        if mode not in (PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE):
            raise Refused(errno.EOPNOTSUPP)
        self._change(offset, bytes(max(min(size, len(self._contents) - offset), 0)))
        return b""

    def _sync(self, _body: bytes) -> bytes:
        self._synced()
        for offset, size in self._dirty:
            os.pwrite(self._stable, self._contents[offset : offset + size], offset)
        self._dirty.clear()
        return b""

    def _change(self, offset: int, data: bytes) -> None:
        self._contents[offset : offset + len(data)] = data
        self._dirty.append((offset, len(data)))


def ask() -> None:
    """Tells of an fsync, and waits until it may happen."""
    os.write(1, b"fsync\n")
    os.read(0, 1)


def fail() -> None:
    """What a disk says that cannot keep what it has."""
    raise Refused(errno.EIO)


def mount(target: Path) -> int:
    """Mounts the file system over `target`; the fd from which it is served. OSError if that is impossible."""
    libc = ctypes.CDLL(None, use_errno=True)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
    if libc.mount(b"lossy", bytes(target), b"fuse", MS_NOSUID | MS_NODEV, options.encode()):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return fuse


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ask", dest="synced", action="store_const", const=ask, default=lambda: None)
    parser.add_argument("--fail", dest="synced", action="store_const", const=fail)
    parser.add_argument("disk", type=Path)
    parser.add_argument("stable", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    disk = Disk(options.stable, options.synced)
    try:
        fuse = mount(options.disk)
    except OSError as error:
        print(f"a FUSE file system cannot be mounted here: {error}", file=sys.stderr)
        raise SystemExit(UNAVAILABLE) from None
    ready, tell = os.pipe()
    if os.fork():
        os.read(ready, 1)
        os.execvp(options.command[0], options.command)
    # The disk is to vanish with the command, which does not begin before that is sure. PR_SET_PDEATHSIG would
    # not do: a program in its sandbox sends no signals, not even then.
    command = os.pidfd_open(os.getppid())
    os.write(tell, b".")
    disk.serve(fuse, command)


if __name__ == "__main__":
    main()
