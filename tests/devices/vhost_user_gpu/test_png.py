import struct
import zlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user_gpu.png import png


def whole(width: int, height: int, rows: bytes) -> bytes:
    """The file of a picture that is there at once."""
    return b"".join(png(width, height, [rows]))


def chunks(file: bytes) -> list[tuple[bytes, bytes]]:
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    found = []
    at = 8
    while at < len(file):
        size, kind = struct.unpack_from(">I4s", file, at)
        end = at + 8 + size
        assert struct.unpack_from(">I", file, end) == (zlib.crc32(file[at + 4 : end]),)
        found.append((kind, file[at + 8 : end]))
        at = end + 4
    return found


def decode(file: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and the pixels, red, green and blue; knows unfiltered 8-bit RGB only."""
    (first, header), *data, last = chunks(file)
    width, height, *form = struct.unpack(">IIBBBBB", header)
    assert (first, form, last) == (b"IHDR", [8, 2, 0, 0, 0], (b"IEND", b""))
    assert {kind for kind, _ in data} == {b"IDAT"}
    lines = zlib.decompress(b"".join(part for _, part in data))
    stride = 1 + 3 * width
    assert len(lines) == stride * height
    assert not any(lines[::stride])
    starts = (row * stride + 1 + 3 * column for row in range(height) for column in range(width))
    return width, height, [lines[at : at + 3] for at in starts]


def test_one_pixel() -> None:
    assert decode(whole(1, 1, b"\x03\x02\x01\xee")) == (1, 1, [b"\x01\x02\x03"])


def test_pixels_stay_where_they_are() -> None:
    rows = b"".join(
        bytes((blue, 0, red, 0xFF)) for red, blue in ((1, 2), (3, 4), (5, 6), (7, 8), (9, 0), (1, 1))
    )
    there = [b"\1\0\2", b"\3\0\4", b"\5\0\6", b"\7\0\x08", b"\x09\0\0", b"\1\0\1"]
    assert decode(whole(3, 2, rows)) == (3, 2, there)
    assert decode(whole(2, 3, rows)) == (2, 3, there)


@given(st.integers(1, 40), st.integers(1, 40), st.randoms(use_true_random=False))
def test_every_picture_comes_back(width: int, height: int, random: Random) -> None:
    pixels = [random.randbytes(4) for _ in range(width * height)]
    expected = [bytes((red, green, blue)) for blue, green, red, _ in pixels]
    assert decode(whole(width, height, b"".join(pixels))) == (width, height, expected)


@pytest.mark.parametrize("heights", [[6], [1] * 6, [4, 2], [5, 0, 1]])
def test_the_bands_may_be_any(heights: list[int]) -> None:
    """Also with nothing at all in them; they are one picture."""
    pixels = Random(6).randbytes(4 * 3 * 6)
    rows = [pixels[at : at + 12] for at in range(0, len(pixels), 12)]
    bands = [b"".join(rows.pop(0) for _ in range(height)) for height in heights]
    assert decode(b"".join(png(3, 6, bands))) == decode(whole(3, 6, pixels))


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(2, 2, 15), (2, 2, 17), (2, 2, 8), (2, 2, 24), (1, 1, 0), (0, 0, 0), (0, 4, 0), (-1, -1, 4)],
)
def test_another_number_of_bytes_is_refused(width: int, height: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"picture of|no rows of"):
        whole(width, height, bytes(size))


def test_a_plain_screen_is_a_small_file() -> None:
    assert len(whole(1920, 1080, b"\x80\x40\x20\0" * (1920 * 1080))) < 10_000
