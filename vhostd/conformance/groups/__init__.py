"""All checks, in the order in which they are run: what a back-end needs first comes first."""

from vhostd.conformance.check import Group
from vhostd.conformance.groups.block import BLOCK
from vhostd.conformance.groups.config import CONFIG
from vhostd.conformance.groups.gpu import GPU
from vhostd.conformance.groups.input import INPUT
from vhostd.conformance.groups.messages import MESSAGES
from vhostd.conformance.groups.negotiation import NEGOTIATION
from vhostd.conformance.groups.reconnect import RECONNECT
from vhostd.conformance.groups.reset import RESET
from vhostd.conformance.groups.rng import RNG

GROUPS: tuple[Group, ...] = (NEGOTIATION, MESSAGES, CONFIG, RESET, RECONNECT, BLOCK, GPU, INPUT, RNG)
