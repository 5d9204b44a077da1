"""vhost-user back-ends: the names that the author of a device needs.

They are loaded when first used, because importing a device module is on the way to every
`--print-capabilities`.
"""

TYPE_CHECKING = False  # typing's own would cost more than all of vhostd
if TYPE_CHECKING:
    from typing import Any

    from vhostd.errors import (
        BadRequest,
        FrontendError,
        GuestError,
        MemoryLost,
        RefusedRequest,
        SetupError,
        UsageError,
    )
    from vhostd.host.budget import Budget
    from vhostd.host.folder import Folder
    from vhostd.host.grants import Grants
    from vhostd.host.ioctls import Ioctl
    from vhostd.host.pause import pause
    from vhostd.host.reader import Reader
    from vhostd.host.threads import Threads
    from vhostd.program.endpoint import listen
    from vhostd.program.main import run
    from vhostd.program.options import positive, size, socket_group, socket_mode
    from vhostd.ring import Chain, Gather, Outcome, Shortcut
    from vhostd.ring.uring import Uring
    from vhostd.virtio.device import Device, Handler, Signals
    from vhostd.virtio.link import Link
    from vhostd.virtio.virtqueue import Virtqueue
    from vhostd.virtio.vocabulary import DeviceType
    from vhostd.wire.calls import Call, Caller, Fds, Reply, answer, answer_with_fds
    from vhostd.wire.channel import Channel
    from vhostd.wire.fds import Fd
    from vhostd.wire.framing import Dialect
    from vhostd.wire.layout import Layout, array, s32, u8, u16, u32, u64
    from vhostd.wire.rows import U64, Empty, Row, rows_of
    from vhostd.wire.sockets import connected_stream

_HOMES = {
    "errors": (
        "BadRequest",
        "FrontendError",
        "GuestError",
        "MemoryLost",
        "RefusedRequest",
        "SetupError",
        "UsageError",
    ),
    "host.budget": ("Budget",),
    "host.folder": ("Folder",),
    "host.grants": ("Grants",),
    "host.ioctls": ("Ioctl",),
    "host.pause": ("pause",),
    "host.reader": ("Reader",),
    "host.threads": ("Threads",),
    "program.endpoint": ("listen",),
    "program.main": ("run",),
    "program.options": ("positive", "size", "socket_group", "socket_mode"),
    "ring": ("Chain", "Gather", "Outcome", "Shortcut"),
    "ring.uring": ("Uring",),
    "virtio.device": ("Device", "Handler", "Signals"),
    "virtio.link": ("Link",),
    "virtio.virtqueue": ("Virtqueue",),
    "virtio.vocabulary": ("DeviceType",),
    "wire.calls": ("Call", "Caller", "Fds", "Reply", "answer", "answer_with_fds"),
    "wire.channel": ("Channel",),
    "wire.fds": ("Fd",),
    "wire.framing": ("Dialect",),
    "wire.layout": ("Layout", "array", "s32", "u8", "u16", "u32", "u64"),
    "wire.rows": ("U64", "Empty", "Row", "rows_of"),
    "wire.sockets": ("connected_stream",),
}
_MODULE_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022 (by topic)
    "Device",
    "DeviceType",
    "Handler",
    "Signals",
    "Grants",
    "Ioctl",
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
    "Outcome",
    "Uring",
    "Budget",
    "Threads",
    "Reader",
    "pause",
    "listen",
    "Layout",
    "array",
    "s32",
    "u8",
    "u16",
    "u32",
    "u64",
    "Row",
    "rows_of",
    "Empty",
    "U64",
    "Call",
    "Fds",
    "Reply",
    "answer",
    "answer_with_fds",
    "Link",
    "Dialect",
    "Channel",
    "Caller",
    "connected_stream",
    "BadRequest",
    "FrontendError",
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
