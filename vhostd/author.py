"""The public names of vhostd, which the author of a device needs. `vhostd` itself has all of them.

    a device            Device, DeviceType, Handler, Virtqueue, Chain, Gather
    a program           Manifest; run, for a device in one file
    its options         positive, size, socket_mode, socket_group; SetupError, UsageError
    its sandbox         Grants, Ioctl, Folder, Removal; vhostd.host.destination
    its signals         Signals
    a wrong request     BadRequest
    messages            Row, Bit, Layout with its fields (u8 to u64, s32, array), U64, Empty; Call, answer,
                        answer_with_fds, Fds, Fd, Reply, RefusedRequest
    to its front-end    Link
    a saved state       Unpacker
    work beside         Threads, Reader, Budget, pause
    system calls        syscall, and numbers of those that Python does not have
    a process beside    vhostd.host.helper, vhostd.wire.packets; confine, for its own sandbox
    native code         Shortcut, Outcome; `vhostd/__init__.pxd` has more
    sockets of its own  listen, receive_at, connected_stream, Channel, Caller, Dialect, rows_of;
                        vhostd.host.accept

The docstring of each says how it is used.
"""

from vhostd.errors import BadRequest as BadRequest
from vhostd.errors import FrontendError as FrontendError
from vhostd.errors import GuestError as GuestError
from vhostd.errors import MemoryLost as MemoryLost
from vhostd.errors import RefusedRequest as RefusedRequest
from vhostd.errors import SetupError as SetupError
from vhostd.errors import UsageError as UsageError
from vhostd.host.budget import Budget as Budget
from vhostd.host.folder import Folder as Folder
from vhostd.host.grants import Grants as Grants
from vhostd.host.ioctls import Ioctl as Ioctl
from vhostd.host.pause import pause as pause
from vhostd.host.reader import Reader as Reader
from vhostd.host.removal import Removal as Removal
from vhostd.host.syscall import INOTIFY_ADD_WATCH as INOTIFY_ADD_WATCH
from vhostd.host.syscall import INOTIFY_INIT1 as INOTIFY_INIT1
from vhostd.host.syscall import syscall as syscall
from vhostd.host.threads import Threads as Threads
from vhostd.program.endpoint import listen as listen
from vhostd.program.endpoint import receive_at as receive_at
from vhostd.program.main import run as run
from vhostd.program.manifest import Manifest as Manifest
from vhostd.program.options import positive as positive
from vhostd.program.options import size as size
from vhostd.program.options import socket_group as socket_group
from vhostd.program.options import socket_mode as socket_mode
from vhostd.program.sandbox import confine as confine
from vhostd.ring import Chain as Chain
from vhostd.ring import Gather as Gather
from vhostd.ring import Outcome as Outcome
from vhostd.ring import Shortcut as Shortcut
from vhostd.virtio.device import Device as Device
from vhostd.virtio.device import Handler as Handler
from vhostd.virtio.device import Signals as Signals
from vhostd.virtio.link import Link as Link
from vhostd.virtio.virtqueue import Virtqueue as Virtqueue
from vhostd.virtio.vocabulary import DeviceType as DeviceType
from vhostd.wire.calls import Call as Call
from vhostd.wire.calls import Caller as Caller
from vhostd.wire.calls import Fds as Fds
from vhostd.wire.calls import Reply as Reply
from vhostd.wire.calls import answer as answer
from vhostd.wire.calls import answer_with_fds as answer_with_fds
from vhostd.wire.channel import Channel as Channel
from vhostd.wire.fds import Fd as Fd
from vhostd.wire.framing import Dialect as Dialect
from vhostd.wire.layout import Layout as Layout
from vhostd.wire.layout import array as array
from vhostd.wire.layout import s32 as s32
from vhostd.wire.layout import u8 as u8
from vhostd.wire.layout import u16 as u16
from vhostd.wire.layout import u32 as u32
from vhostd.wire.layout import u64 as u64
from vhostd.wire.rows import U64 as U64
from vhostd.wire.rows import Bit as Bit
from vhostd.wire.rows import Empty as Empty
from vhostd.wire.rows import Row as Row
from vhostd.wire.rows import rows_of as rows_of
from vhostd.wire.sockets import connected_stream as connected_stream
from vhostd.wire.unpacker import Unpacker as Unpacker
