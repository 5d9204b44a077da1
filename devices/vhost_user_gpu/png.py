"""PNG files (ISO/IEC 15948) of what a scan-out shows."""

import struct
import zlib
from collections.abc import Iterable, Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER = struct.Struct(">IIBBBBB")  # IHDR (11.2.2)
BITS, RGB, DEFLATE, ADAPTIVE, NOT_INTERLACED = 8, 2, 0, 0, 0
UNFILTERED = b"\0"  # the filter of a row (9.2); for text and plain areas other filters save nothing
LEVEL = 4  # of zlib; higher levels take up to three times as long and save a tenth


def png(width: int, height: int, bands: Iterable[bytes | bytearray]) -> Iterator[bytes]:
    """The file in 8-bit RGB, piece by piece. `bands` have whole rows, `height` rows in all.

    A pixel is four bytes: blue, green, red, and one that is ignored. Raises ValueError if a side is 0, a band
    does not have whole rows, or the number of rows is wrong.
    """
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width}x{height} pixels")
    header = HEADER.pack(width, height, BITS, RGB, DEFLATE, ADAPTIVE, NOT_INTERLACED)
    yield SIGNATURE + _chunk(b"IHDR", header)
    compressor = zlib.compressobj(LEVEL)
    rows = 0
    for band in bands:
        if len(band) % (4 * width):
            raise ValueError(f"{len(band)} bytes are no rows of {width} pixels")
        rows += len(band) // (4 * width)
        yield _chunk(b"IDAT", compressor.compress(_filtered(_rgb(bytes(band)), 3 * width)))
    if rows != height:
        raise ValueError(f"{rows} rows are no picture of {width}x{height} pixels")
    yield _chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b"")


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
