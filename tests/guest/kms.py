"""Linux's interface to displays (KMS), as far as the tests use it: ioctls on /dev/dri/card*.

The structs are those of include/uapi/drm/drm_mode.h. Pointers in them are addresses of `array`s.
"""

import fcntl
import mmap
import os
import struct
from array import array
from dataclasses import dataclass
from typing import Any

READ_WRITE_IOCTL = 3 << 30
IOCTL_TYPE = ord("d")

CARD_RESOURCES = struct.Struct("<4Q8I")
CRTC = struct.Struct("<Q7I68s")
CONNECTOR = struct.Struct("<4Q12I")
MODE = struct.Struct("<I10H3I32s")
FRAMEBUFFER = struct.Struct("<5I4I4I4I4x4Q")
PAGE_FLIP = struct.Struct("<4IQ")
DIRTY = struct.Struct("<4IQ")
CREATE_DUMB = struct.Struct("<6IQ")
MAP_DUMB = struct.Struct("<2IQ")
CURSOR = struct.Struct("<2I2i3I2i")
ID = struct.Struct("<I")
PRIME = struct.Struct("<IIi")

HANDLE_TO_FD = 0x2D
GET_RESOURCES = 0xA0
SET_CRTC = 0xA2
GET_CONNECTOR = 0xA7
REMOVE_FRAMEBUFFER = 0xAF
FLIP = 0xB0
MARK_DIRTY = 0xB1
CREATE_DUMB_BUFFER = 0xB2
MAP_DUMB_BUFFER = 0xB3
DESTROY_DUMB_BUFFER = 0xB4
ADD_FRAMEBUFFER = 0xB8
SET_CURSOR = 0xBB

CURSOR_SHAPE = 1
CURSOR_PLACE = 2
EVENT_AFTER_FLIP = 1
CONNECTED = 1
MOST = 32  # connectors, CRTCs, encoders
MOST_MODES = 128
EVENT_SIZE = 4096

XRGB8888 = int.from_bytes(b"XR24", "little")
ARGB8888 = int.from_bytes(b"AR24", "little")


@dataclass(frozen=True)
class Mode:
    """One mode of a connector; `raw` is what the kernel calls it."""

    width: int
    height: int
    raw: bytes


@dataclass(frozen=True)
class Connector:
    """A connector, the CRTC that feeds it, and the modes of what is plugged in; the first is preferred."""

    identity: int
    crtc: int
    connected: bool
    modes: list[Mode]


class Card:
    """An open display device. While it is open nobody else paints, not even the console."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def connector(self, index: int) -> Connector:
        """The connector number `index`, after asking the driver what is plugged in there now."""
        crtcs, connectors = self._resources()
        identity = connectors[index]
        # Only a request that has no room for modes makes the kernel ask the driver.
        self._ioctl(GET_CONNECTOR, CONNECTOR, *[0] * 8, identity, *[0] * 7)
        modes = array("B", bytes(MOST_MODES * MODE.size))
        answer = self._ioctl(
            GET_CONNECTOR, CONNECTOR, 0, _address(modes), 0, 0, MOST_MODES, 0, 0, 0, identity, *[0] * 7
        )
        raw = modes.tobytes()[: answer[4] * MODE.size]
        found = [_mode(raw[start : start + MODE.size]) for start in range(0, len(raw), MODE.size)]
        # virtio-gpu wires each connector to the CRTC of the same number.
        return Connector(identity, crtcs[index], answer[11] == CONNECTED, found)

    def show(self, connector: Connector, mode: Mode, buffer: "Framebuffer") -> None:
        """Sets the mode and shows the buffer."""
        connectors = array("I", [connector.identity])
        self._ioctl(
            SET_CRTC, CRTC, _address(connectors), 1, connector.crtc, buffer.framebuffer, 0, 0, 0, 1, mode.raw
        )

    def flip(self, connector: Connector, buffer: "Framebuffer") -> None:
        """Shows another buffer of the same size; an event can be read when it is done."""
        self._ioctl(FLIP, PAGE_FLIP, connector.crtc, buffer.framebuffer, EVENT_AFTER_FLIP, 0, 0)

    def wait_flip(self) -> None:
        """Returns when the flip that was asked for last is done."""
        os.read(self.fd, EVENT_SIZE)

    def mark_dirty(self, buffer: "Buffer") -> None:
        """Says that the buffer has changed.

        One can name rectangles here, but Linux 6.12 makes of them the whole picture for virtio-gpu.
        """
        self._ioctl(MARK_DIRTY, DIRTY, buffer.framebuffer, 0, 0, 0, 0)

    def set_cursor(self, connector: Connector, buffer: "Buffer | None", hot_x: int, hot_y: int) -> None:
        """Shows a cursor, or none."""
        size = (buffer.width, buffer.height, buffer.handle) if buffer else (0, 0, 0)
        self._ioctl(SET_CURSOR, CURSOR, CURSOR_SHAPE, connector.crtc, 0, 0, *size, hot_x, hot_y)

    def move_cursor(self, connector: Connector, x: int, y: int) -> None:
        """Moves the cursor's image to these pixels of the screen."""
        self._ioctl(SET_CURSOR, CURSOR, CURSOR_PLACE, connector.crtc, x, y, 0, 0, 0, 0, 0)

    def create_buffer(self, width: int, height: int, pixel_format: int = XRGB8888) -> "Buffer":
        """A new buffer in memory that the display can read, and that is mapped here."""
        answer = self._ioctl(CREATE_DUMB_BUFFER, CREATE_DUMB, height, width, 32, 0, 0, 0, 0)
        handle, pitch, size = answer[4:]
        _, _, offset = self._ioctl(MAP_DUMB_BUFFER, MAP_DUMB, handle, 0, 0)
        framebuffer = self.add_framebuffer(width, height, handle, pitch, pixel_format)
        pixels = mmap.mmap(self.fd, size, offset=offset)
        return Buffer(width, height, handle, pitch, framebuffer.framebuffer, pixels)

    def add_framebuffer(
        self, width: int, height: int, handle: int, pitch: int, pixel_format: int = XRGB8888
    ) -> "Framebuffer":
        """Memory of this card, known by its handle, as something to show."""
        planes = [handle, 0, 0, 0, pitch, 0, 0, 0, *[0] * 8]
        added = self._ioctl(ADD_FRAMEBUFFER, FRAMEBUFFER, 0, width, height, pixel_format, 0, *planes)
        return Framebuffer(width, height, handle, pitch, added[0])

    def export(self, buffer: "Framebuffer") -> int:
        """A buffer as a dmabuf, for OpenGL to use; its fd."""
        *_, fd = self._ioctl(HANDLE_TO_FD, PRIME, buffer.handle, os.O_CLOEXEC, 0)
        return int(fd)

    def destroy_buffer(self, buffer: "Buffer") -> None:
        """Frees a buffer, also one that is being shown."""
        buffer.pixels.close()
        self._ioctl(REMOVE_FRAMEBUFFER, ID, buffer.framebuffer)
        self._ioctl(DESTROY_DUMB_BUFFER, ID, buffer.handle)

    def close(self) -> None:
        """Lets others paint; the console comes back."""
        os.close(self.fd)

    def _resources(self) -> tuple[list[int], list[int]]:
        """The ids of the CRTCs and of the connectors."""
        lists = [array("I", [0] * MOST) for _ in range(4)]
        addresses = [_address(each) for each in lists]
        answer = self._ioctl(GET_RESOURCES, CARD_RESOURCES, *addresses, *[MOST] * 4, 0, 0, 0, 0)
        _, crtcs, connectors, _ = lists
        return list(crtcs[: answer[5]]), list(connectors[: answer[6]])

    def _ioctl(self, number: int, layout: struct.Struct, *values: Any) -> tuple[Any, ...]:
        """What the struct holds after the ioctl."""
        data = bytearray(layout.pack(*values))
        fcntl.ioctl(self.fd, READ_WRITE_IOCTL | layout.size << 16 | IOCTL_TYPE << 8 | number, data)
        return layout.unpack(data)


@dataclass(frozen=True)
class Framebuffer:
    """What the display can show, of `pitch` bytes per row."""

    width: int
    height: int
    handle: int
    pitch: int
    framebuffer: int


@dataclass(frozen=True)
class Buffer(Framebuffer):
    """Pixels that the display can show, and that are mapped here."""

    pixels: mmap.mmap

    def write(self, picture: bytes) -> None:
        """Fills the buffer with rows that have no padding."""
        row = len(picture) // self.height
        for y in range(self.height):
            self.pixels[y * self.pitch : y * self.pitch + row] = picture[y * row : (y + 1) * row]


def _address(numbers: "array[int]") -> int:
    return numbers.buffer_info()[0]


def _mode(raw: bytes) -> Mode:
    fields = MODE.unpack(raw)
    return Mode(width=fields[1], height=fields[6], raw=raw)
