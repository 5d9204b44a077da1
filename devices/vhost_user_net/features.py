"""Feature bits of a network card (virtio 1.3, 5.1.3), and its offloads."""

from enum import IntEnum

VERSION_1 = 1 << 32  # of the core; the header's length depends on it


class Feature(IntEnum):
    """A bit's number."""

    CSUM = 0
    GUEST_CSUM = 1
    MTU = 3
    MAC = 5
    GUEST_TSO4 = 7
    GUEST_TSO6 = 8
    GUEST_ECN = 9
    HOST_TSO4 = 11
    HOST_TSO6 = 12
    HOST_ECN = 13
    MRG_RXBUF = 15
    STATUS = 16
    MQ = 22
    GUEST_USO4 = 54
    GUEST_USO6 = 55
    HOST_USO = 56


def mask(*features: Feature) -> int:
    """The features as a mask."""
    return sum(1 << feature for feature in features)


CHECKSUMS = mask(Feature.CSUM, Feature.GUEST_CSUM)
TCP = mask(
    *(Feature.GUEST_TSO4, Feature.GUEST_TSO6, Feature.GUEST_ECN),
    *(Feature.HOST_TSO4, Feature.HOST_TSO6, Feature.HOST_ECN),
)
UDP = mask(Feature.GUEST_USO4, Feature.GUEST_USO6, Feature.HOST_USO)
# Of a stream, whose frames are cut, merged and checked here; the driver must not expect GUEST_ECN of that.
STREAM = CHECKSUMS | TCP & ~mask(Feature.GUEST_ECN)
