"""A guest in a few lines: memory, one ring, and a card that answers at once.

Commands are packed by hand from virtio 1.3, 5.7.6, and not with the device's own layouts, so that the two
check each other. Each is put into a chain that may be cut anywhere into descriptors.
"""

import random
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from tests.ring.machine import BOTH, device_half, memfd
from vhost_user_gpu.card import Card, Request
from vhost_user_gpu.outputs import Outputs
from vhost_user_gpu.resource import Picture
from vhost_user_gpu.scanout import Scanout
from vhostd import Chain, Gather
from vhostd.frontend.drivers.gpu import HEADER, OK, Range, Rect, entries
from vhostd.frontend.drivers.gpu import flush as pack_flush
from vhostd.frontend.drivers.gpu import transfer as pack_transfer
from vhostd.ring import GuestMemory, Region
from vhostd.ring.driver import SplitDriver
from vhostd.wire.fds import Fd

GUEST = 0x1000_0000
RESPONSES = GUEST + 0x8_0000
COMMANDS = GUEST + 0x10_0000
RAM = GUEST + 0x40_0000  # from here on nobody but the test writes
SEAM = GUEST + 0x60_0000  # two regions meet here: neighbours for the guest, far apart for anybody else
END = GUEST + 0x80_0000

BGRA, BGRX, ARGB, XRGB, RGBA, XBGR, ABGR, RGBX = FORMATS = (1, 2, 3, 4, 67, 68, 121, 134)

EDID, RESOURCE_UUID, RESOURCE_BLOB = 1 << 1, 1 << 2, 1 << 3
EVERYTHING = EDID | RESOURCE_UUID | RESOURCE_BLOB
RING_IDX = 2  # a flag of the header

GAP = 24  # bytes between the pieces of a chain
CANARY = b"\xa5"
ROOM = 2048  # more than any response needs


class Command(NamedTuple):
    """A command's number, and what follows its header."""

    number: int
    body: bytes


class Answer(NamedTuple):
    """A response's header, and what follows it."""

    type: int
    flags: int
    fence_id: int
    ctx_id: int
    ring_idx: int
    content: bytes


def make_memory(low: int, high: int) -> GuestMemory:
    """Guest memory of two files: up to the SEAM, and from there on."""
    return GuestMemory(
        [
            Region(high, guest_addr=SEAM, user_addr=0x7F00_0000_0000, size=END - SEAM),
            Region(low, guest_addr=GUEST, user_addr=0x7E00_0000_0000, size=SEAM - GUEST),
        ]
    )


def _make_memory() -> GuestMemory:
    with Fd(memfd(SEAM - GUEST, "gpu")) as low, Fd(memfd(END - SEAM, "gpu")) as high:
        return make_memory(low.fileno(), high.fileno())


MEMORY = _make_memory()  # one for all guests that need no other


class Guest:
    """A guest and its card, with `limit` bytes; all features are negotiated."""

    def __init__(self, *, limit: int = 4 << 20, monitors: int = 1, memory: GuestMemory = MEMORY) -> None:
        self.memory = memory
        self.features = EVERYTHING
        self.changes: list[Scanout] = []  # one for each word of the card that there is news in it
        self.outputs = Outputs(monitors, 1280, 800)
        self.card = Card(self.outputs, limit, self.changes.append)
        self.driver = SplitDriver(memory, GUEST, 256, features=BOTH)
        self.ring = device_half(self.driver, memory)

    # --- Commands ---------------------------------------------------------------------------------------

    def exchange(
        self, data: bytes, room: int = ROOM, *, cuts: Sequence[int] = (), room_cuts: Sequence[int] = ()
    ) -> bytes:
        """What the card writes into `room` bytes when it gets this data; both are cut at these offsets."""
        readable, writable = pieces(COMMANDS, len(data), cuts), pieces(RESPONSES, room, room_cuts)
        for (addr, size), at in zip(readable, (0, *cuts), strict=True):
            self.memory.write(addr, data[at : at + size])
        for addr, size in writable:
            self.memory.write(addr, CANARY * (size + GAP))
        self.driver.add([(*piece, False) for piece in readable] + [(*piece, True) for piece in writable])
        chain = self._pop()
        request = Request(chain)
        answer = self.card.execute(request, self.features)
        assert isinstance(answer, tuple), "a card without a renderer answers at once"
        request.respond(answer)
        self.ring.push(chain)
        used = self.driver.used()
        assert used is not None
        written = b"".join(self.memory.read(*piece) for piece in writable)
        assert set(written[used[1] :]) <= set(CANARY), "more than was said to be written"
        return written[: used[1]]

    def ask(
        self, command: Command, flags: int = 0, fence_id: int = 0, ctx_id: int = 0, ring_idx: int = 0
    ) -> Answer:
        """The answer to a command with such a header."""
        header = HEADER.pack(command.number, flags, fence_id, ctx_id, ring_idx)
        data = self.exchange(header + command.body)
        code, flags, fence_id, ctx_id, ring_idx = HEADER.unpack_from(data)
        return Answer(code, flags, fence_id, ctx_id, ring_idx, data[HEADER.size :])

    def do(self, command: Command) -> int:
        """The type of the answer to a command that asks for no data."""
        answer = self.ask(command)
        assert answer[1:] == (0, 0, 0, 0, b"")
        return answer.type

    def run(self, *commands: Command) -> None:
        """Gives commands that must succeed."""
        for command in commands:
            code = self.do(command)
            assert code == OK, f"{code:#x}"

    def refuses(self, command: Command, code: int) -> None:
        """Gives a command that must be answered with this error, and change nothing."""
        before, changes = self.state, len(self.changes)
        assert f"{self.do(command):#x}" == f"{code:#x}"
        assert self.state == before
        assert len(self.changes) == changes

    # --- The card ---------------------------------------------------------------------------------------

    @property
    def state(self) -> object:
        """All that commands may change."""
        return (
            self.card.resources.used,
            [(each, each.backing, contents(each)) for each in self.card.resources],
            [vars(each) | {"cursor": dict(vars(each.cursor))} for each in self.card.scanouts],
            dict(vars(self.outputs)),
        )

    @property
    def used(self) -> int:
        """The memory that counts."""
        return self.card.resources.used

    def scanout(self, number: int = 0) -> Scanout:
        return self.card.scanouts[number]

    def shown(self, number: int = 0) -> bytes:
        """The pixels of a scan-out."""
        return shown(self.card.scanouts[number])

    # --- Memory -----------------------------------------------------------------------------------------

    def picture(
        self, number: int, width: int, height: int, kind: int = BGRX, pixels: bytes = b"", at: int = RAM
    ) -> None:
        """Makes a picture with a backing, and of these pixels if there are any."""
        self.run(create_2d(number, width, height, kind), attach(number, (at, 4 * width * height)))
        if pixels:
            self.memory.write(at, pixels)
            self.run(transfer(number, (0, 0, width, height)))

    def gather(self, *ranges: Range) -> Gather:
        """Ranges of guest memory as one span."""
        self.driver.add([(COMMANDS, 0, False)])
        chain = self._pop()
        gathered = chain.gather(ranges)
        self.ring.push(chain)
        self.driver.used()
        return gathered

    def _pop(self) -> Chain:
        chain = self.ring.pop()
        assert chain is not None
        return chain


def contents(resource: Any) -> bytes | None:
    """A picture's pixels; a blob has none of its own."""
    if not isinstance(resource, Picture):
        return None
    size = resource.stride * resource.height
    return bytes(resource.copy_rows(0, size, 1, size))


def pieces(start: int, size: int, cuts: Iterable[int]) -> list[Range]:
    """`size` bytes cut at these offsets, with gaps in between."""
    ends = pairwise((0, *cuts, size))
    return [(start + first + GAP * i, last - first) for i, (first, last) in enumerate(ends)]


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes of no order, the same each time."""
    return random.Random(seed).randbytes(size)


def crop(pixels: bytes, width: int, rect: Rect) -> bytes:
    """A rectangle of a picture of this width."""
    x, y, columns, rows = rect
    starts = (4 * (width * row + x) for row in range(y, y + rows))
    return b"".join(pixels[start : start + 4 * columns] for start in starts)


# --- Commands (5.7.6.8 and 5.7.6.10) --------------------------------------------------------------------


def get_display_info() -> Command:
    return Command(0x100, b"")


def create_2d(resource: int, width: int, height: int, kind: int = BGRX) -> Command:
    return Command(0x101, struct.pack("<IIII", resource, kind, width, height))


def unref(resource: int) -> Command:
    return Command(0x102, struct.pack("<II", resource, 0))


def set_scanout(scanout: int, resource: int, rect: Rect = (0, 0, 0, 0)) -> Command:
    return Command(0x103, struct.pack("<IIIIII", *rect, scanout, resource))


def flush(resource: int, rect: Rect) -> Command:
    return Command(0x104, pack_flush(resource, rect))


def transfer(resource: int, rect: Rect, offset: int = 0) -> Command:
    return Command(0x105, pack_transfer(resource, rect, offset))


def attach(resource: int, *ranges: Range, count: int | None = None) -> Command:
    """RESOURCE_ATTACH_BACKING, with `count` in place of how many ranges there are."""
    nr_entries = len(ranges) if count is None else count
    return Command(0x106, struct.pack("<II", resource, nr_entries) + entries(ranges))


def detach(resource: int) -> Command:
    return Command(0x107, struct.pack("<II", resource, 0))


def get_capset_info(index: int = 0) -> Command:
    return Command(0x108, struct.pack("<II", index, 0))


def get_capset(capset: int = 1, version: int = 0) -> Command:
    return Command(0x109, struct.pack("<II", capset, version))


def get_edid(scanout: int) -> Command:
    return Command(0x10A, struct.pack("<II", scanout, 0))


def assign_uuid(resource: int) -> Command:
    return Command(0x10B, struct.pack("<II", resource, 0))


def create_blob(
    resource: int, size: int, *ranges: Range, blob_mem: int = 1, count: int | None = None
) -> Command:
    """RESOURCE_CREATE_BLOB, with `count` in place of how many ranges there are."""
    nr_entries = len(ranges) if count is None else count
    head = struct.pack("<IIIIQQ", resource, blob_mem, 0, nr_entries, 0, size)
    return Command(0x10C, head + entries(ranges))


def set_scanout_blob(
    scanout: int,
    resource: int,
    rect: Rect,
    size: tuple[int, int],
    stride: int,
    offset: int = 0,
    kind: int = BGRX,
) -> Command:
    where = struct.pack("<IIIIII", *rect, scanout, resource)
    return Command(
        0x10D, where + struct.pack("<IIIIIIIIIIII", *size, kind, 0, stride, 0, 0, 0, offset, 0, 0, 0)
    )


def update_cursor(
    scanout: int, resource: int, x: int = 0, y: int = 0, hot_x: int = 0, hot_y: int = 0
) -> Command:
    return Command(0x300, struct.pack("<IIIIIIII", scanout, x, y, 0, resource, hot_x, hot_y, 0))


def move_cursor(scanout: int, x: int, y: int, resource: int = 0) -> Command:
    return Command(0x301, struct.pack("<IIIIIIII", scanout, x, y, 0, resource, 0, 0, 0))


def shown(scanout: Scanout) -> bytes:
    """All pixels of a scan-out that shows something, as a front-end gets them."""
    assert scanout.framebuffer is not None
    return bytes(scanout.framebuffer.copy(scanout.rect))
