"""Formats: one pixel of each, written by hand."""

import pytest

from tests.devices.vhost_user_gpu.guest import ABGR, ARGB, BGRA, BGRX, FORMATS, RGBA, RGBX, XBGR, XRGB
from vhost_user_gpu.pixels import PIXEL, Format, to_wire

# Red 0x11, green 0x22, blue 0x33, and 0x44 for alpha or nothing: the bytes in memory, and Linux's name for
# the format (drm_fourcc.h), which tells the channels of a little-endian number, from its highest byte on.
TABLE = [
    (BGRA, "33 22 11 44", "AR24"),
    (BGRX, "33 22 11 44", "XR24"),
    (ARGB, "44 11 22 33", "BA24"),
    (XRGB, "44 11 22 33", "BX24"),
    (RGBA, "11 22 33 44", "AB24"),
    (XBGR, "44 33 22 11", "RX24"),
    (ABGR, "44 33 22 11", "RA24"),
    (RGBX, "11 22 33 44", "XB24"),
]
WIRE = bytes.fromhex("33 22 11 44")  # x8r8g8b8 and a8r8g8b8, little-endian


def test_there_are_no_others() -> None:
    assert tuple(Format) == FORMATS == tuple(kind for kind, _, _ in TABLE)


@pytest.mark.parametrize(("number", "pixel", "fourcc"), TABLE)
def test_format(number: int, pixel: str, fourcc: str) -> None:
    kind = Format(number)
    data = bytearray.fromhex(pixel)
    assert to_wire(data, kind) == WIRE
    assert (to_wire(data, kind) is data) == kind.is_wire_format, "copied without need"
    assert kind.is_wire_format == (bytes.fromhex(pixel) == WIRE)


@pytest.mark.parametrize(("number", "pixel", "fourcc"), TABLE)
def test_linux_name(number: int, pixel: str, fourcc: str) -> None:
    assert Format(number).fourcc.to_bytes(4, "little").decode() == fourcc


@pytest.mark.parametrize("kind", Format)
def test_each_pixel_by_itself(kind: Format) -> None:
    pixels = bytearray(range(4 * 10))
    converted = to_wire(bytearray(pixels), kind)
    for at in range(0, len(pixels), PIXEL):
        assert converted[at : at + PIXEL] == to_wire(pixels[at : at + PIXEL], kind)
    assert to_wire(bytearray(), kind) == b""
