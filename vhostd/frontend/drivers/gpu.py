"""A guest's virtio-gpu driver to script, and pictures in its memory.

The numbers are those of virtio 1.3, 5.7, written down here once more, so that a device of ours and this
driver check each other.
"""

import asyncio
import random
import struct
from collections.abc import Sequence
from typing import NamedTuple, Self
from uuid import UUID

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.queue import Queue

PAGE = 4096
PIXEL = 4  # bytes

# Feature bits of the device.
EDID, RESOURCE_UUID, RESOURCE_BLOB = 1, 2, 3

B8G8R8A8, B8G8R8X8, R8G8B8A8 = 1, 2, 67  # formats, by the bytes of a pixel in memory

OK, OK_DISPLAY_INFO, OK_CAPSET_INFO, OK_CAPSET, OK_EDID, OK_RESOURCE_UUID = range(0x1100, 0x1106)
ERR_UNSPEC, ERR_OUT_OF_MEMORY, ERR_SCANOUT, ERR_RESOURCE = range(0x1200, 0x1204)
ERR_PARAMETER = 0x1205

BLOB_MEM_GUEST = 1
FENCE = 1  # a flag

HEADER = struct.Struct("<IIQIBxxx")  # type, flags, fence_id, ctx_id, ring_idx
MODES = struct.Struct("<" + "IIIIII" * 16)

Rect = tuple[int, int, int, int]  # x, y, width, height
Range = tuple[int, int]  # guest address, bytes


class Command:
    """Types of requests (5.7.6.7)."""

    GET_DISPLAY_INFO = 0x100
    RESOURCE_CREATE_2D = 0x101
    RESOURCE_UNREF = 0x102
    SET_SCANOUT = 0x103
    RESOURCE_FLUSH = 0x104
    TRANSFER_TO_HOST_2D = 0x105
    RESOURCE_ATTACH_BACKING = 0x106
    RESOURCE_DETACH_BACKING = 0x107
    GET_CAPSET_INFO = 0x108
    GET_CAPSET = 0x109
    GET_EDID = 0x10A
    RESOURCE_ASSIGN_UUID = 0x10B
    RESOURCE_CREATE_BLOB = 0x10C
    SET_SCANOUT_BLOB = 0x10D
    CTX_CREATE = 0x200
    CTX_DESTROY = 0x201
    CTX_ATTACH_RESOURCE = 0x202
    CTX_DETACH_RESOURCE = 0x203
    RESOURCE_CREATE_3D = 0x204
    TRANSFER_TO_HOST_3D = 0x205
    TRANSFER_FROM_HOST_3D = 0x206
    SUBMIT_3D = 0x207
    UPDATE_CURSOR = 0x300
    MOVE_CURSOR = 0x301


class RefusedCommand(DeviceError):
    """The device answered with an error, `code`."""

    def __init__(self, code: int) -> None:
        super().__init__(f"answered with {code:#x}")
        self.code = code


class Mode(NamedTuple):
    """A scan-out's part of the answer to GET_DISPLAY_INFO."""

    x: int
    y: int
    width: int
    height: int
    enabled: int
    flags: int


class GpuDriver:
    """Drives a GPU over its two queues, which it owns; as many commands at a time as they have room for.

    Every command raises RefusedCommand if the device says no, DeviceError if it says what no device may, and
    what a `Pipeline` raises. With `fences` every command asks for its fence, which the device must name.
    """

    def __init__(self, control: Queue, cursor: Queue, *, fences: bool = False) -> None:
        self.fences = fences
        self._control = Pipeline(control)
        self._cursor = Pipeline(cursor)
        self._fence_id = 0x1_0000_0000  # does not fit into 32 bits

    @classmethod
    async def start(
        cls, frontend: Frontend, memory: SharedMemory, *, size: int = 256, fences: bool = False
    ) -> Self:
        """Starts both queues, of `size` descriptors, of which a command takes two."""
        control = await frontend.start(memory, 0, size)
        return cls(control, await frontend.start(memory, 1, size), fences=fences)

    async def stop(self, frontend: Frontend) -> None:
        """Stops both rings, as at a guest's reset, and closes."""
        for line in (self._control, self._cursor):
            await frontend.stop(line.queue)
        self.close()

    def close(self) -> None:
        """Closes the queues; what still waits for an answer is cancelled. Idempotent."""
        self._control.close()
        self._cursor.close()

    async def command(self, data: bytes, room: int) -> bytes:
        """What the device writes, into `room` bytes, when it gets these on the control queue."""
        answer = self.post(data, room)
        self.kick()
        return await self._control.answer(answer)

    def post(self, data: bytes, room: int) -> "asyncio.Future[bytes]":
        """Queues bytes without a word to the device; the future is of its answer."""
        return self._control.post(data, room)

    def kick(self) -> None:
        """Tells the device of what was posted, if it wants to be told."""
        self._control.kick()

    # --- Pictures ---------------------------------------------------------------------------------------

    async def create_2d(self, resource: int, width: int, height: int, kind: int = B8G8R8X8) -> None:
        """Makes a picture in the host's memory."""
        await self._do(Command.RESOURCE_CREATE_2D, struct.pack("<IIII", resource, kind, width, height))

    async def create_blob(
        self,
        resource: int,
        ranges: Sequence[Range],
        size: int,
        *,
        blob_mem: int = BLOB_MEM_GUEST,
        flags: int = 0,
        blob_id: int = 0,
    ) -> None:
        """Makes a resource of the guest's memory itself."""
        head = struct.pack("<IIIIQQ", resource, blob_mem, flags, len(ranges), blob_id, size)
        await self._do(Command.RESOURCE_CREATE_BLOB, head + entries(ranges))

    async def unref(self, resource: int) -> None:
        """Frees a resource."""
        await self._do(Command.RESOURCE_UNREF, struct.pack("<II", resource, 0))

    async def attach_backing(self, resource: int, ranges: Sequence[Range]) -> None:
        """Says where in the guest's memory a resource's pixels are."""
        await self._do(
            Command.RESOURCE_ATTACH_BACKING, struct.pack("<II", resource, len(ranges)) + entries(ranges)
        )

    async def detach_backing(self, resource: int) -> None:
        """Takes the guest's memory away from a resource."""
        await self._do(Command.RESOURCE_DETACH_BACKING, struct.pack("<II", resource, 0))

    async def transfer(self, resource: int, rect: Rect, offset: int = 0) -> None:
        """Has a rectangle copied out of the guest's memory, from `offset` on."""
        await self._do(Command.TRANSFER_TO_HOST_2D, transfer(resource, rect, offset))

    async def flush(self, resource: int, rect: Rect) -> None:
        """Has a rectangle shown."""
        await self._do(Command.RESOURCE_FLUSH, flush(resource, rect))

    async def set_scanout(self, scanout: int, resource: int, rect: Rect = (0, 0, 0, 0)) -> None:
        """Shows a part of a resource; resource 0 to show nothing."""
        await self._do(Command.SET_SCANOUT, struct.pack("<IIIIII", *rect, scanout, resource))

    async def set_scanout_blob(
        self,
        scanout: int,
        resource: int,
        rect: Rect,
        *,
        width: int,
        height: int,
        stride: int,
        kind: int = B8G8R8X8,
        offset: int = 0,
    ) -> None:
        """Shows a part of a blob, which holds a picture of this size from `offset` on."""
        what = (scanout, resource, width, height, kind, 0)
        planes = struct.pack("<IIIIIIII", stride, 0, 0, 0, offset, 0, 0, 0)
        await self._do(Command.SET_SCANOUT_BLOB, struct.pack("<IIIIIIIIII", *rect, *what) + planes)

    async def present(self, resource: int, rect: Rect, offset: int = 0) -> None:
        """A transfer and a flush of a rectangle with one kick, as Linux does; until both are answered."""
        answers = (
            self._post(Command.TRANSFER_TO_HOST_2D, transfer(resource, rect, offset)),
            self._post(Command.RESOURCE_FLUSH, flush(resource, rect)),
        )
        self.kick()
        for answer in answers:
            await self._answer(*answer)

    async def flushes(self, count: int, resource: int, rect: Rect) -> None:
        """As many flushes at once, until all are answered."""
        answers = [self._post(Command.RESOURCE_FLUSH, flush(resource, rect)) for _ in range(count)]
        self.kick()
        for answer in answers:
            await self._answer(*answer)

    # --- Questions --------------------------------------------------------------------------------------

    async def display_info(self) -> list[Mode]:
        """The scan-outs, with their monitors."""
        body = await self._do(Command.GET_DISPLAY_INFO, room=MODES.size, expected=OK_DISPLAY_INFO)
        values = MODES.unpack(body)
        return [Mode(*values[at : at + 6]) for at in range(0, len(values), 6)]

    async def edid(self, scanout: int) -> bytes:
        """The scan-out's EDID."""
        body = await self._ask(Command.GET_EDID, scanout, 8 + 1024, OK_EDID)
        size, _padding = struct.unpack_from("<II", body)
        return body[8 : 8 + size]

    async def assign_uuid(self, resource: int) -> UUID:
        """A name for a resource, for other devices."""
        return UUID(bytes=await self._ask(Command.RESOURCE_ASSIGN_UUID, resource, 16, OK_RESOURCE_UUID))

    async def capset(self, number: int, version: int, size: int) -> bytes:
        """A capability set, of `size` bytes."""
        body = struct.pack("<II", number, version)
        return await self._do(Command.GET_CAPSET, body, room=size, expected=OK_CAPSET)

    async def capset_info(self, index: int) -> tuple[int, ...]:
        """The capability set's number, its latest version and its size."""
        return struct.unpack("<III4x", await self._ask(Command.GET_CAPSET_INFO, index, 16, OK_CAPSET_INFO))

    # --- The cursor -------------------------------------------------------------------------------------

    async def update_cursor(
        self, scanout: int, x: int, y: int, resource: int, hot_x: int = 0, hot_y: int = 0
    ) -> None:
        """Gives the cursor a resource's pixels and a place; resource 0 hides it."""
        await self._cursor_command(Command.UPDATE_CURSOR, scanout, x, y, 0, resource, hot_x, hot_y, 0)

    async def move_cursor(self, scanout: int, x: int, y: int, resource: int) -> None:
        """Moves the cursor, and shows it; resource 0 hides it."""
        await self._cursor_command(Command.MOVE_CURSOR, scanout, x, y, 0, resource, 0, 0, 0)

    async def _cursor_command(self, number: int, *fields: int) -> None:
        answer = self._cursor.post(HEADER.pack(number, 0, 0, 0, 0) + struct.pack("<IIIIIIII", *fields), 0)
        self._cursor.kick()
        if written := await self._cursor.answer(answer):
            raise DeviceError(f"{len(written)} bytes in answer to a cursor command")

    # --- One command ------------------------------------------------------------------------------------

    async def _ask(self, number: int, what: int, room: int, expected: int) -> bytes:
        return await self._do(number, struct.pack("<II", what, 0), room=room, expected=expected)

    async def do(self, number: int, body: bytes = b"", context: int = 0) -> None:
        """A command with this body, in a 3D context or in none, that has no content in its answer."""
        answer, fence_id = self._post(number, body, context=context)
        self.kick()
        await self._answer(answer, fence_id, context=context)

    async def _do(self, number: int, body: bytes = b"", *, room: int = 0, expected: int = OK) -> bytes:
        answer, fence_id = self._post(number, body, room)
        self.kick()
        return await self._answer(answer, fence_id, expected, room)

    def _post(
        self, number: int, body: bytes, room: int = 0, context: int = 0
    ) -> "tuple[asyncio.Future[bytes], int]":
        self._fence_id += 1
        fence = (FENCE, self._fence_id) if self.fences else (0, 0)
        head = HEADER.pack(number, *fence, self._named(context, self._fence_id), 0)
        return self.post(head + body, HEADER.size + room), self._fence_id

    def _named(self, context: int, fence_id: int) -> int:
        """The context of a command that needs none: with fences a number that the device must repeat."""
        return context or (fence_id % 7 if self.fences else 0)

    async def _answer(
        self,
        answer: "asyncio.Future[bytes]",
        fence_id: int,
        expected: int = OK,
        room: int = 0,
        context: int = 0,
    ) -> bytes:
        data = await self._control.answer(answer)
        if len(data) < HEADER.size:
            raise DeviceError(f"an answer of {len(data)} bytes")
        code, flags, *fence = HEADER.unpack_from(data)
        wanted = [FENCE, fence_id, self._named(context, fence_id)] if self.fences else [0, 0, 0]
        if [flags, *fence[:2]] != wanted:
            raise DeviceError(f"fence {[flags, *fence]} where {wanted} was due")
        if code != expected:
            raise RefusedCommand(code)
        if len(data) != HEADER.size + room:
            raise DeviceError(f"{len(data)} bytes for {expected:#x}")
        return data[HEADER.size :]


def transfer(resource: int, rect: Rect, offset: int = 0) -> bytes:
    """The body of TRANSFER_TO_HOST_2D."""
    return struct.pack("<IIIIQII", *rect, offset, resource, 0)


def flush(resource: int, rect: Rect) -> bytes:
    """The body of RESOURCE_FLUSH."""
    return struct.pack("<IIIIII", *rect, resource, 0)


def entries(ranges: Sequence[Range]) -> bytes:
    """The array of struct virtio_gpu_mem_entry."""
    return b"".join(struct.pack("<QII", addr, size, 0) for addr, size in ranges)


class Framebuffer:
    """Guest memory for a picture: in one piece, or in pages in a random order if it is `scattered`."""

    def __init__(self, memory: SharedMemory, width: int, height: int, *, scattered: bool = False) -> None:
        self.memory = memory
        self.width = width
        self.height = height
        self.size = PIXEL * width * height
        start = memory.allocate(-(-self.size // PAGE) * PAGE, PAGE)
        self.ranges = [(start, self.size)]
        if scattered:
            pages = list(range(start, start + self.size, PAGE))
            random.Random(1).shuffle(pages)
            self.ranges = [(addr, PAGE) for addr in pages[:-1]]
            self.ranges.append((pages[-1], self.size - PAGE * (len(pages) - 1)))

    @property
    def whole(self) -> Rect:
        return 0, 0, self.width, self.height

    def write(self, offset: int, data: bytes) -> None:
        """Puts bytes into the picture, wherever its pages are."""
        at, left = 0, memoryview(data)
        for addr, size in self.ranges:
            if left and at <= offset < at + size:
                part = left[: at + size - offset]
                self.memory.map.write(addr + offset - at, part)
                offset, left = offset + len(part), left[len(part) :]
            at += size
        if left:
            raise ValueError(f"{len(left)} bytes beyond the picture")
