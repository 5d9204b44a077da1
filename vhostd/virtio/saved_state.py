"""A device's state on its way from one program to another, on any transport.

    magic    8 bytes   "vhostd" and the number of this header's format, 1
    type     u32       the virtio device type
    version  u32       of the format of what follows, as the device counts them, from 1 on
    size     u64       the bytes that follow: what `Device.save` gave

All numbers are little-endian. A newer program reads what an older one has written, and refuses what is newer
than itself. Nothing here can be relied on: the source may be in the hands of an attacker.
"""

from typing import Annotated

from vhostd.errors import RefusedRequest
from vhostd.virtio.device import Device
from vhostd.virtio.vocabulary import DeviceType
from vhostd.wire.layout import Layout, array, u32, u64

MAGIC = b"vhostd\0\1"


class Header(Layout):
    """What comes before the device's own bytes."""

    magic: Annotated[bytes, array(8)]
    type: u32
    version: u32
    size: u64


def save(device: Device) -> tuple[bytes, bytes]:
    """The state of a device whose rings are all stopped: the header, and what follows."""
    content = device.save()
    return Header(MAGIC, device.kind, device.state_version, len(content)).pack(), content


def check(header: Header, device: Device) -> None:
    """Raises RefusedRequest if a state with this header cannot be loaded into the device."""
    if header.magic != MAGIC:
        raise RefusedRequest(f"it begins with {header.magic!r}, not with {MAGIC!r}")
    if header.type != device.kind:
        raise RefusedRequest(
            f"it is of a device of type {DeviceType(header.type).name}, not {device.kind.name}"
        )
    if not 1 <= header.version <= device.state_version:
        known = f"this program knows 1 to {device.state_version}"
        raise RefusedRequest(f"it is of version {header.version}, and {known}")
    if header.size > device.state_limit:
        raise RefusedRequest(
            f"it has {header.size} bytes, and this device takes {device.state_limit} at most"
        )
