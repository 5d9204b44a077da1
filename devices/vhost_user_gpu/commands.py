"""The virtio-gpu vocabulary: one table row per command, in the specification's order (virtio 1.3, 5.7.6).

A row says what comes after the header, and which feature the command needs. Commands of 3D contexts are
unknown here, as they are to every device without VIRGL.
"""

from enum import IntEnum
from typing import Annotated, Generic, TypeVar

from vhostd import Layout, array, u8, u32, u64

MAX_SCANOUTS = 16
EDID_ROOM = 1024  # bytes of an EDID in its response


class Feature(IntEnum):
    """The device's feature bits (5.7.3)."""

    VIRGL = 0
    EDID = 1
    RESOURCE_UUID = 2
    RESOURCE_BLOB = 3
    CONTEXT_INIT = 4


class Response(IntEnum):
    """What the device answers (5.7.6.7)."""

    OK_NODATA = 0x1100
    OK_DISPLAY_INFO = 0x1101
    OK_CAPSET_INFO = 0x1102
    OK_CAPSET = 0x1103
    OK_EDID = 0x1104
    OK_RESOURCE_UUID = 0x1105
    OK_MAP_INFO = 0x1106
    ERR_UNSPEC = 0x1200
    ERR_OUT_OF_MEMORY = 0x1201
    ERR_INVALID_SCANOUT_ID = 0x1202
    ERR_INVALID_RESOURCE_ID = 0x1203
    ERR_INVALID_CONTEXT_ID = 0x1204
    ERR_INVALID_PARAMETER = 0x1205

    @property
    def is_error(self) -> bool:
        """Whether the command was not executed."""
        return self >= Response.ERR_UNSPEC


class CommandError(Exception):
    """A command that cannot be executed, and the response that says so."""

    def __init__(self, response: Response, text: str) -> None:
        super().__init__(f"{response.name}: {text}")
        self.response = response


# --- Structs --------------------------------------------------------------------------------------------


class Header(Layout):
    """struct virtio_gpu_ctrl_hdr, in front of every command and every response."""

    FENCE = 1  # of `flags`: respond once the command is complete, and name the fence
    RING_IDX = 2

    type: u32
    flags: u32
    fence_id: u64
    ctx_id: u32
    ring_idx: u8
    padding: Annotated[bytes, array(3)] = b""


class Nothing(Layout):
    """A command that is its header."""


class Mode(Layout):
    """struct virtio_gpu_display_one: what a scan-out should show."""

    x: u32
    y: u32
    width: u32
    height: u32
    enabled: u32
    flags: u32 = 0


class GetEdid(Layout):
    """Whose EDID is asked for."""

    scanout: u32
    padding: u32


class EdidReply(Layout):
    """struct virtio_gpu_resp_edid behind its header."""

    size: u32
    padding: u32
    edid: Annotated[bytes, array(EDID_ROOM)]


class ResourceCreate2d(Layout):
    """A picture in the host's memory."""

    resource_id: u32
    format: u32
    width: u32
    height: u32


class ResourceId(Layout):
    """Just a resource: RESOURCE_UNREF, RESOURCE_DETACH_BACKING and RESOURCE_ASSIGN_UUID."""

    resource_id: u32
    padding: u32


class SetScanout(Layout):
    """The part of a resource that a scan-out shows; resource 0 for none."""

    x: u32
    y: u32
    width: u32
    height: u32
    scanout_id: u32
    resource_id: u32


class ResourceFlush(Layout):
    """The part of a resource that is to be shown as it is now."""

    x: u32
    y: u32
    width: u32
    height: u32
    resource_id: u32
    padding: u32


class TransferToHost2d(Layout):
    """The part of a resource that is to be taken from its backing, and where in there it begins."""

    x: u32
    y: u32
    width: u32
    height: u32
    offset: u64
    resource_id: u32
    padding: u32


class AttachBacking(Layout):
    """The resource that gets a backing; `nr_entries` times struct virtio_gpu_mem_entry follow."""

    resource_id: u32
    nr_entries: u32


class GetCapsetInfo(Layout):
    """Which capability set is asked for."""

    capset_index: u32
    padding: u32


class GetCapset(Layout):
    """Which capability set is asked for, in which version."""

    capset_id: u32
    capset_version: u32


class ResourceCreateBlob(Layout):
    """A resource that is memory and nothing else; `nr_entries` times struct virtio_gpu_mem_entry follow."""

    GUEST = 1  # of `blob_mem`; the others are memory of a 3D renderer

    resource_id: u32
    blob_mem: u32
    blob_flags: u32
    nr_entries: u32
    blob_id: u64
    size: u64


class SetScanoutBlob(Layout):
    """The part of a blob that a scan-out shows, and how the pixels lie in there; only plane 0 is used."""

    x: u32
    y: u32
    width: u32
    height: u32
    scanout_id: u32
    resource_id: u32
    fb_width: u32
    fb_height: u32
    format: u32
    padding: u32
    stride: u32
    more_strides: Annotated[bytes, array(12)]
    offset: u32
    more_offsets: Annotated[bytes, array(12)]


class UpdateCursor(Layout):
    """The cursor's position, and its shape for UPDATE_CURSOR: resource 0 for none."""

    scanout_id: u32
    x: u32
    y: u32
    position_padding: u32
    resource_id: u32
    hot_x: u32
    hot_y: u32
    padding: u32


# --- Rows -----------------------------------------------------------------------------------------------

P = TypeVar("P", bound=Layout)

COMMANDS: "dict[int, Command[Layout]]" = {}


class Command(Generic[P]):
    """One command: its number, the layout behind its header, and the feature without which it is unknown."""

    def __init__(self, name: str, number: int, payload: type[P], needs: Feature | None = None) -> None:
        COMMANDS[number] = self  # type: ignore[assignment]  # a row is only ever read
        self.name = name
        self.number = number
        self.payload = payload
        self.needs = needs

    def __str__(self) -> str:
        return self.name


GET_DISPLAY_INFO = Command("GET_DISPLAY_INFO", 0x0100, Nothing)
RESOURCE_CREATE_2D = Command("RESOURCE_CREATE_2D", 0x0101, ResourceCreate2d)
RESOURCE_UNREF = Command("RESOURCE_UNREF", 0x0102, ResourceId)
SET_SCANOUT = Command("SET_SCANOUT", 0x0103, SetScanout)
RESOURCE_FLUSH = Command("RESOURCE_FLUSH", 0x0104, ResourceFlush)
TRANSFER_TO_HOST_2D = Command("TRANSFER_TO_HOST_2D", 0x0105, TransferToHost2d)
RESOURCE_ATTACH_BACKING = Command("RESOURCE_ATTACH_BACKING", 0x0106, AttachBacking)
RESOURCE_DETACH_BACKING = Command("RESOURCE_DETACH_BACKING", 0x0107, ResourceId)
GET_CAPSET_INFO = Command("GET_CAPSET_INFO", 0x0108, GetCapsetInfo)
GET_CAPSET = Command("GET_CAPSET", 0x0109, GetCapset)
GET_EDID = Command("GET_EDID", 0x010A, GetEdid, Feature.EDID)
RESOURCE_ASSIGN_UUID = Command("RESOURCE_ASSIGN_UUID", 0x010B, ResourceId, Feature.RESOURCE_UUID)
RESOURCE_CREATE_BLOB = Command("RESOURCE_CREATE_BLOB", 0x010C, ResourceCreateBlob, Feature.RESOURCE_BLOB)
SET_SCANOUT_BLOB = Command("SET_SCANOUT_BLOB", 0x010D, SetScanoutBlob, Feature.RESOURCE_BLOB)
UPDATE_CURSOR = Command("UPDATE_CURSOR", 0x0300, UpdateCursor)
MOVE_CURSOR = Command("MOVE_CURSOR", 0x0301, UpdateCursor)
