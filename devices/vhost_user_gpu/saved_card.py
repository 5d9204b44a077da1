"""A card's state as bytes, in format 1, for another program to go on with.

    GpuState       how many of the next two there are
    Mode           the monitors, as the driver knows them; all or none
    SavedResource  each with the guest memory that is its backing (RANGE), then the pixels of a picture
    SavedScanout   for each possible scan-out, with the pixels of its cursor

All numbers are little-endian. What is loaded passes the checks of the driver's own commands.
"""

import itertools
import mmap
from collections.abc import Iterable
from typing import Annotated, TypeAlias

from vhost_user_gpu.card import RANGE, Card
from vhost_user_gpu.commands import (
    MAX_SCANOUTS,
    CommandError,
    Mode,
    ResourceCreate2d,
    ResourceCreateBlob,
    SetScanout,
    SetScanoutBlob,
)
from vhost_user_gpu.config import EVENT_DISPLAY, Config
from vhost_user_gpu.resource import Blob, Picture, Resource
from vhost_user_gpu.scanout import Scanout
from vhostd import Layout, RefusedRequest, Unpacker, array, u32, u64
from vhostd.vhost_user.gpu_messages import CURSOR_BYTES

BLOB = 0  # the format of a blob, which has its own where it is shown
NO_UUID = bytes(16)
MOST_RANGES = 1 << 20  # of all backings: 4 GiB, page by page; they are looked up in one go
BESIDE_MEMORY = 1 << 20  # bytes of a state at most, besides the memory that the resources take here

Part: TypeAlias = bytes | mmap.mmap  # of a state; a picture's pixels are not copied before the whole


class GpuState(Layout):
    """The config space's events; how many modes and resources follow."""

    events: u32
    modes: u32
    resources: u32
    padding: u32 = 0


class SavedResource(Layout):
    """A resource: a picture of this format, width and height, or, as BLOB, a blob of `size` bytes."""

    number: u32
    format: u32
    width: u32
    height: u32
    size: u64
    uuid: Annotated[bytes, array(16)]  # zeros if nobody has asked for it
    has_backing: u32
    ranges: u32


class SavedScanout(Layout):
    """What a scan-out shows, resource 0 for nothing, and its cursor, of whose shape so many bytes follow."""

    resource: u32
    format: u32
    width: u32
    height: u32
    stride: u32
    offset: u32
    rect_x: u32
    rect_y: u32
    rect_width: u32
    rect_height: u32
    cursor_x: u32
    cursor_y: u32
    hot_x: u32
    hot_y: u32
    visible: u32
    shape: u32


# --- Saving ---------------------------------------------------------------------------------------------


def save(card: Card, config: Config) -> bytes:
    """The state. It has its pixels twice for a moment: the pictures, and the bytes."""
    modes = card.outputs.read_by_driver or []
    resources = list(card.resources)
    parts: list[Part] = [GpuState(config.events, len(modes), len(resources)).pack()]
    parts += [mode.pack() for mode in modes]
    backings = [_ranges(card, resource) for resource in resources]
    _check_ranges(backings)
    for resource, backing in zip(resources, backings, strict=True):
        parts += _save_resource(resource, backing)
    for scanout in card.scanouts:
        parts += _save_scanout(scanout)
    return b"".join(parts)


def _ranges(card: Card, resource: Resource) -> bytes | None:
    if resource.backing is None:
        return card.awaited.get(resource)
    return b"".join(itertools.starmap(RANGE.pack, resource.backing.guest_ranges()))


def _check_ranges(backings: Iterable[bytes | None]) -> None:
    if (ranges := sum(len(each or b"") for each in backings) // RANGE.size) > MOST_RANGES:
        raise RefusedRequest(f"{ranges} ranges of memory in a state, of {MOST_RANGES} at most")


def _save_resource(resource: Resource, ranges: bytes | None) -> list[Part]:
    format, width, height, size = BLOB, 0, 0, 0
    pixels: Part = b""
    if isinstance(resource, Picture):
        format, width, height, pixels = resource.format, resource.width, resource.height, resource.pixels
    elif isinstance(resource, Blob):
        size = resource.size
    place = (int(ranges is not None), len(ranges or b"") // RANGE.size)
    saved = SavedResource(resource.number, format, width, height, size, resource.given_uuid, *place)
    return [saved.pack(), ranges or b"", pixels]


def _save_scanout(scanout: Scanout) -> list[Part]:
    shown, cursor = scanout.framebuffer, scanout.cursor
    picture = (0,) * 6 if shown is None else (shown.resource.number, *shown[1:])
    place = (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y)
    saved = SavedScanout(*picture, *scanout.rect, *place, int(cursor.visible), len(cursor.shape))
    return [saved.pack(), cursor.shape]


# --- Loading --------------------------------------------------------------------------------------------


def load(state: bytes, card: Card, config: Config) -> None:
    """Goes on with a saved card; RefusedRequest, and nothing has changed, if that is none, or too large."""
    unpacker = Unpacker(state)
    head = unpacker.unpack(GpuState)
    if head.modes not in (0, MAX_SCANOUTS):
        raise RefusedRequest(f"{head.modes} monitors, of {MAX_SCANOUTS}")
    modes = [unpacker.unpack(Mode) for _ in range(head.modes)]
    loaded = card.another()
    try:
        for _ in range(head.resources):
            _load_resource(loaded, unpacker)
        _check_ranges(loaded.awaited.values())
        for scanout in loaded.scanouts:
            _load_scanout(loaded, scanout, unpacker)
        unpacker.end()
    except CommandError as error:
        raise RefusedRequest(str(error)) from None
    card.become(loaded)
    card.outputs.read_by_driver = modes or None
    config.events = head.events & EVENT_DISPLAY


def _load_resource(card: Card, unpacker: Unpacker) -> None:
    saved = unpacker.unpack(SavedResource)
    ranges = bytes(unpacker.take(saved.ranges * RANGE.size))
    if saved.format == BLOB:
        card.create_blob(ResourceCreateBlob(saved.number, ResourceCreateBlob.GUEST, 0, 0, 0, saved.size))
    else:
        card.create_2d(ResourceCreate2d(saved.number, saved.format, saved.width, saved.height))
    resource = card.resources[saved.number]
    if isinstance(resource, Picture):
        resource.pixels[:] = unpacker.take(len(resource.pixels))
    if saved.uuid != NO_UUID:
        resource.given_uuid = saved.uuid
    if saved.has_backing:
        card.awaited[resource] = ranges


def _load_scanout(card: Card, scanout: Scanout, unpacker: Unpacker) -> None:
    saved = unpacker.unpack(SavedScanout)
    rect = (saved.rect_x, saved.rect_y, saved.rect_width, saved.rect_height, scanout.number, saved.resource)
    if saved.resource and isinstance(card.resources[saved.resource], Blob):
        size = (saved.width, saved.height, saved.format)
        card.set_scanout_blob(SetScanoutBlob(*rect, *size, 0, saved.stride, b"", saved.offset, b""))
    else:
        card.set_scanout(SetScanout(*rect))
    shape = bytes(unpacker.take(saved.shape))
    if len(shape) not in (0, CURSOR_BYTES):
        raise RefusedRequest(f"a cursor of {len(shape)} bytes, of {CURSOR_BYTES}")
    cursor = scanout.cursor
    cursor.reshape(shape, saved.hot_x, saved.hot_y)
    cursor.move(saved.cursor_x, saved.cursor_y)
    cursor.show() if saved.visible else cursor.hide()
