"""Where the guest of a case has its memory and its rings: always at the same addresses."""

from vhostd.ring import ring_format
from vhostd.virtio.vocabulary import Feature, mask

MEMORIES = ((0x1000_0000, 1 << 20), (0x2000_0000, 1 << 16), (0x2001_0000, 1 << 16))  # address and size
USER = 0x7F00_0000_0000  # what is added to a guest address to get the front-end's own
RING_ROOM = 0x4000  # bytes of the first memory for each ring
MOST_RINGS = 8
DATA = MEMORIES[0][0] + MOST_RINGS * RING_ROOM  # from here on the first memory is free for buffers
DATA_END = MEMORIES[0][0] + MEMORIES[0][1]


def ring_addr(index: int) -> int:
    """The guest address of a ring."""
    return MEMORIES[0][0] + index * RING_ROOM


def ring_areas(index: int, size: int, *, packed: bool) -> tuple[int, int, int]:
    """The guest addresses of a ring's areas: descriptors, the driver's, the device's."""
    desc, avail, _ = ring_format(mask(Feature.RING_PACKED) if packed else 0).footprint(size)
    at = ring_addr(index)
    return at, at + desc, (at + desc + avail + 3) // 4 * 4
