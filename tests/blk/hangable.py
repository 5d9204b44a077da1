"""vhost-user-blk on a disk that hangs when the test tells it to: the test's end of tests/blk/hanging.py."""

import asyncio
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.blk.fuse import CHECKOUT, on_disk
from tests.programs import Program, executable, listening

SIZE = 4 << 20


class Held(NamedTuple):
    """A request that hangs now: its kind as tests/blk/hanging.py names it, and where."""

    kind: str
    offset: int
    size: int


class Hangable:
    """A program that listens at `path`, and its disk, whose contents are in the file `image`."""

    def __init__(self, program: Program, path: Path, image: Path, control: socket.socket) -> None:
        self.program = program
        self.path = path
        self.image = image
        self._control = control
        self._heard = b""
        self._lines: list[list[str]] = []

    # --- The disk ---------------------------------------------------------------------------------------

    def hang(self, kind: str, at: int | None = None) -> None:
        """Has all requests of this kind hang from now on, or only the next one at an offset."""
        self._tell(f"hang {kind}" if at is None else f"hang {kind} {at}")

    def go_deaf(self) -> None:
        """Has the disk take no requests any more."""
        self._tell("deaf")

    def go(self) -> None:
        """Has the disk carry out what hangs, and from then on everything."""
        self._tell("go")

    def abort(self) -> None:
        """Ends the disk, and with it all that hangs there; idempotent."""
        if self._control.fileno() >= 0:
            self._control.close()

    async def held(self, kind: str | None = None) -> Held:
        """Waits until a request, of this kind, hangs; each is told once."""
        while True:
            _, found, offset, size = await self._line("held")
            if kind in (None, found):
                return Held(found, int(offset), int(size))

    async def ignores(self) -> None:
        """Waits until there is a request that the disk, which is deaf, does not take."""
        await self._line("deaf")

    async def seen(self, kind: str) -> int:
        """How many requests of this kind have come so far, be they held or not."""
        self._tell("seen")
        counts = dict(word.split("=") for word in (await self._line("seen"))[1:])
        return int(counts.get(kind, 0))

    def content(self, offset: int = 0, size: int = -1) -> bytes:
        """What the disk really has."""
        with self.image.open("rb") as image:
            image.seek(offset)
            return image.read(size)

    def _tell(self, line: str) -> None:
        self._control.sendall(line.encode() + b"\n")

    async def _line(self, verb: str) -> list[str]:
        """The next line that begins with this word; others are kept."""
        while True:
            for line in self._lines:
                if line[0] == verb:
                    self._lines.remove(line)
                    return line
            data = await asyncio.get_running_loop().sock_recv(self._control, 4096)
            assert data, "the disk has ended"
            *lines, self._heard = (self._heard + data).split(b"\n")
            self._lines += [line.decode().split() for line in lines]

    # --- The program ------------------------------------------------------------------------------------

    def threads(self) -> int:
        """How many the program has."""
        return len(os.listdir(self.program.proc / "task"))

    async def ends(self) -> float:
        """Waits for the program's end, and fails unless its status is 0; the time of the clock then."""
        status, lines = await asyncio.to_thread(self.program.ends)
        assert status == 0, "\n".join(lines)
        return time.monotonic()


@contextmanager
def hangable(
    folder: Path,
    *options: str,
    disk: tuple[str, ...] = (),
    size: int = SIZE,
    env: Mapping[str, str] | None = None,
) -> Iterator[Hangable]:
    """Starts the program, with these options, on such a disk, of zeros; at the end nothing hangs."""
    path, image, target = folder / "disk.sock", folder / "backing.img", folder / "hanging.img"
    with image.open("wb") as file:
        file.truncate(size)
    target.touch()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        command = [
            *on_disk("tests.blk.hanging", *disk, f"--control={fd}", target, image),
            *(executable("vhost-user-blk"), f"--blk-file={target}", *options),
        ]
        with listening(command, path, fds=[fd], cwd=str(CHECKOUT), env=env) as program:
            theirs.close()
            ours.setblocking(False)
            with ours:  # which ends the disk, before the program is killed: until then it might live for ever
                yield Hangable(program, path, image, ours)


def until_gone(path: Path, limit: float) -> None:
    """Looks again and again, for so many seconds, until there is nothing at `path`; nobody tells of that."""
    end = time.monotonic() + limit
    while path.exists():
        assert time.monotonic() < end, f"{path} is still there"
        os.sched_yield()
