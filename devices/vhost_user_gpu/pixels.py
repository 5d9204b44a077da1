"""Pixel formats of four bytes, and the conversion of each to the format of the wire.

A format's name gives the bytes of a pixel in the order of memory: B8G8R8X8 is blue, green, red, unused. This
one is the format of the wire; there its name is x8r8g8b8, in the order of a little-endian number.
"""

from enum import IntEnum

PIXEL = 4  # bytes


class Format(IntEnum):
    """enum virtio_gpu_formats (virtio 1.3, 5.7.6.8)."""

    B8G8R8A8 = 1
    B8G8R8X8 = 2
    A8R8G8B8 = 3
    X8R8G8B8 = 4
    R8G8B8A8 = 67
    X8B8G8R8 = 68
    A8B8G8R8 = 121
    R8G8B8X8 = 134

    @property
    def channels(self) -> str:
        """The channels in the order of their bytes, such as BGRX."""
        return self.name[::2]

    @property
    def is_wire_format(self) -> bool:
        """Whether pixels can be sent without a conversion."""
        return self.channels.startswith("BGR")

    @property
    def fourcc(self) -> int:
        """Linux's code for the format (DRM_FORMAT_...), four letters: of the channels of the little-endian
        number, A or X, and the first one of R and B, in their order; then "24"."""
        number = self.channels[::-1]
        first = number.strip("AX")[0]
        return int.from_bytes(f"{''.join(c for c in number if c in 'AX' + first)}24".encode(), "little")


def to_wire(data: bytearray, kind: Format) -> bytearray:
    """The pixels as B, G, R and the fourth channel; `data` itself if it has that order already."""
    if kind.is_wire_format:
        return data
    converted = bytearray(len(data))
    for place, channel in enumerate(sorted(kind.channels, key="BGRAX".index)):
        converted[place::PIXEL] = data[kind.channels.index(channel) :: PIXEL]
    return converted
