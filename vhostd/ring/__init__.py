"""Guest memory and virtqueues, compiled: the only place that touches guest memory.

Layer 3: no event loop, clock, socket or device is known here. `memory` maps and finds guest memory, `chain`
is one request in it, `gather` many ranges of it that a request named, and `transfer` the system calls of
both; `uring` is file I/O on chains while the program does something else. `split` is the device half of a
split virtqueue, `inflight` its memory of what is in flight, and `driver` the driver half, for the scriptable
front-end and tests. Nothing that a guest writes can crash this code or lead it out of guest memory: what
cannot be right is a GuestError, or MemoryLost when the memory itself is gone.
"""

from vhostd.ring.chain import Chain, Ready
from vhostd.ring.gather import Gather
from vhostd.ring.inflight import InflightQueue
from vhostd.ring.memory import MAX_REGIONS, GuestMemory, Region, Window
from vhostd.ring.shortcut import Shortcut
from vhostd.ring.split import SplitRing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vhostd.ring.driver import SplitDriver
    from vhostd.ring.uring import Uring

_SELDOM = {"SplitDriver": "driver", "Uring": "uring"}  # most programs need neither, nor the memory they take

__all__ = [
    "MAX_REGIONS",
    "Chain",
    "Gather",
    "GuestMemory",
    "InflightQueue",
    "Ready",
    "Region",
    "Shortcut",
    "SplitDriver",
    "SplitRing",
    "Uring",
    "Window",
]


def __getattr__(name: str) -> "Any":
    if name not in _SELDOM:
        raise AttributeError(f"module 'vhostd.ring' has no attribute {name!r}")
    value = getattr(__import__(f"vhostd.ring.{_SELDOM[name]}", fromlist=[name]), name)
    globals()[name] = value
    return value
