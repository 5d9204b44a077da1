"""The drivers' numbers against the kernel's headers. The devices have tables, and tests, of their own."""

import re
import struct
from functools import cache
from pathlib import Path

import pytest

from vhost_user_vsock import protocol
from vhostd.frontend.drivers import block, gpu, input, vsock
from vhostd.frontend.drivers.block import BlockConfig

HEADERS = Path("/usr/include/linux")
DEFINE = re.compile(r"^#define\s+(VIRTIO_\w+)\s+(?:\(?1 << (\d+)\)?|(\w+))", re.MULTILINE)
ENUM = re.compile(r"^enum \w+ \{(.*?)^\};", re.MULTILINE | re.DOTALL)
MEMBER = re.compile(r"\b(VIRTIO_\w+)(?:\s*=\s*(0x[0-9a-f]+|\d+))?,")
STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
FIELD = re.compile(r"\b__(?:u|virtio|le)(8|16|32|64)\s+(\w+)(?:\[(\d+)\])?;")


@cache
def defined(header: str) -> dict[str, int]:
    """All numbers of a header, as defines or in an enum."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / header).read_text(), flags=re.DOTALL)
    found = {}
    for name, bit, value in DEFINE.findall(text):
        if bit or value[0].isdigit():
            found[name] = 1 << int(bit) if bit else int(value, 0)
    for body in ENUM.findall(text):
        value = -1
        for name, given in MEMBER.findall(body):
            value = int(given, 0) if given else value + 1
            found[name] = value
    return found


BLOCK = {
    **{
        f"T_{name}": getattr(block, name)
        for name in ("IN", "OUT", "FLUSH", "GET_ID", "DISCARD", "WRITE_ZEROES")
    },
    **{f"S_{name}": getattr(block, name) for name in ("OK", "IOERR", "UNSUPP")},
    **{
        f"F_{name}": getattr(block, name)
        for name in ("SIZE_MAX", "SEG_MAX", "GEOMETRY", "RO", "BLK_SIZE", "TOPOLOGY", "CONFIG_WCE", "MQ")
    },
    **{f"F_{name}": getattr(block, f"FEATURE_{name}") for name in ("FLUSH", "DISCARD", "WRITE_ZEROES")},
    "ID_BYTES": block.ID_SIZE,
    "WRITE_ZEROES_FLAG_UNMAP": block.UNMAP,
}
GPU = {
    **{f"F_{name}": getattr(gpu, name) for name in ("EDID", "RESOURCE_UUID", "RESOURCE_BLOB")},
    "FORMAT_B8G8R8A8_UNORM": gpu.B8G8R8A8,
    "FORMAT_B8G8R8X8_UNORM": gpu.B8G8R8X8,
    "FORMAT_R8G8B8A8_UNORM": gpu.R8G8B8A8,
    "RESP_OK_NODATA": gpu.OK,
    "RESP_OK_DISPLAY_INFO": gpu.OK_DISPLAY_INFO,
    "RESP_OK_CAPSET_INFO": gpu.OK_CAPSET_INFO,
    "RESP_OK_EDID": gpu.OK_EDID,
    "RESP_OK_RESOURCE_UUID": gpu.OK_RESOURCE_UUID,
    "RESP_ERR_UNSPEC": gpu.ERR_UNSPEC,
    "RESP_ERR_OUT_OF_MEMORY": gpu.ERR_OUT_OF_MEMORY,
    "RESP_ERR_INVALID_SCANOUT_ID": gpu.ERR_SCANOUT,
    "RESP_ERR_INVALID_RESOURCE_ID": gpu.ERR_RESOURCE,
    "RESP_ERR_INVALID_PARAMETER": gpu.ERR_PARAMETER,
    "BLOB_MEM_GUEST": gpu.BLOB_MEM_GUEST,
    "FLAG_FENCE": gpu.FENCE,
    **{f"CMD_{name}": number for name, number in vars(gpu.Command).items() if name.isupper()},
}
INPUT = {
    f"CFG_{name}": getattr(input, name)
    for name in ("ID_NAME", "ID_SERIAL", "ID_DEVIDS", "PROP_BITS", "EV_BITS", "ABS_INFO")
}
VSOCK = {
    **{f"OP_{name}": getattr(vsock, name) for name in ("REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW")},
    "OP_CREDIT_UPDATE": vsock.CREDIT_UPDATE,
    "OP_CREDIT_REQUEST": vsock.CREDIT_REQUEST,
    "TYPE_STREAM": vsock.STREAM,
    "TYPE_SEQPACKET": vsock.SEQPACKET,
    "SHUTDOWN_RCV": vsock.SHUTDOWN_RECEIVE,
    "SHUTDOWN_SEND": vsock.SHUTDOWN_SEND,
    "SEQ_EOM": vsock.SEQ_EOM,
    "SEQ_EOR": vsock.SEQ_EOR,
}
VSOCK_DEVICE = {
    **{f"OP_{name}": number for name, number in vars(protocol.Op).items() if name.isupper()},
    **{f"TYPE_{name}": number for name, number in vars(protocol.Kind).items() if name.isupper()},
    "F_SEQPACKET": protocol.VsockFeature.SEQPACKET,
    "SHUTDOWN_RCV": protocol.Shutdown.RECEIVE,
    "SHUTDOWN_SEND": protocol.Shutdown.SEND,
    "EVENT_TRANSPORT_RESET": int.from_bytes(protocol.TRANSPORT_RESET, "little"),
}
TABLES = [
    ("virtio_blk.h", "VIRTIO_BLK", BLOCK),
    ("virtio_gpu.h", "VIRTIO_GPU", GPU),
    ("virtio_input.h", "VIRTIO_INPUT", INPUT),
    ("virtio_vsock.h", "VIRTIO_VSOCK", VSOCK),
    ("virtio_vsock.h", "VIRTIO_VSOCK", VSOCK_DEVICE),
]


@pytest.mark.parametrize(
    ("header", "prefix", "table"), TABLES, ids=["block", "gpu", "input", "vsock", "our vsock"]
)
def test_numbers(header: str, prefix: str, table: dict[str, int]) -> None:
    assert table == {name: defined(header)[f"{prefix}_{name}"] for name in table}


def test_the_disk_s_config_space() -> None:
    """Field by field, with the place of each: those of the nested geometry too."""
    text = re.sub(r"/\*.*?\*/", "", (HEADERS / "virtio_blk.h").read_text(), flags=re.DOTALL)
    (body,) = [body for name, body in STRUCT.findall(text) if name == "virtio_blk_config"]
    fields = {}
    offset = 0
    for bits, name, count in FIELD.findall(body):
        fields[name] = offset
        offset += int(bits) // 8 * int(count or 1)
    at = 0
    for name, hint in BlockConfig.__annotations__.items():
        if not name.startswith("unused"):
            assert fields["wce" if name == "writeback" else name] == at, name
        at += struct.calcsize(f"<{hint.__metadata__[0]}")
    assert at == BlockConfig.SIZE == fields["write_zeroes_may_unmap"] + 4
    assert fields["wce"] == block.WRITEBACK
