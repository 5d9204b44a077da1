"""The virtio side's structs, byte by byte, and its table of commands (virtio 1.3, 5.7.6)."""

import pytest

from tests.devices.vhost_user_gpu.golden import Golden, golden
from tests.numbers import numbers
from vhost_user_gpu import commands
from vhost_user_gpu.commands import COMMANDS, GpuFeature, Header, Response
from vhostd import Empty

NAME = int.from_bytes(b"\t" * 64)
VECTORS = [
    golden(
        commands.Header,
        """
        04 01 00 00              type = 0x104
        03 00 00 00              flags = 3
        08 07 06 05 04 03 02 01  fence_id = 0x0102030405060708
        0c 0b 0a 09              ctx_id = 0x090a0b0c
        3f                       ring_idx = 63
        00 * 3                   padding = 0
        """,
    ),
    golden(
        commands.Mode,
        """
        00 05 00 00  x = 1280
        01 00 00 00  y = 1
        80 07 00 00  width = 1920
        38 04 00 00  height = 1080
        01 00 00 00  enabled = 1
        02 00 00 00  flags = 2
        """,
    ),
    golden(
        commands.GetEdid,
        """
        0f 00 00 00  scanout = 15
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.EdidReply,
        """
        80 00 00 00  size = 128
        00 00 00 00  padding = 0
        00 * 1024    edid = 0
        """,
    ),
    golden(
        commands.ResourceCreate2d,
        """
        01 00 00 80  resource_id = 0x80000001
        86 00 00 00  format = 134
        00 05 00 00  width = 1280
        20 03 00 00  height = 800
        """,
    ),
    golden(
        commands.ResourceId,
        """
        02 01 00 00  resource_id = 0x102
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.SetScanout,
        """
        01 00 00 00  x = 1
        02 00 00 00  y = 2
        03 00 00 00  width = 3
        04 00 00 00  height = 4
        05 00 00 00  scanout_id = 5
        06 00 00 00  resource_id = 6
        """,
    ),
    golden(
        commands.ResourceFlush,
        """
        01 00 00 00  x = 1
        02 00 00 00  y = 2
        03 00 00 00  width = 3
        04 00 00 00  height = 4
        05 00 00 00  resource_id = 5
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.TransferToHost2d,
        """
        01 00 00 00              x = 1
        02 00 00 00              y = 2
        03 00 00 00              width = 3
        04 00 00 00              height = 4
        08 07 06 05 04 03 02 01  offset = 0x0102030405060708
        05 00 00 00              resource_id = 5
        00 00 00 00              padding = 0
        """,
    ),
    golden(
        commands.AttachBacking,
        """
        01 00 00 00  resource_id = 1
        00 00 01 00  nr_entries = 65536
        """,
    ),
    golden(
        commands.GetCapsetInfo,
        """
        01 00 00 00  capset_index = 1
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.GetCapset,
        """
        02 00 00 00  capset_id = 2
        03 00 00 00  capset_version = 3
        """,
    ),
    golden(
        commands.ResourceCreateBlob,
        """
        01 00 00 00              resource_id = 1
        03 00 00 00              blob_mem = 3
        06 00 00 00              blob_flags = 6
        04 00 00 00              nr_entries = 4
        00 00 00 00 01 00 00 00  blob_id = 0x100000000
        ff 00 00 00 00 00 00 80  size = 0x80000000000000ff
        """,
    ),
    golden(
        commands.SetScanoutBlob,
        """
        01 00 00 00  x = 1
        02 00 00 00  y = 2
        03 00 00 00  width = 3
        04 00 00 00  height = 4
        05 00 00 00  scanout_id = 5
        06 00 00 00  resource_id = 6
        07 00 00 00  fb_width = 7
        08 00 00 00  fb_height = 8
        43 00 00 00  format = 67
        00 00 00 00  padding = 0
        00 14 00 00  stride = 0x1400
        09 * 12      more_strides = 0x090909090909090909090909
        00 10 00 00  offset = 0x1000
        0a * 12      more_offsets = 0x0a0a0a0a0a0a0a0a0a0a0a0a
        """,
    ),
    golden(
        commands.CtxCreate,
        f"""
        04 00 00 00  nlen = 4
        02 00 00 00  context_init = 2
        09 * 64      debug_name = {NAME:#x}
        """,
    ),
    golden(
        commands.CtxResource,
        """
        01 00 00 00  resource_id = 1
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.ResourceCreate3d,
        """
        01 00 00 00  resource_id = 1
        02 00 00 00  target = 2
        03 00 00 00  format = 3
        04 00 00 80  bind = 0x80000004
        05 00 00 00  width = 5
        06 00 00 00  height = 6
        07 00 00 00  depth = 7
        08 00 00 00  array_size = 8
        09 00 00 00  last_level = 9
        0a 00 00 00  nr_samples = 10
        0b 00 00 00  flags = 11
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.TransferHost3d,
        """
        01 00 00 00              x = 1
        02 00 00 00              y = 2
        03 00 00 00              z = 3
        04 00 00 00              width = 4
        05 00 00 00              height = 5
        06 00 00 00              depth = 6
        00 00 00 00 01 00 00 00  offset = 0x100000000
        07 00 00 00              resource_id = 7
        08 00 00 00              level = 8
        09 00 00 00              stride = 9
        0a 00 00 00              layer_stride = 10
        """,
    ),
    golden(
        commands.Submit3d,
        """
        00 00 01 00  size = 65536
        00 00 00 00  padding = 0
        """,
    ),
    golden(
        commands.UpdateCursor,
        """
        01 00 00 00  scanout_id = 1
        ff ff ff ff  x = 0xffffffff
        02 00 00 00  y = 2
        00 00 00 00  position_padding = 0
        03 00 00 00  resource_id = 3
        04 00 00 00  hot_x = 4
        05 00 00 00  hot_y = 5
        00 00 00 00  padding = 0
        """,
    ),
]

# A command's number, its name, its size with the header and without what may follow, and what it needs
TABLE = [
    (0x100, "GET_DISPLAY_INFO", 24, None),
    (0x101, "RESOURCE_CREATE_2D", 40, None),
    (0x102, "RESOURCE_UNREF", 32, None),
    (0x103, "SET_SCANOUT", 48, None),
    (0x104, "RESOURCE_FLUSH", 48, None),
    (0x105, "TRANSFER_TO_HOST_2D", 56, None),
    (0x106, "RESOURCE_ATTACH_BACKING", 32, None),
    (0x107, "RESOURCE_DETACH_BACKING", 32, None),
    (0x108, "GET_CAPSET_INFO", 32, None),
    (0x109, "GET_CAPSET", 32, None),
    (0x10A, "GET_EDID", 32, 1),
    (0x10B, "RESOURCE_ASSIGN_UUID", 32, 2),
    (0x10C, "RESOURCE_CREATE_BLOB", 56, 3),
    (0x10D, "SET_SCANOUT_BLOB", 96, 3),
    (0x200, "CTX_CREATE", 96, 0),
    (0x201, "CTX_DESTROY", 24, 0),
    (0x202, "CTX_ATTACH_RESOURCE", 32, 0),
    (0x203, "CTX_DETACH_RESOURCE", 32, 0),
    (0x204, "RESOURCE_CREATE_3D", 72, 0),
    (0x205, "TRANSFER_TO_HOST_3D", 72, 0),
    (0x206, "TRANSFER_FROM_HOST_3D", 72, 0),
    (0x207, "SUBMIT_3D", 32, 0),
    (0x300, "UPDATE_CURSOR", 56, None),
    (0x301, "MOVE_CURSOR", 56, None),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector.name)
def test_struct(vector: Golden) -> None:
    vector.check()


def test_every_struct_has_a_vector() -> None:
    used = {command.payload for command in COMMANDS.values()} - {Empty}
    assert used < {vector.layout for vector in VECTORS}
    assert Empty.SIZE == 0


def test_the_table_of_commands() -> None:
    found = [
        (number, str(command), Header.SIZE + command.payload.SIZE, command.needs)
        for number, command in COMMANDS.items()
    ]
    assert found == TABLE


def test_numbers() -> None:
    assert numbers(GpuFeature) == {
        **{"VIRGL": 0, "EDID": 1, "RESOURCE_UUID": 2, "RESOURCE_BLOB": 3, "CONTEXT_INIT": 4}
    }
    assert {each.name: each.value for each in Response} == {
        "OK_NODATA": 0x1100,
        "OK_DISPLAY_INFO": 0x1101,
        "OK_CAPSET_INFO": 0x1102,
        "OK_CAPSET": 0x1103,
        "OK_EDID": 0x1104,
        "OK_RESOURCE_UUID": 0x1105,
        "OK_MAP_INFO": 0x1106,
        "ERR_UNSPEC": 0x1200,
        "ERR_OUT_OF_MEMORY": 0x1201,
        "ERR_INVALID_SCANOUT_ID": 0x1202,
        "ERR_INVALID_RESOURCE_ID": 0x1203,
        "ERR_INVALID_CONTEXT_ID": 0x1204,
        "ERR_INVALID_PARAMETER": 0x1205,
    }
    assert (Header.FENCE, Header.RING_IDX, commands.ResourceCreateBlob.GUEST) == (1, 2, 1)
