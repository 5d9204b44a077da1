"""Names of the feature bits of devices, by the names of their types (virtio 1.3, 5)."""

from collections.abc import Mapping

from vhostd.virtio.vocabulary import Feature
from vhostd.wire.rows import Bit

DEVICES: Mapping[str, Mapping[int, str]] = {
    "net": {
        **{0: "CSUM", 1: "GUEST_CSUM", 2: "CTRL_GUEST_OFFLOADS", 3: "MTU", 5: "MAC", 7: "GUEST_TSO4"},
        **{8: "GUEST_TSO6", 9: "GUEST_ECN", 10: "GUEST_UFO", 11: "HOST_TSO4", 12: "HOST_TSO6"},
        **{13: "HOST_ECN", 14: "HOST_UFO", 15: "MRG_RXBUF", 16: "STATUS", 17: "CTRL_VQ", 18: "CTRL_RX"},
        **{19: "CTRL_VLAN", 20: "CTRL_RX_EXTRA", 21: "GUEST_ANNOUNCE", 22: "MQ", 23: "CTRL_MAC_ADDR"},
        **{50: "DEVICE_STATS", 51: "HASH_TUNNEL", 52: "VQ_NOTF_COAL", 53: "NOTF_COAL", 54: "GUEST_USO4"},
        **{
            55: "GUEST_USO6",
            56: "HOST_USO",
            57: "HASH_REPORT",
            59: "GUEST_HDRLEN",
            60: "RSS",
            61: "RSC_EXT",
            62: "STANDBY",
        },
        63: "SPEED_DUPLEX",
    },
    "block": {
        **{0: "BARRIER", 1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 7: "SCSI"},
        **{9: "FLUSH", 10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ", 13: "DISCARD", 14: "WRITE_ZEROES"},
        **{15: "LIFETIME", 16: "SECURE_ERASE", 17: "ZONED"},
    },
    "console": {0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"},
    "scsi": {0: "INOUT", 1: "HOTPLUG", 2: "CHANGE", 3: "T10_PI"},
    "gpu": {0: "VIRGL", 1: "EDID", 2: "RESOURCE_UUID", 3: "RESOURCE_BLOB", 4: "CONTEXT_INIT"},
    "vsock": {0: "STREAM", 1: "SEQPACKET", 2: "NO_IMPLIED_STREAM"},
    "crypto": {
        **{0: "REVISION_1", 1: "CIPHER_STATELESS_MODE", 2: "HASH_STATELESS_MODE", 3: "MAC_STATELESS_MODE"},
        4: "AEAD_STATELESS_MODE",
    },
    "sound": {0: "CTLS"},
    "fs": {0: "NOTIFICATION"},
    "gpio": {0: "IRQ"},
    "i2c-adapter": {0: "ZERO_LENGTH_REQUEST"},
    "scmi": {0: "P2A_CHANNELS", 1: "SHARED_MEMORY"},
    # These have none of their own.
    "input": {},
    "rng": {},
}
OTHERS = {24: "NOTIFY_ON_EMPTY", 27: "ANY_LAYOUT", 36: "ORDER_PLATFORM", 37: "SR_IOV"}
OTHERS |= {38: "NOTIFICATION_DATA", 39: "NOTIF_CONFIG_DATA", 41: "ADMIN_VQ"}
STATUS = {0: "ACKNOWLEDGE", 1: "DRIVER", 2: "DRIVER_OK", 3: "FEATURES_OK", 6: "NEEDS_RESET", 7: "FAILED"}


def names_of(vocabulary: type[object]) -> dict[int, str]:
    """The names of the bits of a class such as `ProtocolFeature`."""
    return {int(bit): bit.name for bit in vars(vocabulary).values() if isinstance(bit, Bit)}


def device_features(device: str | None) -> dict[int, str]:
    """The names of all feature bits of a device of this type; of an unknown one, those of every device."""
    return {**OTHERS, **names_of(Feature), **DEVICES.get(device or "", {})}


def bits(mask: int, names: Mapping[int, str]) -> list[str]:
    """The names of the bits that are set, or their numbers."""
    return [names.get(bit, f"bit{bit}") for bit in range(mask.bit_length()) if mask >> bit & 1]
