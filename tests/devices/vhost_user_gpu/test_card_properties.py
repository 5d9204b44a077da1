"""Any commands in any order.

Invariant: every command is answered by one of the specification's responses and raises nothing. `used` is the
sum of what is alive and at most the limit; a scan-out shows a resource of the table, inside of which its
framebuffer and its rectangle lie, and its damage lies in the scan-out. A model made of bytearrays, which
knows nothing of the card, agrees on what succeeds, what is shown, and what a front-end sees that paints now
and then.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.devices.vhost_user_gpu import guest as commands
from tests.devices.vhost_user_gpu.guest import (
    ABGR,
    ARGB,
    BGRA,
    BGRX,
    END,
    FORMATS,
    GUEST,
    RGBA,
    RGBX,
    SEAM,
    XBGR,
    XRGB,
    Command,
    Guest,
    noise,
    shown,
)
from vhost_user_gpu.rect import NOTHING
from vhost_user_gpu.resource import RANGE_COST, RESOURCE_COST, Blob, Picture
from vhost_user_gpu.scanout import Scanout
from vhostd.frontend.drivers.gpu import ERR_PARAMETER, ERR_UNSPEC, HEADER, OK, Range, Rect

quick = settings(max_examples=150)

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
LIMIT = 4 * RESOURCE_COST + 64 * 64 * 4 + 400
AROUND = SEAM - 256  # 512 bytes of guest memory, in two regions
CHANNELS = {
    **{BGRA: "BGRA", BGRX: "BGRX", ARGB: "ARGB", XRGB: "XRGB"},
    **{RGBA: "RGBA", XBGR: "XBGR", ABGR: "ABGR", RGBX: "RGBX"},
}
RESPONSES = {OK: 0, 0x1101: 384, 0x1104: 1032, 0x1105: 16} | dict.fromkeys(range(0x1200, 0x1206), 0)


def in_wire_format(pixels: bytes, kind: int) -> bytes:
    """B, G, R and the fourth channel."""
    found = bytearray(pixels)
    for place, names in enumerate(("B", "G", "R", "AX")):
        (at,) = (CHANNELS[kind].index(name) for name in names if name in CHANNELS[kind])
        found[place::4] = pixels[at::4]
    return bytes(found)


# --- The model ------------------------------------------------------------------------------------------


@dataclass
class Resource:
    """A picture, or a blob, which has no pixels of its own."""

    size: int
    width: int = 0
    height: int = 0
    kind: int = 0
    pixels: bytearray | None = None
    backing: list[Range] | None = None

    @property
    def cost(self) -> int:
        pixels = 0 if self.pixels is None else len(self.pixels)
        return RESOURCE_COST + pixels + RANGE_COST * count(self.backing or [])


class Shown(NamedTuple):
    """What a scan-out shows."""

    resource: int
    kind: int
    rect: Rect
    stride: int
    offset: int


@dataclass
class Model:
    """What a card is to do; each method says whether the command succeeds."""

    guest: Guest
    resources: dict[int, Resource] = field(default_factory=dict)
    shown: dict[int, Shown] = field(default_factory=dict)
    cursors: dict[int, bytes] = field(default_factory=dict)

    @property
    def used(self) -> int:
        return sum(resource.cost for resource in self.resources.values())

    def create_2d(self, number: int, width: int, height: int, kind: int) -> bool:
        if kind not in CHANNELS or not width or not height or width * height * 4 > LIMIT:
            return False
        size = width * height * 4
        return self._add(number, Resource(size, width, height, kind, bytearray(size)))

    def create_blob(self, number: int, size: int, *ranges: Range) -> bool:
        if not size or not valid(ranges) or (ranges and sum(length for _, length in ranges) < size):
            return False
        return self._add(number, Resource(size, backing=list(ranges) or None))

    def _add(self, number: int, resource: Resource) -> bool:
        if not number or number in self.resources or self.used + resource.cost > LIMIT:
            return False
        self.resources[number] = resource
        return True

    def unref(self, number: int) -> bool:
        self.shown = {scanout: shown for scanout, shown in self.shown.items() if shown.resource != number}
        return self.resources.pop(number, None) is not None

    def attach(self, number: int, *ranges: Range) -> bool:
        resource = self.resources.get(number)
        if resource is None or resource.backing is not None or not ranges or not valid(ranges):
            return False
        if self.used + RANGE_COST * count(ranges) > LIMIT:
            return False
        resource.backing = list(ranges)
        return True

    def detach(self, number: int) -> bool:
        resource = self.resources.get(number)
        if resource is None or resource.backing is None:
            return False
        resource.backing = None
        return True

    def transfer(self, number: int, rect: Rect, offset: int) -> bool:
        resource = self.resources.get(number)
        if resource is None or resource.pixels is None:
            return resource is not None
        if resource.backing is None or not inside(rect, resource.width, resource.height):
            return False
        x, y, columns, rows = rect
        if not columns or not rows:
            return True
        source, stride = self._read(resource), resource.width * 4
        if offset + (rows - 1) * stride + columns * 4 > len(source):
            return False
        for row in range(rows):
            start, at = (y + row) * stride + x * 4, offset + row * stride
            resource.pixels[start : start + columns * 4] = source[at : at + columns * 4]
        return True

    def flush(self, number: int, rect: Rect) -> bool:
        resource = self.resources.get(number)
        return resource is not None and (
            resource.pixels is None or inside(rect, resource.width, resource.height)
        )

    def set_scanout(self, scanout: int, number: int, rect: Rect) -> bool:
        if not number:
            return self._show(scanout, None)
        resource = self.resources.get(number)
        if resource is None or resource.pixels is None or not inside(rect, resource.width, resource.height):
            return False
        return self._show(scanout, Shown(number, resource.kind, rect, resource.width * 4, 0))

    def set_scanout_blob(
        self,
        scanout: int,
        number: int,
        rect: Rect,
        size: tuple[int, int],
        stride: int,
        offset: int,
        kind: int,
    ) -> bool:
        if not number:
            return self._show(scanout, None)
        resource = self.resources.get(number)
        if resource is None or resource.pixels is not None or kind not in CHANNELS or not all(size):
            return False
        end = offset + (size[1] - 1) * stride + size[0] * 4
        if stride < size[0] * 4 or end > resource.size or not inside(rect, *size):
            return False
        return self._show(scanout, Shown(number, kind, rect, stride, offset))

    def _show(self, scanout: int, shown: Shown | None) -> bool:
        if scanout > 15 or (shown is not None and not (shown.rect[2] and shown.rect[3])):
            return False
        self.shown.pop(scanout, None)
        if shown is not None:
            self.shown[scanout] = shown
        return True

    def update_cursor(self, scanout: int, number: int) -> bool:
        if scanout > 15:
            return False
        if not number:
            self.cursors.pop(scanout, None)
            return True
        resource, size = self.resources.get(number), 64 * 64 * 4
        if resource is not None and (resource.width, resource.height) == (64, 64):
            self.cursors[scanout] = in_wire_format(bytes(resource.pixels or b""), resource.kind)
        elif resource is not None and resource.pixels is None and resource.size >= size:
            content = self._read(resource)
            self.cursors[scanout] = content[:size] if len(content) >= size else bytes(size)
        else:
            return False
        return True

    def picture(self, scanout: int) -> bytes:
        """The pixels of a scan-out."""
        shown = self.shown[scanout]
        resource = self.resources[shown.resource]
        x, y, columns, rows = shown.rect
        content = bytes(resource.pixels or b"") or self._read(resource)
        starts = [shown.offset + row * shown.stride + x * 4 for row in range(y, y + rows)]
        if starts[-1] + columns * 4 > len(content):  # a blob whose backing was replaced by a smaller one
            return bytes(4 * columns * rows)
        return in_wire_format(b"".join(content[at : at + columns * 4] for at in starts), shown.kind)

    def _read(self, resource: Resource) -> bytes:
        return b"".join(self.guest.memory.read(*each) for each in resource.backing or [] if each[1])


def inside(rect: Rect, width: int, height: int) -> bool:
    return rect[0] + rect[2] <= width and rect[1] + rect[3] <= height


def valid(ranges: "tuple[Range, ...]") -> bool:
    return all(not length or GUEST <= addr <= addr + length <= END for addr, length in ranges)


def count(ranges: "list[Range] | tuple[Range, ...]") -> int:
    """The ranges that are kept: those that meet are one, one across regions is two."""
    split: list[Range] = []
    for addr, length in ranges:
        first = min(length, SEAM - addr) if addr < SEAM else length
        split += [each for each in ((addr, first), (addr + first, length - first)) if each[1]]
    return sum(i == 0 or sum(split[i - 1]) != addr or addr == SEAM for i, (addr, _) in enumerate(split))


class Screen:
    """What a front-end sees of a scan-out: it is told of sizes, and paints damage."""

    def __init__(self) -> None:
        self.width = 0
        self.pixels = bytearray()

    def paint(self, scanout: Scanout) -> None:
        if scanout.resized:
            self.width = scanout.rect.width
            self.pixels = bytearray(4 * self.width * scanout.rect.height)
        scanout.replaced = scanout.resized = False
        if scanout.framebuffer is not None and scanout.damage:
            damage = scanout.take_damage()
            new = scanout.framebuffer.copy(damage.moved(scanout.rect.x, scanout.rect.y))
            for row in range(damage.height):
                start, at = 4 * (self.width * (damage.y + row) + damage.x), 4 * damage.width * row
                self.pixels[start : start + 4 * damage.width] = new[at : at + 4 * damage.width]


# --- What may happen ------------------------------------------------------------------------------------

# Mostly numbers that go together with what there is from the beginning, see `beginnings`.
NUMBERS = st.sampled_from([1, 1, 1, 2, 2, 2, 3, 3, 4, 0])
SCANOUTS = st.sampled_from([0, 0, 0, 0, 1, 1, 1, 1, 15, 16, U32])
SIDES = st.integers(1, 6) | st.sampled_from([0, 64, 64, 1 << 16, 1 << 30, U32])
RECTS = st.one_of(
    *[st.tuples(*(st.integers(0, 2),) * 2, *(st.integers(1, 2),) * 2)] * 3,
    st.tuples(*(st.integers(0, 4),) * 4),
    st.tuples(*(st.sampled_from([0, 1, 4, 1 << 31, U32]),) * 4),
)
KINDS = st.sampled_from([*FORMATS, *FORMATS, 0, 5, U32])
OFFSETS = st.integers(0, 40) | st.sampled_from([0, 0, 1 << 31, U32])
LENGTHS = st.integers(0, 100) | st.sampled_from([0, 64 * 64 * 4, U32])
ADDRESSES = st.integers(AROUND, AROUND + 400) | st.sampled_from([AROUND, SEAM, 0, END - 9, END, U64 - 5])
FITTING = st.integers(AROUND, AROUND + 200).map(lambda addr: [(addr, 100), (addr + 100, 100)])
RANGES = FITTING | FITTING | st.lists(st.tuples(ADDRESSES, LENGTHS), max_size=4)
SIZES = st.integers(1, 200) | st.sampled_from([0, 200, 64 * 64 * 4, U64])
STRIDES = st.sampled_from([16, 16, 20, 32]) | st.integers(0, 40) | st.sampled_from([U32])
LAYOUTS = st.sampled_from([(4, 4), (4, 4), (3, 2)]) | st.tuples(st.integers(0, 6), st.integers(0, 6))


class Paint(NamedTuple):
    """The front-end paints a scan-out."""

    scanout: int


class Write(NamedTuple):
    """The guest draws."""

    at: int
    data: bytes


Step = tuple[Callable[..., Command], Callable[..., bool], tuple[Any, ...]]


def step(
    command: Callable[..., Command], method: Callable[..., bool], *arguments: st.SearchStrategy[Any]
) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(command), st.just(method), st.tuples(*arguments))


def with_ranges(
    command: Callable[..., Command], method: Callable[..., bool], *arguments: st.SearchStrategy[Any]
) -> st.SearchStrategy[Step]:
    return st.tuples(
        st.just(command),
        st.just(method),
        st.tuples(st.tuples(*arguments), RANGES).map(lambda both: (*both[0], *both[1])),
    )


STEPS = st.one_of(
    step(commands.create_2d, Model.create_2d, NUMBERS, SIDES, SIDES, KINDS),
    with_ranges(commands.create_blob, Model.create_blob, NUMBERS, SIZES),
    step(commands.unref, Model.unref, NUMBERS),
    with_ranges(commands.attach, Model.attach, NUMBERS),
    with_ranges(commands.attach, Model.attach, NUMBERS),
    step(commands.detach, Model.detach, NUMBERS),
    step(commands.transfer, Model.transfer, NUMBERS, RECTS, OFFSETS | st.just(U64)),
    step(commands.flush, Model.flush, NUMBERS, RECTS),
    step(commands.set_scanout, Model.set_scanout, SCANOUTS, NUMBERS, RECTS),
    step(
        commands.set_scanout_blob,
        Model.set_scanout_blob,
        *(SCANOUTS, NUMBERS, RECTS, LAYOUTS, STRIDES, OFFSETS, KINDS),
    ),
    step(commands.update_cursor, Model.update_cursor, SCANOUTS, NUMBERS),
)
PAINT = st.builds(Paint, st.integers(0, 1))
WRITE = st.builds(Write, st.integers(0, 400), st.binary(min_size=1, max_size=100))
ANYTHING = st.lists(STEPS | STEPS | STEPS | PAINT | WRITE, min_size=1, max_size=40)


def beginnings(kind: int) -> list[Step]:
    """Resource 1, a picture, on scan-out 0, and resource 2, a blob, on scan-out 1."""
    ranges = [(AROUND, 300), (AROUND + 20, 200)]
    return [
        (commands.create_2d, Model.create_2d, (1, 4, 4, kind)),
        (commands.attach, Model.attach, (1, *ranges)),
        (commands.transfer, Model.transfer, (1, (0, 0, 4, 4), 8)),
        (commands.set_scanout, Model.set_scanout, (0, 1, (1, 0, 3, 3))),
        (commands.create_blob, Model.create_blob, (2, 200, *ranges)),
        (commands.set_scanout_blob, Model.set_scanout_blob, (1, 2, (0, 1, 3, 3), (4, 4), 20, 3, kind)),
    ]


SMALL = st.sampled_from([*range(7), *range(7), 16, 67, U32])
WORDS = st.lists(SMALL.map(struct.Struct("<I").pack), max_size=24).map(b"".join)
COMMANDS = st.sampled_from([*range(0xFF, 0x10F), 0x200, 0x300, 0x301, *range(0x101, 0x108)])


def check(guest: Guest) -> None:
    """The invariant, without the model."""
    resources = list(guest.card.resources)
    assert guest.used <= guest.card.resources.limit
    assert guest.used == sum(
        RESOURCE_COST
        + (4 * each.width * each.height if isinstance(each, Picture) else 0)
        + (RANGE_COST * each.backing.ranges if each.backing is not None else 0)
        for each in resources
    )
    for scanout in guest.card.scanouts:
        assert scanout.damage.fits(scanout.rect.width, scanout.rect.height)
        assert len(scanout.cursor.shape) in (0, 64 * 64 * 4)
        framebuffer = scanout.framebuffer
        if framebuffer is None:
            assert scanout.rect == scanout.damage == NOTHING
            continue
        resource = framebuffer.resource
        assert any(resource is each for each in resources)
        assert scanout.rect
        assert scanout.rect.fits(framebuffer.width, framebuffer.height)
        assert isinstance(resource, Picture | Blob)
        size = resource.size if isinstance(resource, Blob) else resource.stride * resource.height
        assert framebuffer.size <= size


@quick
@given(st.sampled_from(FORMATS).map(beginnings), ANYTHING)
def test_a_model_agrees(beginning: list[Step], steps: list[Step | Paint | Write]) -> None:
    guest = Guest(limit=LIMIT)
    guest.memory.write(AROUND, noise(512))
    model, screens = Model(guest), [Screen(), Screen()]
    for each in beginning + steps:
        if isinstance(each, Paint):
            screens[each.scanout].paint(guest.scanout(each.scanout))
        elif isinstance(each, Write):
            guest.memory.write(AROUND + each.at, each.data)
        else:
            command, method, arguments = each
            code = guest.do(command(*arguments))
            assert (code == OK) == method(model, *arguments), f"{code:#x}"
            assert code in RESPONSES
            check(guest)
    assert guest.used == model.used
    assert {resource.number for resource in guest.card.resources} == model.resources.keys()
    for scanout in guest.card.scanouts:
        assert (scanout.framebuffer is not None) == (scanout.number in model.shown)
        assert scanout.cursor.shape == model.cursors.get(scanout.number, b"")
        if scanout.framebuffer is not None:
            assert shown(scanout) == model.picture(scanout.number)
    for number in model.resources:
        resource = model.resources[number]
        everything = (0, 0, resource.width, resource.height) if resource.pixels else (0, 0, U32, U32)
        guest.run(commands.flush(number, everything))
    for number, screen in enumerate(screens):
        screen.paint(guest.scanout(number))
        assert screen.pixels == (model.picture(number) if number in model.shown else b"")
    guest.card.reset()
    check(guest)
    assert guest.used == 0


@quick
@given(st.lists(st.tuples(COMMANDS, WORDS, st.integers(0, 3), st.integers(0, 60)), max_size=30))
def test_noise_is_answered(sequence: list[tuple[int, bytes, int, int]]) -> None:
    guest = Guest(limit=LIMIT)
    for number, body, flags, cut in sequence:
        data = HEADER.pack(number, flags, 7, 0, 0) + body
        answer = guest.exchange(data, cuts=(min(cut, len(data) - 1),))
        code = HEADER.unpack_from(answer)[0]
        assert len(answer) == HEADER.size + RESPONSES[code]
        check(guest)


@quick
@given(st.binary(max_size=100), st.integers(0, 60))
def test_what_is_not_even_a_command(data: bytes, room: int) -> None:
    guest = Guest(limit=LIMIT)
    answer = guest.exchange(data, room)
    assert len(answer) == min(room, HEADER.size)
    if room >= HEADER.size:
        assert HEADER.unpack(answer)[0] in (ERR_UNSPEC, ERR_PARAMETER)
    check(guest)
