"""The picture of text on Linux's console, computed from the font that it uses."""

from typing import Any

from tests.guest.screen import Picture

BLACK = bytes(3)
GREY = b"\xaa\xaa\xaa"  # colour 7 of the kernel's palette: what text is written in


def text_picture(width: int, height: int, text: str, font: dict[str, Any]) -> Picture:
    """A screen with lines of ASCII at the top left and nothing else; `font` is the agent's answer."""
    rows = b"".join(_line_pixels(line, font, width) for line in text.split("\n"))
    return Picture(width, height, rows.ljust(3 * width * height, b"\0"))


def _line_pixels(line: str, font: dict[str, Any], width: int) -> bytes:
    glyphs = [_glyph_rows(font, ord(character)) for character in line]
    return b"".join(
        b"".join(glyph[y] for glyph in glyphs).ljust(3 * width, b"\0") for y in range(font["height"])
    )


def _glyph_rows(font: dict[str, Any], number: int) -> list[bytes]:
    """A glyph's rows of pixels. The kernel's own fonts have ASCII where ASCII has it."""
    data = bytes.fromhex(font["glyphs"][number])
    row = len(data) // font["height"]
    bits = "".join(f"{byte:08b}" for byte in data)
    return [
        b"".join(GREY if bit == "1" else BLACK for bit in bits[start : start + font["width"]])
        for start in range(0, len(bits), 8 * row)
    ]
