"""The virtio-gpu vocabulary: one table row per command, in the specification's order (virtio 1.3, 5.7.6).

A row says which payload follows the header, and which feature the command needs. Commands of 3D contexts
need VIRGL, which is offered with a renderer only.
"""

from enum import IntEnum
from typing import Annotated

from vhostd import Bit, Empty, Layout, Row, array, rows_of, u8, u32, u64

MAX_SCANOUTS = 16
EDID_ROOM = 1024  # bytes of an EDID in its response


class GpuFeature:
    """The device's feature bits (5.7.3)."""

    VIRGL = Bit(0)
    EDID = Bit(1)
    RESOURCE_UUID = Bit(2)
    RESOURCE_BLOB = Bit(3)
    CONTEXT_INIT = Bit(4)


class Response(IntEnum):
    """The responses of the device (5.7.6.7)."""

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
    """A command that cannot be executed, with the response for it."""

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


class Mode(Layout):
    """struct virtio_gpu_display_one: what a scan-out should show."""

    x: u32
    y: u32
    width: u32
    height: u32
    enabled: u32
    flags: u32 = 0


class GetEdid(Layout):
    """struct virtio_gpu_get_edid: the scan-out whose EDID the driver asks for."""

    scanout: u32
    padding: u32


class EdidReply(Layout):
    """struct virtio_gpu_resp_edid without its header."""

    size: u32
    padding: u32
    edid: Annotated[bytes, array(EDID_ROOM)]


class ResourceCreate2d(Layout):
    """A new picture in the host's memory."""

    resource_id: u32
    format: u32
    width: u32
    height: u32


class ResourceId(Layout):
    """A resource, for RESOURCE_UNREF, RESOURCE_DETACH_BACKING and RESOURCE_ASSIGN_UUID."""

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
    """The part of a resource that has changed and must be shown anew."""

    x: u32
    y: u32
    width: u32
    height: u32
    resource_id: u32
    padding: u32


class TransferToHost2d(Layout):
    """The part of a resource to fill from its backing, and the offset in the backing where it begins."""

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
    """A new resource that is guest memory; `nr_entries` times struct virtio_gpu_mem_entry follow."""

    GUEST = 1  # of `blob_mem`; the other values are for a 3D renderer

    resource_id: u32
    blob_mem: u32
    blob_flags: u32
    nr_entries: u32
    blob_id: u64
    size: u64


class SetScanoutBlob(Layout):
    """The part of a blob that a scan-out shows, and the layout of its pixels. Only plane 0 is used."""

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


class CtxCreate(Layout):
    """A new 3D context; with CONTEXT_INIT the low byte of `context_init` is its capability set."""

    nlen: u32
    context_init: u32
    debug_name: Annotated[bytes, array(64)]


class CtxResource(Layout):
    """struct virtio_gpu_ctx_resource: a resource that the header's context may use, or no longer."""

    resource_id: u32
    padding: u32


class ResourceCreate3d(Layout):
    """A new resource of the renderer."""

    resource_id: u32
    target: u32
    format: u32
    bind: u32
    width: u32
    height: u32
    depth: u32
    array_size: u32
    last_level: u32
    nr_samples: u32
    flags: u32
    padding: u32


class TransferHost3d(Layout):
    """A box of a resource, and the offset in the backing where it begins."""

    x: u32
    y: u32
    z: u32
    width: u32
    height: u32
    depth: u32
    offset: u64
    resource_id: u32
    level: u32
    stride: u32
    layer_stride: u32


class Submit3d(Layout):
    """struct virtio_gpu_cmd_submit: so many bytes of commands for the header's context follow."""

    size: u32
    padding: u32


class UpdateCursor(Layout):
    """The cursor's position, and for UPDATE_CURSOR the resource with its shape; resource 0 hides it."""

    scanout_id: u32
    x: u32
    y: u32
    position_padding: u32
    resource_id: u32
    hot_x: u32
    hot_y: u32
    padding: u32


# --- Rows -----------------------------------------------------------------------------------------------

GET_DISPLAY_INFO = Row(0x0100, Empty)
RESOURCE_CREATE_2D = Row(0x0101, ResourceCreate2d)
RESOURCE_UNREF = Row(0x0102, ResourceId)
SET_SCANOUT = Row(0x0103, SetScanout)
RESOURCE_FLUSH = Row(0x0104, ResourceFlush)
TRANSFER_TO_HOST_2D = Row(0x0105, TransferToHost2d)
RESOURCE_ATTACH_BACKING = Row(0x0106, AttachBacking)
RESOURCE_DETACH_BACKING = Row(0x0107, ResourceId)
GET_CAPSET_INFO = Row(0x0108, GetCapsetInfo)
GET_CAPSET = Row(0x0109, GetCapset)
GET_EDID = Row(0x010A, GetEdid, needs=GpuFeature.EDID)
RESOURCE_ASSIGN_UUID = Row(0x010B, ResourceId, needs=GpuFeature.RESOURCE_UUID)
RESOURCE_CREATE_BLOB = Row(0x010C, ResourceCreateBlob, needs=GpuFeature.RESOURCE_BLOB)
SET_SCANOUT_BLOB = Row(0x010D, SetScanoutBlob, needs=GpuFeature.RESOURCE_BLOB)
CTX_CREATE = Row(0x0200, CtxCreate, needs=GpuFeature.VIRGL)
CTX_DESTROY = Row(0x0201, Empty, needs=GpuFeature.VIRGL)
CTX_ATTACH_RESOURCE = Row(0x0202, CtxResource, needs=GpuFeature.VIRGL)
CTX_DETACH_RESOURCE = Row(0x0203, CtxResource, needs=GpuFeature.VIRGL)
RESOURCE_CREATE_3D = Row(0x0204, ResourceCreate3d, needs=GpuFeature.VIRGL)
TRANSFER_TO_HOST_3D = Row(0x0205, TransferHost3d, needs=GpuFeature.VIRGL)
TRANSFER_FROM_HOST_3D = Row(0x0206, TransferHost3d, needs=GpuFeature.VIRGL)
SUBMIT_3D = Row(0x0207, Submit3d, needs=GpuFeature.VIRGL)
UPDATE_CURSOR = Row(0x0300, UpdateCursor)
MOVE_CURSOR = Row(0x0301, UpdateCursor)

COMMANDS = rows_of(vars())
