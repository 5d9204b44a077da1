"""The virtio vocabulary that all devices share: device types and feature bits.

Section numbers throughout the project are those of virtio 1.3.
"""

from collections.abc import Iterator
from typing import Self

from vhostd.wire.rows import Bit

MAX_QUEUE_SIZE = 32768  # in either format (2.7, 2.8.21)


class Id:
    """An id of the specification: as an attribute of DeviceType, it is that type.

    A member of an enumeration would cost a program's start twenty times as much.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __set_name__(self, owner: type["DeviceType"], name: str) -> None:
        self.name = name

    def __get__(self, instance: object, owner: type["DeviceType"]) -> "DeviceType":
        return owner(self.number, self.name)


class DeviceType(int):
    """A virtio device id (virtio 1.3, 5) with its name. A number that has no name there is its own name."""

    name: str

    NET = Id(1)
    BLOCK = Id(2)
    CONSOLE = Id(3)
    RNG = Id(4)
    BALLOON = Id(5)
    IOMEM = Id(6)
    RPMSG = Id(7)
    SCSI = Id(8)
    NINEP = Id(9)
    MAC80211_WLAN = Id(10)
    RPROC_SERIAL = Id(11)
    CAIF = Id(12)
    MEMORY_BALLOON = Id(13)
    GPU = Id(16)
    CLOCK = Id(17)
    INPUT = Id(18)
    VSOCK = Id(19)
    CRYPTO = Id(20)
    SIGNAL_DIST = Id(21)
    PSTORE = Id(22)
    IOMMU = Id(23)
    MEM = Id(24)
    SOUND = Id(25)
    FS = Id(26)
    PMEM = Id(27)
    RPMB = Id(28)
    MAC80211_HWSIM = Id(29)
    VIDEO_ENCODER = Id(30)
    VIDEO_DECODER = Id(31)
    SCMI = Id(32)
    NITRO_SEC_MOD = Id(33)
    I2C_ADAPTER = Id(34)
    WATCHDOG = Id(35)
    CAN = Id(36)
    PARAM_SERV = Id(38)
    AUDIO_POLICY = Id(39)
    BT = Id(40)
    GPIO = Id(41)
    RDMA = Id(42)
    CAMERA = Id(43)
    ISM = Id(44)
    SPI = Id(45)

    def __new__(cls, number: int, name: str = "") -> Self:
        if isinstance(number, cls) and not name:
            return number
        kind = super().__new__(cls, number)
        kind.name = name or next((known.name for known in cls.known() if known == number), str(number))
        return kind

    @classmethod
    def known(cls) -> Iterator["DeviceType"]:
        """Those of the specification."""
        return (each.__get__(None, cls) for each in vars(cls).values() if isinstance(each, Id))

    @classmethod
    def of(cls, description_type: str) -> "DeviceType":
        """The one of that name; ValueError if there is none, see `other`.

        `vhost-user.json` knows some of the names. libvirt refuses a description of any other type.
        """
        for kind in cls.known():
            if kind.description_type == description_type:
                return kind
        raise ValueError(
            f"virtio 1.3 has no device type {description_type!r}: "
            f"give its virtio device id, DeviceType.other({description_type!r}, ID)"
        )

    @classmethod
    def other(cls, description_type: str, number: int) -> Self:
        """A type that the specification lacks, with its virtio device id: an author's own, or a newer one."""
        return cls(number, description_type.upper().replace("-", "_"))

    @property
    def description_type(self) -> str:
        """The type as `vhost-user.json` spells it."""
        return "9p" if self.name == "NINEP" else self.name.lower().replace("_", "-")


class Feature:
    """Feature bits that belong to no device but to the transport and the rings (virtio 1.3, 6)."""

    LOG_ALL = Bit(26)  # vhost's own: log writes for migration
    INDIRECT_DESC = Bit(28)
    EVENT_IDX = Bit(29)
    PROTOCOL_FEATURES = Bit(30)  # vhost-user's own, see messages.py
    VERSION_1 = Bit(32)
    ACCESS_PLATFORM = Bit(33)
    RING_PACKED = Bit(34)
    IN_ORDER = Bit(35)
    RING_RESET = Bit(40)


class DeviceStatus:
    """Bits of the device status that the device itself looks at (2.1), as masks."""

    DRIVER_OK = 0x04
    DEVICE_NEEDS_RESET = 0x40


def mask(*bits: int) -> int:
    """A feature mask with these bits set."""
    return sum(1 << bit for bit in set(bits))
