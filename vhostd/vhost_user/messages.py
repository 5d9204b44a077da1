"""The vhost-user vocabulary: one table row per message, in the order of the specification.

Read it beside QEMU's docs/interop/vhost-user.rst. `wire/rows.py` explains the rows.
"""

import struct
from typing import Annotated, Self

from vhostd.wire.framing import Dialect
from vhostd.wire.layout import Layout, array, u8, u16, u32, u64
from vhostd.wire.rows import ONE_FD, U64, Bit, Empty, Row, rows_of


class ProtocolFeature:
    """Bits of GET/SET_PROTOCOL_FEATURES."""

    MQ = Bit(0)
    LOG_SHMFD = Bit(1)
    RARP = Bit(2)
    REPLY_ACK = Bit(3)
    MTU = Bit(4)
    BACKEND_REQ = Bit(5)
    CROSS_ENDIAN = Bit(6)
    CRYPTO_SESSION = Bit(7)
    PAGEFAULT = Bit(8)
    CONFIG = Bit(9)
    BACKEND_SEND_FD = Bit(10)
    HOST_NOTIFIER = Bit(11)
    INFLIGHT_SHMFD = Bit(12)
    RESET_DEVICE = Bit(13)
    INBAND_NOTIFICATIONS = Bit(14)
    CONFIGURE_MEM_SLOTS = Bit(15)
    STATUS = Bit(16)
    XEN_MMAP = Bit(17)
    SHARED_OBJECT = Bit(18)
    DEVICE_STATE = Bit(19)
    GET_VRING_BASE_INFLIGHT = Bit(20)
    GPA_ADDRESSES = Bit(21)
    SHMEM_MAP = Bit(22)


# --- Payloads -------------------------------------------------------------------------------------------


class VringState(Layout, byteorder="="):
    """A vring state description."""

    index: u32
    num: u32


class VringFd(Layout, byteorder="="):
    """The vring that an eventfd is for. Bit 8 says that there is no fd, and that the ring is polled."""

    value: u64

    @property
    def index(self) -> int:
        return self.value & 0xFF

    @property
    def has_fd(self) -> bool:
        return not self.value & 0x100


class VringAddr(Layout, byteorder="="):
    """A vring address description; `flags` bit 0 asks for logging at guest address `log`."""

    index: u32
    flags: u32
    desc: u64
    used: u64
    avail: u64
    log: u64


class MemoryRegion(Layout, byteorder="="):
    """A memory region description."""

    guest_addr: u64
    size: u64
    user_addr: u64
    mmap_offset: u64


class SingleRegion(Layout, byteorder="="):
    """A single memory region description: 8 bytes of padding, then the region.

    A front-end that acks where we see the memory, during postcopy, sends 8 zeros: a region of nothing.
    """

    padding: u64
    guest_addr: u64
    size: u64
    user_addr: u64
    mmap_offset: u64

    @classmethod
    def unpack(cls, data: bytes | bytearray | memoryview) -> Self:
        return super().unpack(bytes(cls.SIZE) if data == bytes(8) else data)


class MemoryTable:
    """Multiple memory regions: their number u32, padding u32, then 32 bytes each."""

    MAX_REGIONS = 32  # 8 in the specification; the Rust front-ends send up to 32
    _HEAD = struct.Struct("=II")

    def __init__(self, regions: tuple[MemoryRegion, ...]) -> None:
        self.regions = regions

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        count, _padding = cls._HEAD.unpack_from(data)
        body = data[cls._HEAD.size :][: count * MemoryRegion.SIZE]
        if count > cls.MAX_REGIONS or len(body) < count * MemoryRegion.SIZE:
            raise struct.error(f"{count} memory regions in {len(data)} bytes")
        chunks = (body[at : at + MemoryRegion.SIZE] for at in range(0, len(body), MemoryRegion.SIZE))
        return cls(tuple(MemoryRegion.unpack(chunk) for chunk in chunks))

    def pack(self) -> bytes:
        return self._HEAD.pack(len(self.regions), 0) + b"".join(region.pack() for region in self.regions)

    def __str__(self) -> str:
        return " ".join(f"[{region}]" for region in self.regions)


class ConfigSpace:
    """A part of the device's config space: offset u32, size u32, flags u32, then `size` bytes."""

    MAX_SIZE = 256  # of the config space, by the protocol
    _HEAD = struct.Struct("=III")

    def __init__(self, offset: int, data: bytes, flags: int = 0) -> None:
        self.offset = offset
        self.data = data
        self.flags = flags

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        offset, size, flags = cls._HEAD.unpack_from(data)
        region = data[cls._HEAD.size :][:size]
        if size > cls.MAX_SIZE or len(region) < size:
            raise struct.error(f"config space of {size} bytes in a payload of {len(data)}")
        return cls(offset, region, flags)

    def pack(self) -> bytes:
        return self._HEAD.pack(self.offset, len(self.data), self.flags) + self.data

    def __str__(self) -> str:
        return f"offset={self.offset} size={len(self.data)} flags={self.flags}"


class Log(Layout, byteorder="="):
    """The place of the dirty log in its file."""

    mmap_size: u64
    mmap_offset: u64


class Iotlb(Layout, byteorder="="):
    """An IOTLB message, with the trailing padding of the C struct."""

    iova: u64
    size: u64
    user_addr: u64
    permission: u8
    type: u8
    padding: Annotated[bytes, array(6)] = b""


class IotlbType:
    """What an IOTLB message is about."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


class VringArea(Layout, byteorder="="):
    """A vring area description. `value` has the bits of `VringFd`."""

    value: u64
    size: u64
    offset: u64


class Inflight(Layout, byteorder="="):
    """An inflight description, with the trailing padding of the C struct, which the specification omits."""

    mmap_size: u64
    mmap_offset: u64
    num_queues: u16
    queue_size: u16
    padding: Annotated[bytes, array(4)] = b""


class SharedObject(Layout, byteorder="="):
    """The UUID of an object that back-ends share."""

    uuid: Annotated[bytes, array(16)]


class StateTransfer(Layout, byteorder="="):
    """Device state transfer parameters."""

    SAVE, LOAD = 0, 1  # of `direction`
    STOPPED = 0  # of `phase`: the rings are

    direction: u32
    phase: u32


class SharedMapping(Layout, byteorder="="):
    """A mapping request into a virtio shared memory region."""

    shmid: u8
    padding: Annotated[bytes, array(7)]
    fd_offset: u64
    shm_offset: u64
    len: u64
    flags: u64


class SharedMemoryConfig(Layout, byteorder="="):
    """Sizes of the virtio shared memory regions: 256 times u64, indexed by shmid."""

    num_regions: u32
    padding: u32
    sizes: Annotated[bytes, array(256 * 8)]


class CryptoSession:
    """A crypto session description, 8 bytes or more. The crypto device defines its layout."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        if len(data) < 8:
            raise struct.error(f"crypto session in {len(data)} bytes")
        return cls(data)

    def pack(self) -> bytes:
        return self.data

    def __str__(self) -> str:
        return f"{len(self.data)} bytes"


# --- Rows -----------------------------------------------------------------------------------------------

F = ProtocolFeature

GET_FEATURES = Row(1, Empty, reply=U64)
SET_FEATURES = Row(2, U64)
SET_OWNER = Row(3, Empty)
RESET_OWNER = Row(4, Empty)
SET_MEM_TABLE = Row(5, MemoryTable, fds=range(MemoryTable.MAX_REGIONS + 1))
SET_LOG_BASE = Row(6, Log, reply=U64, fds=ONE_FD, needs=F.LOG_SHMFD)
SET_LOG_FD = Row(7, Empty, fds=ONE_FD)
SET_VRING_NUM = Row(8, VringState)
SET_VRING_ADDR = Row(9, VringAddr)
SET_VRING_BASE = Row(10, VringState)
GET_VRING_BASE = Row(11, VringState, reply=VringState)
SET_VRING_KICK = Row(12, VringFd, fds=range(2))
SET_VRING_CALL = Row(13, VringFd, fds=range(2))
SET_VRING_ERR = Row(14, VringFd, fds=range(2))
GET_PROTOCOL_FEATURES = Row(15, Empty, reply=U64)
SET_PROTOCOL_FEATURES = Row(16, U64)
GET_QUEUE_NUM = Row(17, Empty, reply=U64, needs=F.MQ)
SET_VRING_ENABLE = Row(18, VringState)
SEND_RARP = Row(19, U64, needs=F.RARP)
NET_SET_MTU = Row(20, U64, needs=F.MTU)
SET_BACKEND_REQ_FD = Row(21, Empty, fds=ONE_FD, needs=F.BACKEND_REQ)
IOTLB_MSG = Row(22, Iotlb, reply=U64, refusal=U64(1))
SET_VRING_ENDIAN = Row(23, VringState, needs=F.CROSS_ENDIAN)
GET_CONFIG = Row(24, ConfigSpace, reply=ConfigSpace, needs=F.CONFIG, refusal=Empty())
SET_CONFIG = Row(25, ConfigSpace, needs=F.CONFIG)
CREATE_CRYPTO_SESSION = Row(26, CryptoSession, reply=CryptoSession, needs=F.CRYPTO_SESSION)
CLOSE_CRYPTO_SESSION = Row(27, U64, needs=F.CRYPTO_SESSION)
POSTCOPY_ADVISE = Row(28, Empty, reply=Empty, needs=F.PAGEFAULT, reply_fds=ONE_FD)
POSTCOPY_LISTEN = Row(29, Empty, needs=F.PAGEFAULT)
POSTCOPY_END = Row(30, Empty, reply=U64, needs=F.PAGEFAULT)
GET_INFLIGHT_FD = Row(
    31,
    Inflight,
    reply=Inflight,
    needs=F.INFLIGHT_SHMFD,
    reply_fds=range(2),
    refusal=Inflight(0, 0, 0, 0),  # an area of no bytes, and no fd
    padding=4,
)
SET_INFLIGHT_FD = Row(32, Inflight, fds=ONE_FD, needs=F.INFLIGHT_SHMFD, padding=4)
GPU_SET_SOCKET = Row(33, Empty, fds=ONE_FD)
RESET_DEVICE = Row(34, Empty, needs=F.RESET_DEVICE)
VRING_KICK = Row(35, VringState, needs=F.INBAND_NOTIFICATIONS)
GET_MAX_MEM_SLOTS = Row(36, Empty, reply=U64, needs=F.CONFIGURE_MEM_SLOTS)
ADD_MEM_REG = Row(37, SingleRegion, fds=range(2), needs=F.CONFIGURE_MEM_SLOTS)
# Older front-ends send an fd with it. By the specification it is closed unused.
REM_MEM_REG = Row(38, SingleRegion, fds=range(2), needs=F.CONFIGURE_MEM_SLOTS)
SET_STATUS = Row(39, U64, needs=F.STATUS)
GET_STATUS = Row(40, Empty, reply=U64, needs=F.STATUS)
GET_SHARED_OBJECT = Row(41, SharedObject, reply=Empty, needs=F.SHARED_OBJECT, reply_fds=range(2))
SET_DEVICE_STATE_FD = Row(
    42,
    StateTransfer,
    reply=U64,
    fds=ONE_FD,
    needs=F.DEVICE_STATE,
    reply_fds=range(2),
    refusal=U64(0x101),  # an error, and no fd
)
CHECK_DEVICE_STATE = Row(43, Empty, reply=U64, needs=F.DEVICE_STATE, refusal=U64(1))
GET_SHMEM_CONFIG = Row(44, Empty, reply=SharedMemoryConfig, needs=F.SHMEM_MAP)

REQUESTS = rows_of(vars())
FRONT_END = Dialect(REQUESTS)

# The back-end's requests, on a socket of their own:

BACKEND_IOTLB_MSG = Row(1, Iotlb)
CONFIG_CHANGE_MSG = Row(2, Empty, needs=F.CONFIG)
VRING_HOST_NOTIFIER_MSG = Row(3, VringArea, fds=range(2), needs=F.HOST_NOTIFIER)
BACKEND_VRING_CALL = Row(4, VringState, needs=F.INBAND_NOTIFICATIONS)
BACKEND_VRING_ERR = Row(5, VringState, needs=F.INBAND_NOTIFICATIONS)
SHARED_OBJECT_ADD = Row(6, SharedObject, needs=F.SHARED_OBJECT)
SHARED_OBJECT_REMOVE = Row(7, SharedObject, needs=F.SHARED_OBJECT)
SHARED_OBJECT_LOOKUP = Row(8, SharedObject, reply=U64, needs=F.SHARED_OBJECT, reply_fds=range(2))
SHMEM_MAP = Row(9, SharedMapping, fds=ONE_FD, needs=F.SHMEM_MAP)
SHMEM_UNMAP = Row(10, SharedMapping, needs=F.SHMEM_MAP)

BACKEND_REQUESTS = rows_of(vars())
BACK_END = Dialect(BACKEND_REQUESTS)
