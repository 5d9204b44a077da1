"""The messages of the gpu socket, byte by byte (QEMU's docs/interop/vhost-user-gpu.rst)."""

import sys
from typing import Any

import pytest

import vhostd.vhost_user.gpu_messages as wire
from tests.devices.vhost_user_gpu.golden import Golden, golden
from tests.numbers import numbers
from vhostd import U64, Empty, Layout, Row
from vhostd.wire.framing import HEADER

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the vectors are little-endian, as all hosts are"
)

ROWS = wire.DISPLAY.requests
NOTHING = golden(Empty, "")
FEATURES = golden(U64, "03 00 00 00 00 00 00 80  value = 0x8000000000000003")
PLACE = golden(
    wire.CursorPos,
    """
    01 00 00 00  scanout_id = 1
    fe ff ff ff  x = 0xfffffffe
    02 00 00 00  y = 2
    """,
)
SHAPE = golden(
    wire.CursorUpdate,
    """
    01 00 00 00  scanout_id = 1
    02 00 00 00  x = 2
    03 00 00 00  y = 3
    04 00 00 00  hot_x = 4
    05 00 00 00  hot_y = 5
    00 * 16384   data = 0
    """,
)
SIZE = golden(
    wire.Scanout,
    """
    0f 00 00 00  scanout_id = 15
    80 07 00 00  width = 1920
    38 04 00 00  height = 1080
    """,
)
PART = golden(
    wire.Update,
    """
    01 00 00 00  scanout_id = 1
    02 00 00 00  x = 2
    03 00 00 00  y = 3
    04 00 00 00  width = 4
    05 00 00 00  height = 5
    """,
)
DMABUF = golden(
    wire.DmabufScanout,
    """
    01 00 00 00  scanout_id = 1
    02 00 00 00  x = 2
    03 00 00 00  y = 3
    04 00 00 00  width = 4
    05 00 00 00  height = 5
    06 00 00 00  fd_width = 6
    07 00 00 00  fd_height = 7
    1c 00 00 00  fd_stride = 28
    01 00 00 00  fd_flags = 1
    58 52 32 34  fd_drm_fourcc = 0x34325258, XR24
    """,
)
DMABUF2 = golden(
    wire.DmabufScanout2,
    f"""
    {DMABUF.data.hex(" ")}   dmabuf_scanout = {int.from_bytes(DMABUF.data, "little")}
    08 07 06 05 04 03 02 01  modifier = 0x0102030405060708
    """,
)
WHICH = golden(wire.EdidRequest, "0f 00 00 00  scanout_id = 15")
MODES = golden(
    wire.DisplayInfo,
    """
    01 * 24   header = 0x010101010101010101010101010101010101010101010101
    00 * 384  modes = 0
    """,
)
EDID = golden(
    wire.Edid,
    """
    01 * 24      header = 0x010101010101010101010101010101010101010101010101
    00 01 00 00  size = 256
    00 00 00 00  padding = 0
    00 * 1024    edid = 0
    """,
)

# A message's number, its name, its payload, that of its reply, and the protocol feature that it needs
TABLE = [
    (1, "GET_PROTOCOL_FEATURES", NOTHING, FEATURES, None),
    (2, "SET_PROTOCOL_FEATURES", FEATURES, None, None),
    (3, "GET_DISPLAY_INFO", NOTHING, MODES, None),
    (4, "CURSOR_POS", PLACE, None, None),
    (5, "CURSOR_POS_HIDE", PLACE, None, None),
    (6, "CURSOR_UPDATE", SHAPE, None, None),
    (7, "SCANOUT", SIZE, None, None),
    (8, "UPDATE", PART, None, None),
    (9, "DMABUF_SCANOUT", DMABUF, None, None),
    (10, "DMABUF_UPDATE", PART, NOTHING, None),
    (11, "GET_EDID", WHICH, EDID, 0),
    (12, "DMABUF_SCANOUT2", DMABUF2, None, 1),
]
EACH = pytest.mark.parametrize(
    ("number", "name", "payload", "reply", "needs"), TABLE, ids=[each[1] for each in TABLE]
)


@EACH
def test_payloads(number: int, name: str, payload: Golden, reply: Golden | None, needs: int | None) -> None:
    payload.check()
    row = ROWS[number]
    assert (row.payload, row.needs) == (payload.layout, needs)
    if reply is None:
        assert row.reply is None
    else:
        reply.check()
        assert row.reply is reply.layout
    assert str(row) == name


@EACH
def test_messages(number: int, name: str, payload: Golden, reply: Golden | None, needs: int | None) -> None:
    size = len(payload.data)
    header = bytes((number, 0, 0, 0, 0, 0, 0, 0, size & 0xFF, size >> 8, 0, 0))
    assert wire.DISPLAY.encode(number, payload.layout.unpack(payload.data)) == header + payload.data


def test_pixels_count_although_they_are_sent_apart() -> None:
    message = wire.DISPLAY.encode(8, wire.Update(1, 2, 3, 4, 5), following=4 * 4 * 5)
    assert message == bytes.fromhex("08000000 00000000 64000000") + PART.data


def test_there_are_no_others() -> None:
    assert list(ROWS) == [each[0] for each in TABLE]


def test_numbers() -> None:
    assert numbers(wire.DisplayFeature) == {"EDID": 0, "DMABUF2": 1}
    assert (HEADER.size, wire.DISPLAY.version) == (12, 0)
    assert (wire.CURSOR_SIDE, wire.CURSOR_BYTES) == (64, 64 * 64 * 4)


@pytest.mark.parametrize("row", ROWS.values(), ids=str)
def test_nothing_that_is_too_large_can_be_said(row: Row[Any, Any]) -> None:
    fits: Layout = row.payload.unpack(b"\xff" * row.payload.SIZE)
    assert wire.DISPLAY.encode(row.request, fits)[HEADER.size :] == b"\xff" * row.payload.SIZE
