"""Guest memory and virtqueues, compiled: the only place that touches guest memory.

No event loop, clock, socket or device is known here. `memory` maps and finds guest memory, `iotlb`
translates what a driver behind an IOMMU names, and `arrivals` knows which pages a postcopy has brought.
`chain` is one request in guest memory, `gather` many ranges of it that a request named, and `system_calls`
move the bytes of both. `ring` is the device half of a virtqueue, `split` and `packed` are its formats, and
`inflight` its memory of what is in flight. `write_log` is told of all that is written, for a migration, and
`shortcut` serves chains before Python sees them. Nothing that a guest writes can crash this code or lead it
out of guest memory: what cannot be right is a GuestError, or MemoryLost when the memory itself is gone.

Two more are imported by their own names, because most programs need neither: `uring`, file I/O on chains
while the program does something else, and `driver`, the driver half of a virtqueue, for the scriptable
front-end and tests.
"""

from vhostd.ring.arrivals import Absent, Arrivals
from vhostd.ring.chain import Chain, Reserved
from vhostd.ring.gather import Gather
from vhostd.ring.inflight import InflightQueue
from vhostd.ring.iotlb import DeviceIotlb
from vhostd.ring.memory import MAX_REGIONS, GuestMemory, Region, Window
from vhostd.ring.packed import PackedRing
from vhostd.ring.ready import Ready
from vhostd.ring.ring import Ring
from vhostd.ring.shortcut import Outcome, Shortcut
from vhostd.ring.split import SplitRing
from vhostd.ring.write_log import DirtyLog, WriteLog

RING_PACKED = 34  # virtio 1.3, 6

__all__ = [
    "MAX_REGIONS",
    "Absent",
    "Arrivals",
    "Chain",
    "DeviceIotlb",
    "DirtyLog",
    "Gather",
    "GuestMemory",
    "InflightQueue",
    "Outcome",
    "Ready",
    "Region",
    "Reserved",
    "Ring",
    "Shortcut",
    "Window",
    "WriteLog",
    "ring_format",
]


def ring_format(features: int) -> type[Ring]:
    """The class of a ring's device half under the features that were negotiated."""
    return PackedRing if features >> RING_PACKED & 1 else SplitRing
