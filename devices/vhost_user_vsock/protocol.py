"""The virtio-vsock vocabulary: addresses, packets, and the feature bits (virtio 1.3, 5.10)."""

HOST_CID = 2
RESERVED_CIDS = (0, 1, HOST_CID, 0xFFFF_FFFF)  # 5.10.4


class VsockFeature:
    """Feature bits (5.10.3)."""

    STREAM = 0
    SEQPACKET = 1


class Kind:
    """Types of sockets (5.10.6.4)."""

    STREAM = 1
    SEQPACKET = 2


class Op:
    """Operations (5.10.6)."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Shutdown:
    """Flags of SHUTDOWN: what its sender does no more (5.10.6.5)."""

    RECEIVE = 1
    SEND = 2
    BOTH = RECEIVE | SEND


TRANSPORT_RESET = bytes(4)  # an event: all connections are gone (5.10.6.7)
