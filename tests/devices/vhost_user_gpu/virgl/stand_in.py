"""A renderer in a thread of the test, whose library is a stand-in: its textures are memfds that it exports.

What no GPU is needed for: the real messages, the real card, the real display, and a front-end to look at.
"""

import asyncio
import errno
import mmap
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from vhost_user_gpu.answer import Answer, Pending
from vhost_user_gpu.commands import ResourceCreate3d, ResourceFlush, ResourceId, SetScanout
from vhost_user_gpu.display import Display
from vhost_user_gpu.exporter import Exporter
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.virgl import renderer
from vhost_user_gpu.virgl.card import VirglCard
from vhost_user_gpu.virgl.engine import Engine
from vhost_user_gpu.virgl.launcher import Abilities, Launcher
from vhost_user_gpu.virgl.remote import Fence, Remote
from vhostd.frontend.drivers.gpu_display import DMABUF2, EDID, GpuDisplay

PIXEL = 4
SIZE = (20, 10)
WHOLE = Rect(0, 0, *SIZE)
B8G8R8A8 = 1
FOURCC = int.from_bytes(b"AR24", "little")
FILL = struct.Struct("<III")  # our command: a texture, its rows from the first on, a pixel
ROOM = 64 << 20
PATIENCE = 20.0
TURNS = 5  # of the loop, in which cancelled tasks come to their ends


class Memory:
    """A region, as the library's own class has it, to be written from Python as well."""

    def __init__(self, fd: int, size: int) -> None:
        self.map = mmap.mmap(fd, size)

    def bytes(self, offset: int, size: int) -> bytes:
        return self.map[offset : offset + size]


class Texture:
    """A picture in a memfd, the top row first, with a gap after each row."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.stride = PIXEL * width + 48
        self.fd = os.memfd_create("texture", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.stride * height)
        self.map = mmap.mmap(self.fd, self.stride * height)

    def close(self) -> None:
        self.map.close()
        os.close(self.fd)


class Library:
    """In place of both Virgl and Egl. Fences signal at once, unless they are held."""

    poll_fd = -1
    has_context_init = False

    def __init__(self) -> None:
        self.textures: dict[int, Texture] = {}
        self.fences: list[int] = []
        self.holds_fences = False
        self.offset = self.modifier = self.reads = self.exports = 0
        self.can_export = True
        self.hung = threading.Lock()  # while somebody holds it, exports take their time

    def gl_string(self, _number: int) -> str:
        return "llvmpipe"

    def create_context(self, _number: int, _flags: int, _name: bytes) -> int:
        return 0

    def create_resource(self, number: int, _target: int, _kind: int, _bind: int, *size: int) -> int:
        self.textures[number] = Texture(*size[:2])
        return 0

    def free_resource(self, number: int) -> None:
        self.textures.pop(number).close()

    def submit(self, _context: int, memory: Memory, offset: int, size: int) -> int:
        number, rows, pixel = FILL.unpack(memory.bytes(offset, size))
        texture = self.textures[number]
        row = struct.pack("<I", pixel) * texture.width
        for y in range(rows):
            texture.map[y * texture.stride : y * texture.stride + len(row)] = row
        return 0

    def read(self, number: int, into: Memory, stride: int, x: int, y: int, width: int, height: int) -> int:
        texture = self.textures[number]
        for row in range(y, y + height):
            start = row * texture.stride + x * PIXEL
            to = row * stride + x * PIXEL
            into.map[to : to + width * PIXEL] = texture.map[start : start + width * PIXEL]
        self.reads += 1
        return 0

    def texture(self, number: int) -> tuple[int, int]:
        return number, 0

    def export(self, number: int) -> tuple[int, int, int, int, int]:
        if not self.can_export:
            raise OSError(errno.ENOTSUP, "no")
        texture = self.textures[number]
        with self.hung:
            self.exports += 1
        return os.dup(texture.fd), texture.stride, self.offset, FOURCC, self.modifier

    def finish(self) -> None:
        pass

    def create_fence(self, serial: int, _context: int) -> int:
        self.fences.append(serial)
        return 0

    def poll(self) -> list[tuple[bool, int]]:
        if self.holds_fences:
            return []
        signalled, self.fences = self.fences, []
        return [(True, serial) for serial in signalled]


class Threads:
    """A launcher of renderers, each in a thread."""

    abilities = Abilities({}, has_context_init=False, exports=True, renderer="stand-in", version="")

    def __init__(self, library: Library) -> None:
        self._library = library
        self._threads: list[threading.Thread] = []
        self.socket: socket.socket | None = None  # the last renderer's

    def start(self, lost: Any) -> Remote:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        library = cast(Any, self._library)
        thread = threading.Thread(
            target=self._run, args=(renderer.Renderer(theirs, library, library), theirs)
        )
        self._threads.append(thread)
        self.socket = theirs
        thread.start()
        return Remote(ours, lost, greeted=True)

    @staticmethod
    def _run(it: renderer.Renderer, sock: socket.socket) -> None:
        with sock, suppress(OSError):  # the other side is gone
            it.run()

    def end(self) -> None:
        pass

    def close(self) -> None:
        for thread in self._threads:
            thread.join()


class Machine:
    """A card with a stand-in for a renderer, and front-ends to show on."""

    def __init__(self) -> None:
        self.library = Library()
        self.threads = Threads(self.library)
        self.engine = Engine(cast(Launcher, self.threads))
        self.outputs = Outputs(16, *SIZE)
        self.card = VirglCard(self.outputs, ROOM, self._changed, self.engine)
        self.displays: list[Display] = []
        self.seen: list[GpuDisplay] = []

    def _changed(self, scanout: Any) -> None:
        for display in self.displays[-1:]:
            display.update(scanout)

    async def connect(self, features: int = EDID | DMABUF2, *, dmabuf: bool = True) -> GpuDisplay:
        """Another front-end, in place of the one before."""
        for display in self.displays[-1:]:
            display.close()
        ours, theirs = socket.socketpair()
        seen = GpuDisplay(theirs, features=features, modes=[SIZE])
        seen.patience = PATIENCE
        exporter = Exporter("/nonexistent", blobs=False) if dmabuf else None
        ours.setblocking(False)
        self.displays.append(Display(ours, self.card.scanouts, self.outputs, lambda: None, exporter))
        self.seen.append(seen)
        await seen.until(lambda: seen.accepted is not None)
        return seen

    async def texture(self, number: int, size: tuple[int, int] = SIZE) -> None:
        """A new texture."""
        new = ResourceCreate3d(number, 2, B8G8R8A8, 2, *size, 1, 1, 0, 0, 0, 0)
        assert not (await answer(self.card.create_3d(new, cast(Any, None))))[0].is_error

    async def paint(self, number: int, pixel: int, rows: int = SIZE[1]) -> None:
        """Fills a texture's first rows; nobody is told."""
        await answer(self.engine.submit(1, FILL.pack(number, rows, pixel), Fence()))

    def show(self, number: int, rect: Rect = WHOLE, scanout: int = 0) -> Any:
        """SET_SCANOUT."""
        return self.card.show_any(SetScanout(*rect, scanout, number), cast(Any, None))

    async def flush(self, number: int, rect: Rect = WHOLE) -> Any:
        """RESOURCE_FLUSH."""
        return await answer(self.card.flush_any(ResourceFlush(*rect, number, 0), cast(Any, None)))

    def unref(self, number: int) -> Any:
        """RESOURCE_UNREF."""
        return self.card.unref_any(ResourceId(number, 0), cast(Any, None))


async def answer(outcome: Any) -> Answer:
    """What a command is answered, now or later."""
    if not isinstance(outcome, Pending):
        return cast(Answer, outcome)
    there: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    outcome.then(there.set_result)
    async with asyncio.timeout(PATIENCE):
        return await there


@asynccontextmanager
async def machine(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    """A machine; afterwards nothing of it is left."""
    monkeypatch.setattr(renderer, "Memory", Memory)
    it = Machine()
    try:
        yield it
    finally:
        for display in it.displays:
            display.close()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        it.card.reset()
        it.engine.close()
        for seen in it.seen:
            seen.close()
        for texture in it.library.textures.values():
            texture.close()


def solid(*rows: tuple[int, int], width: int = SIZE[0]) -> bytes:
    """Pixels: so many rows of each."""
    return b"".join(struct.pack("<I", pixel) * width * count for count, pixel in rows)
