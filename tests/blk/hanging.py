"""A disk whose requests hang when it is told so, as those of a network file system do; to run a command with.

    unshare --map-root-user --mount python -m tests.blk.hanging [OPTIONS] --control=FD DISK BACKING COMMAND...

mounts a FUSE file system that is a single file over DISK, with the contents and the size of BACKING, and
becomes COMMAND. The size is asked for anew each time, because the kernel may remember nothing. Over the
socket FD the disk is told, a line for each:

    hang KIND           hold all requests of this kind: a name in KINDS
    hang KIND OFFSET    hold the next one of this kind at this offset, and no other
    deaf                take no requests any more; the kernel can cancel what nobody has taken
    go                  hold nothing any more, and carry out what was held, late, in order
    seen                answer "seen KIND=N ...": how many of each have come so far

It says "held KIND OFFSET SIZE" of each request that it holds, and "deaf" when there is one that it does not
take. It ends with its COMMAND, and when the socket is closed at the other end; then the kernel ends all that
hangs, with an error.
"""

import argparse
import errno
import os
import select
import socket
from collections import Counter
from pathlib import Path

from tests.blk.fuse import (
    DIRECT_IO,
    FALLOCATE,
    FLUSH,
    FSYNC,
    GETATTR,
    LSEEK,
    PARALLEL_DIRECT_WRITES,
    READ,
    UNANSWERED,
    WRITE,
    Disk,
    Refused,
    Request,
    receive,
    run,
)

KINDS = {
    READ: "read",
    WRITE: "write",
    FSYNC: "fsync",
    FALLOCATE: "fallocate",
    GETATTR: "size",
    LSEEK: "size",
    FLUSH: "close",
}
ALL = "all"
PIECE = 1 << 20


class Hanging(Disk):
    """What a guest sees is in the file `backing`. Zeros over zeros are not written: it may be sparse."""

    lasting = 0

    def __init__(self, backing: Path, control: socket.socket, options: argparse.Namespace) -> None:
        super().__init__()
        self.open_flags = DIRECT_IO | PARALLEL_DIRECT_WRITES if options.parallel else 0
        self._options = options
        self._backing = os.open(backing, os.O_RDWR | os.O_CLOEXEC)
        self._control = control
        self._heard = b""
        self._fuse = -1
        self._hanging: set[str] = set()
        self._once: set[tuple[str, int]] = set()
        self._held: list[Request] = []
        self._seen: Counter[str] = Counter()
        self._waiting = select.poll()
        self._written: set[int] = set()

    # --- The file ---------------------------------------------------------------------------------------

    def size(self) -> int:
        return os.fstat(self._backing).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._backing, size, offset)

    def _write(self, request: Request) -> bytes:
        if self._is_particular(request):
            self._written.add(request.place[0])
            raise Refused(errno.EINVAL)
        return super()._write(request)

    def change(self, offset: int, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            if os.pread(self._backing, len(piece), offset + start) != piece:
                os.pwrite(self._backing, piece, offset + start)

    def flush(self) -> None:
        if not self._options.tell_close:
            raise Refused(errno.ENOSYS)  # and the kernel never asks again

    def _zero(self, request: Request) -> bytes:
        if self._options.no_fallocate:
            raise Refused(errno.EOPNOTSUPP)
        return super()._zero(request)

    # --- Requests, and what is told ---------------------------------------------------------------------

    def serve(self, fuse: int, command: int) -> None:
        """As any disk does; what is told counts before what is asked."""
        self._fuse = fuse
        for fd in (fuse, command, self._control.fileno()):
            self._waiting.register(fd, select.POLLIN)
        while command not in (ready := dict(self._waiting.poll())):
            if self._control.fileno() in ready:
                if not self._listen():
                    return
            elif fuse in ready and not self._take():
                return

    def _take(self) -> bool:
        """Takes a request of the kernel's; False if there will be none any more."""
        if self._is_deaf:
            self._say("deaf")
            self._waiting.unregister(self._fuse)
            return True
        request = receive(self._fuse)
        if request is None:
            return False
        if request.opcode not in UNANSWERED:
            self._consider(request)
        return True

    @property
    def _is_deaf(self) -> bool:
        return "deaf" in self._hanging

    def _is_particular(self, request: Request) -> bool:
        """Whether this write is to be refused, as one is whose memory is not aligned."""
        particular: bool = self._options.particular and request.opcode == WRITE
        return particular and request.place[0] not in self._written

    def _hangs(self, request: Request) -> bool:
        kind, (offset, _) = _kind(request), request.place
        if self._is_particular(request):
            return False
        if (kind, offset) in self._once:
            self._once.discard((kind, offset))
            return True
        return bool(self._hanging & {kind, ALL})

    def _consider(self, request: Request) -> None:
        self._seen[_kind(request)] += 1
        if self._hangs(request):
            self._held.append(request)
            self._say(" ".join(["held", _kind(request), *map(str, request.place)]))
        else:
            self.answer(self._fuse, request)

    def _listen(self) -> bool:
        """Hears what is told; False if nobody tells anything any more."""
        data = self._control.recv(4096)
        *lines, self._heard = (self._heard + data).split(b"\n")
        for line in lines:
            self._obey(*line.decode().split())
        return bool(data)

    def _obey(self, verb: str, *arguments: str) -> None:
        match verb, *arguments:
            case "hang", kind:
                self._hanging.add(kind)
            case "hang", kind, offset:
                self._once.add((kind, int(offset)))
            case ("deaf",):
                self._hanging.add("deaf")
            case ("go",):
                self._go()
            case ("seen",):
                self._say(" ".join(["seen", *(f"{kind}={count}" for kind, count in self._seen.items())]))
            case _:
                raise ValueError(f"{verb} {arguments}")

    def _go(self) -> None:
        self._hanging.clear()
        self._once.clear()
        self._waiting.register(self._fuse, select.POLLIN)
        held, self._held = self._held, []
        for request in held:
            self.answer(self._fuse, request)

    def _say(self, line: str) -> None:
        self._control.sendall(line.encode() + b"\n")


def _kind(request: Request) -> str:
    return KINDS.get(request.opcode, "other")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--control", type=int, required=True, metavar="FD", help="the socket")
    add("--parallel", action="store_true", help="past the page cache, writes at a time, as a block device")
    add("--no-fallocate", action="store_true", help="neither holes nor ranges of zeros")
    add("--particular", action="store_true", help="the first write at each place is refused as misaligned")
    add("--tell-close", action="store_true", help="a close(2) is a request too")
    add("disk", type=Path)
    add("backing", type=Path)
    add("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    os.set_inheritable(options.control, False)
    disk = Hanging(options.backing, socket.socket(fileno=options.control), options)
    run(disk, options.disk, options.command)


if __name__ == "__main__":
    main()
