"""Disks on the host, whatever device a guest sees them by: the public names.

image, abilities, formats, locking   a file, a block device or memory, and what its host can do
engine                               ways to have the host work without keeping others waiting
clearing, bounds                     discards, zeroes and erasures, and how much of them at a time
bounce, shares, throttle             what suits neither guest nor host; whose turn it is; limits
size_watch                           an image that grows or shrinks while it is in use
"""

from vhostd.storage.abilities import Abilities
from vhostd.storage.bounds import Bounds, discard_bounds, zero_bounds
from vhostd.storage.disk import Disk
from vhostd.storage.engine import STEP, Engine, Result, SyncEngine, Then, make_engine
from vhostd.storage.image import PAGE, Image
from vhostd.storage.size_watch import SizeWatch
from vhostd.storage.throttle import Throttle

__all__ = [
    "PAGE",
    "STEP",
    "Abilities",
    "Bounds",
    "Disk",
    "Engine",
    "Image",
    "Result",
    "SizeWatch",
    "SyncEngine",
    "Then",
    "Throttle",
    "discard_bounds",
    "make_engine",
    "zero_bounds",
]
