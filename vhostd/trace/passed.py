"""What a passed fd is, as far as the kernel tells whoever holds it."""

import fcntl
import os
import re
import stat

from pydantic import BaseModel

from vhostd.wire.fds import Fd

ANONYMOUS = re.compile(r"anon_inode:\[?(\w+)\]?$")
MEMFD = re.compile(r"/memfd:.* \(deleted\)$")
DMABUF = re.compile(r"/dmabuf:")
EVENTFD_ID = re.compile(r"^eventfd-id:\s*(\d+)$", re.MULTILINE)
KINDS = {stat.S_ISSOCK: "socket", stat.S_ISCHR: "device", stat.S_ISDIR: "folder"}
SIZES = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


class PassedFd(BaseModel):
    """A passed fd. Fds of one `identity` are the same file, where the kernel has a name for it.

    `size` is in bytes, `path` that of a file, or of a device.
    """

    kind: str
    size: int | None = None
    path: str | None = None
    identity: str | None = None

    def __str__(self) -> str:
        words = (self.kind, self.path or "", "" if self.size is None else show_size(self.size))
        return " ".join(filter(None, words))


def describe(fd: Fd) -> PassedFd:
    """What the fd is."""
    target = os.readlink(f"/proc/self/fd/{fd.fileno()}")
    if anonymous := ANONYMOUS.match(target):
        return PassedFd(kind=anonymous[1], identity=_eventfd(fd) if anonymous[1] == "eventfd" else None)
    status = os.fstat(fd.fileno())
    identity = f"{status.st_dev:x}:{status.st_ino}"
    if stat.S_ISFIFO(status.st_mode):
        writes = fcntl.fcntl(fd.fileno(), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        return PassedFd(kind="write pipe" if writes else "read pipe", identity=f"{identity}:{writes:d}")
    for is_kind, kind in KINDS.items():
        if is_kind(status.st_mode):
            path = target if target.startswith("/") else None
            return PassedFd(kind=kind, path=path, identity=identity)
    if MEMFD.match(target):
        return PassedFd(kind="memfd", size=status.st_size, identity=identity)
    if DMABUF.match(target):
        return PassedFd(kind="dmabuf", size=status.st_size, identity=identity)
    return PassedFd(kind="file", size=status.st_size, path=target, identity=identity)


def show_size(size: int) -> str:
    """A size in the largest unit that it is a multiple of."""
    for unit, factor in SIZES:
        if size and not size % factor:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _eventfd(fd: Fd) -> str | None:
    """All eventfds have one inode. The kernel numbers them beside that."""
    with open(f"/proc/self/fdinfo/{fd.fileno()}") as file:
        found = EVENTFD_ID.search(file.read())
    return f"eventfd:{found[1]}" if found else None
