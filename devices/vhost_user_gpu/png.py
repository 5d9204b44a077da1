"""PNG files (ISO/IEC 15948) of what a scan-out shows."""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")  # IHDR (11.2.2)
BITS, RGB, DEFLATE, ADAPTIVE, NOT_INTERLACED = 8, 2, 0, 0, 0
UNFILTERED = b"\0"  # in front of a row (9.2); for text and plain areas the other filters are no better
LEVEL = 4  # of zlib: higher ones take up to three times as long and save a tenth


def png(width: int, height: int, rows: bytes | bytearray | memoryview) -> bytes:
    """The file, of 8-bit RGB, for pixels of four bytes each: blue, green, red, and one that is ignored.

    Raises ValueError if there are no pixels, or not as many as `width` x `height`.
    """
    pixels = bytes(rows)
    if width < 1 or height < 1 or len(pixels) != 4 * width * height:
        raise ValueError(f"{len(pixels)} bytes are no picture of {width}x{height} pixels")
    header = HEADER.pack(width, height, BITS, RGB, DEFLATE, ADAPTIVE, NOT_INTERLACED)
    data = zlib.compress(_filtered(_rgb(pixels), 3 * width), LEVEL)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _rgb(pixels: bytes) -> bytearray:
    rgb = bytearray(len(pixels) // 4 * 3)
    for to, colour in enumerate((2, 1, 0)):
        rgb[to::3] = pixels[colour::4]
    return rgb


def _filtered(rgb: bytearray, stride: int) -> bytes:
    return b"".join(UNFILTERED + rgb[at : at + stride] for at in range(0, len(rgb), stride))


def _chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk (5.3): the length of its data, kind, data, and the CRC of kind and data."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
