"""virtio-gpu's commands as bytes (virtio 1.2, section 5.7.6), for the raw driver in the guest.

Written from the specification, not from our program: each checks the other.
"""

import struct
from collections.abc import Sequence

HEADER = struct.Struct("<2IQI4x")  # type; flags, fence, context: all 0
OK_NODATA = 0x1100

# The bytes of a pixel in memory, and the number of the format; A and X are no colour on a screen.
FORMATS = {
    "BGRA": 1,
    "BGRX": 2,
    "ARGB": 3,
    "XRGB": 4,
    "RGBA": 67,
    "XBGR": 68,
    "ABGR": 121,
    "RGBX": 134,
}


def create_2d(resource: int, pixel_format: int, width: int, height: int) -> bytes:
    """RESOURCE_CREATE_2D."""
    return _command(0x0101, "4I", resource, pixel_format, width, height)


def unref(resource: int) -> bytes:
    """RESOURCE_UNREF."""
    return _command(0x0102, "I4x", resource)


def set_scanout(scanout: int, resource: int, rectangle: Sequence[int]) -> bytes:
    """SET_SCANOUT; a rectangle is x, y, width, height."""
    return _command(0x0103, "6I", *rectangle, scanout, resource)


def flush(resource: int, rectangle: Sequence[int]) -> bytes:
    """RESOURCE_FLUSH."""
    return _command(0x0104, "5I4x", *rectangle, resource)


def transfer_to_host_2d(resource: int, rectangle: Sequence[int], offset: int = 0) -> bytes:
    """TRANSFER_TO_HOST_2D from this offset in the backing."""
    return _command(0x0105, "4IQI4x", *rectangle, offset, resource)


def attach_backing(resource: int, *entries: tuple[int, int]) -> bytes:
    """RESOURCE_ATTACH_BACKING; an entry is an address and a length."""
    table = b"".join(struct.pack("<QI4x", *entry) for entry in entries)
    return _command(0x0106, "2I", resource, len(entries)) + table


def response_type(response: bytes) -> int:
    """The type of a response: OK_NODATA, or another number if it was refused."""
    return int(HEADER.unpack_from(response)[0])


def _command(kind: int, layout: str, *values: int) -> bytes:
    return HEADER.pack(kind, 0, 0, 0) + struct.pack("<" + layout, *values)
