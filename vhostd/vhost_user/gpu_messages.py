"""The vhost-user-gpu protocol: the messages on the socket of GPU_SET_SOCKET.

One table row per message, in the order of the specification (QEMU's docs/interop/vhost-user-gpu.rst). The
back-end sends requests, and the front-end answers in order.
"""

from typing import Annotated

from vhostd.wire.framing import Dialect
from vhostd.wire.layout import Layout, array, s32, u32, u64
from vhostd.wire.rows import U64, Bit, Empty, Row, rows_of

CURSOR_SIDE = 64  # pixels; all cursors are square and of this size
CURSOR_BYTES = 4 * CURSOR_SIDE * CURSOR_SIDE


class DisplayFeature:
    """Bits of GET/SET_PROTOCOL_FEATURES."""

    EDID = Bit(0)
    DMABUF2 = Bit(1)


class CursorPos(Layout, byteorder="="):
    """VhostUserGpuCursorPos: the scan-out, and the position of the cursor's hot spot on it."""

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
    """VhostUserGpuDMABUFScanout: a scan-out's rectangle in a dmabuf. The dmabuf's fd comes with it."""

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
    """VhostUserGpuEdidRequest: the scan-out whose EDID the back-end asks for."""

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


GET_PROTOCOL_FEATURES = Row(1, Empty, reply=U64)
SET_PROTOCOL_FEATURES = Row(2, U64)
GET_DISPLAY_INFO = Row(3, Empty, reply=DisplayInfo)
CURSOR_POS = Row(4, CursorPos)
CURSOR_POS_HIDE = Row(5, CursorPos)
CURSOR_UPDATE = Row(6, CursorUpdate)
SCANOUT = Row(7, Scanout)
UPDATE = Row(8, Update)
DMABUF_SCANOUT = Row(9, DmabufScanout)
DMABUF_UPDATE = Row(10, Update, reply=Empty)
GET_EDID = Row(11, EdidRequest, reply=Edid, needs=DisplayFeature.EDID)
DMABUF_SCANOUT2 = Row(12, DmabufScanout2, needs=DisplayFeature.DMABUF2)

DISPLAY = Dialect(rows_of(vars()), version=0)
