"""vhost-user back-ends: the names that the author of a device needs.

They are loaded when first used, because importing a device module is on the way to every
`--print-capabilities`.
"""

TYPE_CHECKING = False  # typing's own would cost more than all of vhostd
if TYPE_CHECKING:
    from typing import Any

    from vhostd.budget import Budget
    from vhostd.device import Device, Handler
    from vhostd.endpoint import listen
    from vhostd.errors import (
        BadRequest,
        GuestError,
        MemoryLost,
        RefusedRequest,
        SetupError,
        UsageError,
    )
    from vhostd.fds import Fd
    from vhostd.folder import Folder
    from vhostd.grants import Grants
    from vhostd.layout import Layout, array, s32, u8, u16, u32, u64
    from vhostd.options import positive, size, socket_group, socket_mode
    from vhostd.program import run
    from vhostd.reader import Reader
    from vhostd.ring import Chain, Gather, Shortcut
    from vhostd.ring.uring import Uring
    from vhostd.threads import Threads
    from vhostd.virtio import DeviceType
    from vhostd.virtqueue import Virtqueue

_HOMES = {
    "budget": ("Budget",),
    "device": ("Device", "Handler"),
    "endpoint": ("listen",),
    "errors": ("BadRequest", "GuestError", "MemoryLost", "RefusedRequest", "SetupError", "UsageError"),
    "fds": ("Fd",),
    "folder": ("Folder",),
    "grants": ("Grants",),
    "layout": ("Layout", "array", "s32", "u8", "u16", "u32", "u64"),
    "options": ("positive", "size", "socket_group", "socket_mode"),
    "program": ("run",),
    "reader": ("Reader",),
    "ring": ("Chain", "Gather", "Shortcut"),
    "ring.uring": ("Uring",),
    "threads": ("Threads",),
    "virtio": ("DeviceType",),
    "virtqueue": ("Virtqueue",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 (by topic)
    "Device",
    "DeviceType",
    "Handler",
    "Grants",
    "run",
    "positive",
    "size",
    "socket_group",
    "socket_mode",
    "Virtqueue",
    "Chain",
    "Fd",
    "Folder",
    "Gather",
    "Shortcut",
    "Uring",
    "Budget",
    "Threads",
    "Reader",
    "listen",
    "Layout",
    "array",
    "s32",
    "u8",
    "u16",
    "u32",
    "u64",
    "BadRequest",
    "GuestError",
    "MemoryLost",
    "RefusedRequest",
    "SetupError",
    "UsageError",
]


def __getattr__(name: str) -> "Any":
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'vhostd' has no attribute {name!r}")
    module = __import__(f"vhostd.{_MODULE_OF[name]}", fromlist=[name])
    value = globals()[name] = getattr(module, name)
    return value
