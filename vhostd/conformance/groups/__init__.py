"""All checks, in the order in which they are run: what a back-end needs first comes first."""

from vhostd.conformance.check import Group
from vhostd.conformance.groups.block import BLOCK
from vhostd.conformance.groups.config import CONFIG
from vhostd.conformance.groups.console import CONSOLE
from vhostd.conformance.groups.conventions import CONVENTIONS
from vhostd.conformance.groups.gpu import GPU
from vhostd.conformance.groups.hostile import HOSTILE
from vhostd.conformance.groups.input import INPUT
from vhostd.conformance.groups.memory import MEMORY
from vhostd.conformance.groups.messages import MESSAGES
from vhostd.conformance.groups.migration import MIGRATION
from vhostd.conformance.groups.negotiation import NEGOTIATION
from vhostd.conformance.groups.net import NET
from vhostd.conformance.groups.notification import NOTIFICATION
from vhostd.conformance.groups.packed import PACKED
from vhostd.conformance.groups.reconnect import RECONNECT
from vhostd.conformance.groups.reset import RESET
from vhostd.conformance.groups.ring_requests import RINGS
from vhostd.conformance.groups.rng import RNG
from vhostd.conformance.groups.robustness import ROBUSTNESS
from vhostd.conformance.groups.split import SPLIT
from vhostd.conformance.groups.vsock import VSOCK

GROUPS: tuple[Group, ...] = (
    CONVENTIONS,
    NEGOTIATION,
    MESSAGES,
    MEMORY,
    RINGS,
    SPLIT,
    PACKED,
    NOTIFICATION,
    CONFIG,
    RESET,
    RECONNECT,
    MIGRATION,
    ROBUSTNESS,
    HOSTILE,
    BLOCK,
    GPU,
    INPUT,
    RNG,
    NET,
    VSOCK,
    CONSOLE,
)
