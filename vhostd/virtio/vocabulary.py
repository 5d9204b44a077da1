"""The virtio vocabulary that all devices share: device types and feature bits.

Section numbers throughout the project are those of virtio 1.3.
"""

from enum import IntEnum
from typing import Self

MAX_QUEUE_SIZE = 32768  # of a split virtqueue (2.7)


class DeviceType(IntEnum):
    """Virtio device ids (virtio 1.3, 5); a name in lower case is the type in a backend description."""

    NET = 1
    BLOCK = 2
    CONSOLE = 3
    RNG = 4
    BALLOON = 5
    IOMEM = 6
    RPMSG = 7
    SCSI = 8
    NINEP = 9
    MAC80211_WLAN = 10
    RPROC_SERIAL = 11
    CAIF = 12
    MEMORY_BALLOON = 13
    GPU = 16
    CLOCK = 17
    INPUT = 18
    VSOCK = 19
    CRYPTO = 20
    SIGNAL_DIST = 21
    PSTORE = 22
    IOMMU = 23
    MEM = 24
    SOUND = 25
    FS = 26
    PMEM = 27
    RPMB = 28
    MAC80211_HWSIM = 29
    VIDEO_ENCODER = 30
    VIDEO_DECODER = 31
    SCMI = 32
    NITRO_SEC_MOD = 33
    I2C_ADAPTER = 34
    WATCHDOG = 35
    CAN = 36
    PARAM_SERV = 38
    AUDIO_POLICY = 39
    BT = 40
    GPIO = 41
    RDMA = 42
    CAMERA = 43
    ISM = 44
    SPI = 45

    @classmethod
    def of(cls, description_type: str) -> Self:
        """The one of that name; ValueError if there is none, see `other`.

        `vhost-user.json` knows some of the names. libvirt refuses a description of any other type.
        """
        for kind in cls:
            if kind.description_type == description_type:
                return kind
        raise ValueError(
            f"virtio 1.3 has no device type {description_type!r}: "
            f"give its virtio device id, DeviceType.other({description_type!r}, ID)"
        )

    @classmethod
    def other(cls, description_type: str, number: int) -> Self:
        """A type that the specification lacks, with its virtio device id: an author's own, or a newer one."""
        kind = int.__new__(cls, number)
        kind._name_, kind._value_ = description_type.upper().replace("-", "_"), number
        return kind

    @classmethod
    def _missing_(cls, value: object) -> Self | None:
        """A number that no type here has is its own name."""
        return cls.other(str(value), value) if isinstance(value, int) else None

    @property
    def description_type(self) -> str:
        """The type as `vhost-user.json` spells it."""
        return "9p" if self is DeviceType.NINEP else self.name.lower().replace("_", "-")


class Feature(IntEnum):
    """Feature bits that belong to no device but to the transport and the rings (virtio 1.3, 6)."""

    LOG_ALL = 26  # vhost's own: log writes for migration
    INDIRECT_DESC = 28
    EVENT_IDX = 29
    PROTOCOL_FEATURES = 30  # vhost-user's own, see messages.py
    VERSION_1 = 32
    RING_RESET = 40


def mask(*bits: int) -> int:
    """A feature mask with these bits set."""
    return sum(1 << bit for bit in set(bits))
