"""How much one request may ask the host to discard, to zero or to erase: what is offered, and enforced.

Such a request names much with few bytes. What it may name is what the host does in a short time, so that a
guest keeps nobody waiting, nor has a request that outlives its patience.
"""

from typing import NamedTuple

from vhostd.storage.abilities import LARGEST_UNIT, Abilities

SEGMENTS = 16
DISCARDED = LARGEST_UNIT  # bytes in all segments together
LEAST_DISCARD = 1 << 20  # bytes: no less than any block size; the host divides what is too much for a device
ZEROES = 16 << 20  # bytes in a segment


class Bounds(NamedTuple):
    """At most so many segments, of at most `size` bytes each."""

    segments: int
    size: int


def discard_bounds(has: Abilities) -> Bounds:
    """Whole units of the host's, since it may ignore any part of one, and with it the end of each request."""
    unit = has.discard_granularity
    least = -(-LEAST_DISCARD // unit) * unit
    size = min(has.max_discard, DISCARDED // SEGMENTS)
    size = max(size - size % unit, least)
    return Bounds(min(SEGMENTS, DISCARDED // size), size)


def zero_bounds(has: Abilities) -> Bounds:
    """One segment where each byte of it has to be written."""
    return Bounds(SEGMENTS if has.zeroes_fast else 1, ZEROES)
