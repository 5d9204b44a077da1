"""A dmabuf as a display gets it: where the picture lies in it, and what it shows, as far as CPUs can tell."""

import mmap
import os
import struct
from typing import NamedTuple, Self

from vhostd.wire.fds import Fd

PLACE = struct.Struct("=4x8Ii")  # VhostUserGpuDMABUFScanout, without the scan-out's number
LINEAR = 0
PIXEL = 4  # bytes
UPSIDE_DOWN = 1  # a flag, by virtio-gpu's name Y_0_TOP: the last row of memory is the top of the picture
# Bytes of a pixel that are blue, green, red and the rest, by the fourcc's letters without A and X.
CHANNELS = {b"R24": (0, 1, 2, 3), b"B24": (2, 1, 0, 3)}


class Dmabuf(NamedTuple):
    """A scan-out's dmabuf, which is the holder's to close, and the rectangle of it that is shown."""

    fd: Fd
    x: int
    y: int
    width: int
    height: int
    fd_width: int
    fd_height: int
    stride: int
    flags: int
    fourcc: int
    modifier: int = LINEAR

    @classmethod
    def of(cls, fd: Fd, payload: bytes) -> Self:
        """That of DMABUF_SCANOUT or DMABUF_SCANOUT2."""
        rest = payload[PLACE.size :]
        return cls(fd, *PLACE.unpack_from(payload), *struct.unpack("=Q", rest) if rest else ())

    def fileno(self) -> int:
        """The fd's number; ValueError once it is closed."""
        return self.fd.fileno()

    def close(self) -> None:
        """Closes the fd; idempotent."""
        self.fd.close()

    def pixels(self) -> bytes:
        """What is shown now, row by row from the top: blue, green, red and the fourth byte of each pixel.

        Raises ValueError for a layout that needs a GPU to be read.
        """
        code = self.fourcc.to_bytes(4, "little")
        if self.modifier != LINEAR or code[1:] not in CHANNELS:
            raise ValueError(f"format {code!r} with modifier {self.modifier:#x}")
        rows = range(self.y, self.y + self.height)
        if self.flags & UPSIDE_DOWN:
            rows = range(self.fd_height - 1 - self.y, self.fd_height - 1 - self.y - self.height, -1)
        with mmap.mmap(self.fileno(), os.fstat(self.fileno()).st_size, prot=mmap.PROT_READ) as memory:
            starts = (row * self.stride + self.x * PIXEL for row in rows)
            data = b"".join(memory[start : start + self.width * PIXEL] for start in starts)
        swapped = bytearray(len(data))
        for to, channel in enumerate(CHANNELS[code[1:]]):
            swapped[to::PIXEL] = data[channel::PIXEL]
        return bytes(swapped)
