"""The agent's commands about the console on the display: text, and the font that it is drawn in."""

import fcntl
import struct
from array import array
from collections.abc import Callable
from typing import Any

CONSOLE = "/dev/tty1"

# Linux: include/uapi/linux/kd.h
KDFONTOP = 0x4B72
FONT_OPERATION = struct.Struct("@5IP")
GET_FONT = 1
MOST_GLYPHS = 512
GLYPH_ROWS = 32  # each glyph has so many in what KDFONTOP gives, whatever the font's height
MOST_COLUMNS = 32

# No cursor, which would blink, and an empty screen (console_codes(4)).
CLEAR = "\033[?25l\033[H\033[2J"


def commands() -> dict[str, Callable[..., Any]]:
    """The commands by name."""
    return {"print": print_text, "font": font}


def print_text(text: str) -> None:
    """Clears the console and writes the text at the top left."""
    with open(CONSOLE, "w") as console:
        console.write(CLEAR + text)


def font() -> dict[str, Any]:
    """The console's font: "width", "height", and "glyphs" in hex, a bit per pixel, in rows of whole bytes."""
    room = array("B", bytes(MOST_GLYPHS * GLYPH_ROWS * MOST_COLUMNS // 8))
    operation = bytearray(
        FONT_OPERATION.pack(GET_FONT, 0, MOST_COLUMNS, GLYPH_ROWS, MOST_GLYPHS, room.buffer_info()[0])
    )
    with open(CONSOLE, "wb", buffering=0) as console:
        fcntl.ioctl(console, KDFONTOP, operation)
    _, _, width, height, count, _ = FONT_OPERATION.unpack(operation)
    row = (width + 7) // 8
    starts = range(0, count * GLYPH_ROWS * row, GLYPH_ROWS * row)
    glyphs = [room[start : start + height * row].tobytes().hex() for start in starts]
    return {"width": width, "height": height, "glyphs": glyphs}
