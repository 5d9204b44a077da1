"""Guest memory and virtqueues, compiled: the only place that touches guest memory.

Layer 3: no event loop, clock, socket or device is known here. `memory` maps and finds guest memory, `chain`
is one request in it, `gather` many ranges of it that a request named, and `transfer` the system calls of
both. `split` is the device half of a split virtqueue, `inflight` its memory of what is in flight, and
`shortcut` what serves chains before Python sees them. Nothing that a guest writes can crash this code or lead
it out of guest memory: what cannot be right is a GuestError, or MemoryLost when the memory itself is gone.

Two more are imported by their own names, because most programs need neither: `uring`, file I/O on chains
while the program does something else, and `driver`, the driver half of a virtqueue, for the scriptable
front-end and tests.
"""

from vhostd.ring.chain import Chain, Ready
from vhostd.ring.gather import Gather
from vhostd.ring.inflight import InflightQueue
from vhostd.ring.memory import MAX_REGIONS, GuestMemory, Region, Window
from vhostd.ring.shortcut import Shortcut
from vhostd.ring.split import SplitRing

__all__ = [
    "MAX_REGIONS",
    "Chain",
    "Gather",
    "GuestMemory",
    "InflightQueue",
    "Ready",
    "Region",
    "Shortcut",
    "SplitRing",
    "Window",
]
