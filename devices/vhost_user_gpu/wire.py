"""The vhost-user-gpu protocol: what we say on the socket on which the front-end shows our pictures.

One table row per message, in the order of the specification (QEMU's docs/interop/vhost-user-gpu.rst). We ask
and the front-end answers, in order; its flags are 0 in a request and REPLY in a reply.

    12 bytes: request u32, flags u32, size of the payload u32; then the payload, in the machine's byte order
"""

import struct
from enum import IntEnum
from typing import Annotated

from vhostd import Layout, array, s32, u32, u64

HEADER = struct.Struct("=III")
REPLY = 0x4
CURSOR_SIDE = 64  # pixels; all cursors are square and of this size
CURSOR_BYTES = 4 * CURSOR_SIDE * CURSOR_SIDE

ROWS: "dict[int, Row]" = {}


class Feature(IntEnum):
    """Bits of GET/SET_PROTOCOL_FEATURES."""

    EDID = 0
    DMABUF2 = 1


class Empty(Layout, byteorder="="):
    """No payload at all."""


class Row:
    """One message: its number, its payload, that of its reply if it has one, and what it needs."""

    def __init__(
        self,
        name: str,
        number: int,
        payload: type[Layout],
        reply: type[Layout] = Empty,
        needs: Feature | None = None,
    ) -> None:
        ROWS[number] = self
        self.name = name
        self.number = number
        self.payload = payload
        self.reply = reply
        self.needs = needs

    def encode(self, payload: Layout, following: int = 0) -> bytes:
        """The message's bytes, up to the pixels: `following` is how many bytes of them come after it."""
        return HEADER.pack(self.number, 0, self.payload.SIZE + following) + payload.pack()

    def __str__(self) -> str:
        return self.name


class U64(Layout, byteorder="="):
    """A mask of features."""

    value: u64


class CursorPos(Layout, byteorder="="):
    """VhostUserGpuCursorPos: where on which scan-out the cursor's hot spot is."""

    scanout_id: u32
    x: u32
    y: u32


class CursorUpdate(Layout, byteorder="="):
    """VhostUserGpuCursorUpdate: the cursor's position and its pixels, a8r8g8b8."""

    scanout_id: u32
    x: u32
    y: u32
    hot_x: u32
    hot_y: u32
    data: Annotated[bytes, array(CURSOR_BYTES)]


class Scanout(Layout, byteorder="="):
    """VhostUserGpuScanout: a scan-out's size, 0 by 0 to disable it."""

    scanout_id: u32
    width: u32
    height: u32


class Update(Layout, byteorder="="):
    """VhostUserGpuUpdate: a rectangle of a scan-out; its pixels follow, x8r8g8b8."""

    scanout_id: u32
    x: u32
    y: u32
    width: u32
    height: u32


class DmabufScanout(Layout, byteorder="="):
    """VhostUserGpuDMABUFScanout: a scan-out's place in a dmabuf whose fd comes along."""

    scanout_id: u32
    x: u32
    y: u32
    width: u32
    height: u32
    fd_width: u32
    fd_height: u32
    fd_stride: u32
    fd_flags: u32
    fd_drm_fourcc: s32


class DmabufScanout2(Layout, byteorder="="):
    """VhostUserGpuDMABUFScanout2: a DmabufScanout, and the layout's modifier."""

    dmabuf_scanout: Annotated[bytes, array(DmabufScanout.SIZE)]
    modifier: u64


class EdidRequest(Layout, byteorder="="):
    """VhostUserGpuEdidRequest: the scan-out whose EDID is asked for."""

    scanout_id: u32


class DisplayInfo(Layout):
    """struct virtio_gpu_resp_display_info: a header, then 24 bytes for each scan-out (see commands.py)."""

    header: Annotated[bytes, array(24)]
    modes: Annotated[bytes, array(16 * 24)]


class Edid(Layout):
    """struct virtio_gpu_resp_edid."""

    header: Annotated[bytes, array(24)]
    size: u32
    padding: u32
    edid: Annotated[bytes, array(1024)]


GET_PROTOCOL_FEATURES = Row("GET_PROTOCOL_FEATURES", 1, Empty, U64)
SET_PROTOCOL_FEATURES = Row("SET_PROTOCOL_FEATURES", 2, U64)
GET_DISPLAY_INFO = Row("GET_DISPLAY_INFO", 3, Empty, DisplayInfo)
CURSOR_POS = Row("CURSOR_POS", 4, CursorPos)
CURSOR_POS_HIDE = Row("CURSOR_POS_HIDE", 5, CursorPos)
CURSOR_UPDATE = Row("CURSOR_UPDATE", 6, CursorUpdate)
SCANOUT = Row("SCANOUT", 7, Scanout)
UPDATE = Row("UPDATE", 8, Update)
DMABUF_SCANOUT = Row("DMABUF_SCANOUT", 9, DmabufScanout)
DMABUF_UPDATE = Row("DMABUF_UPDATE", 10, Update, Empty)
GET_EDID = Row("GET_EDID", 11, EdidRequest, Edid, needs=Feature.EDID)
DMABUF_SCANOUT2 = Row("DMABUF_SCANOUT2", 12, DmabufScanout2, needs=Feature.DMABUF2)
