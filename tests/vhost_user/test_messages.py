"""The message table against a list transcribed from the specification, independently of it."""

import struct
from typing import Any, NamedTuple

import pytest

from tests.numbers import numbers
from vhostd.vhost_user.messages import (
    BACKEND_REQUESTS,
    CHECK_DEVICE_STATE,
    GET_CONFIG,
    GET_INFLIGHT_FD,
    IOTLB_MSG,
    REQUESTS,
    SET_DEVICE_STATE_FD,
    ConfigSpace,
    CryptoSession,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    VringFd,
)
from vhostd.wire.rows import Empty, Row

# vhost-user, "Protocol features"; 20 to 22 as QEMU 11.1 has them.
PROTOCOL_FEATURES = {
    "MQ": 0,
    "LOG_SHMFD": 1,
    "RARP": 2,
    "REPLY_ACK": 3,
    "MTU": 4,
    "BACKEND_REQ": 5,
    "CROSS_ENDIAN": 6,
    "CRYPTO_SESSION": 7,
    "PAGEFAULT": 8,
    "CONFIG": 9,
    "BACKEND_SEND_FD": 10,
    "HOST_NOTIFIER": 11,
    "INFLIGHT_SHMFD": 12,
    "RESET_DEVICE": 13,
    "INBAND_NOTIFICATIONS": 14,
    "CONFIGURE_MEM_SLOTS": 15,
    "STATUS": 16,
    "XEN_MMAP": 17,
    "SHARED_OBJECT": 18,
    "DEVICE_STATE": 19,
    "GET_VRING_BASE_INFLIGHT": 20,
    "GPA_ADDRESSES": 21,
    "SHMEM_MAP": 22,
}

VARIES = -1  # the size depends on a number in the payload; tested one by one below


class Entry(NamedTuple):
    """What the specification says of a message: sizes in bytes, None for no reply of its own."""

    number: int
    name: str
    size: int
    fds: set[int]
    reply: int | None
    feature: str | None


NONE, ONE, MAYBE = {0}, {1}, {0, 1}

# vhost-user, "Front-end message types", in the order of the numbers.
FRONT_END = [
    Entry(1, "GET_FEATURES", 0, NONE, 8, None),
    Entry(2, "SET_FEATURES", 8, NONE, None, None),
    Entry(3, "SET_OWNER", 0, NONE, None, None),
    Entry(4, "RESET_OWNER", 0, NONE, None, None),
    Entry(5, "SET_MEM_TABLE", VARIES, set(range(33)), None, None),
    Entry(6, "SET_LOG_BASE", 16, ONE, 8, "LOG_SHMFD"),
    Entry(7, "SET_LOG_FD", 0, ONE, None, None),
    Entry(8, "SET_VRING_NUM", 8, NONE, None, None),
    Entry(9, "SET_VRING_ADDR", 40, NONE, None, None),
    Entry(10, "SET_VRING_BASE", 8, NONE, None, None),
    Entry(11, "GET_VRING_BASE", 8, NONE, 8, None),
    Entry(12, "SET_VRING_KICK", 8, MAYBE, None, None),
    Entry(13, "SET_VRING_CALL", 8, MAYBE, None, None),
    Entry(14, "SET_VRING_ERR", 8, MAYBE, None, None),
    Entry(15, "GET_PROTOCOL_FEATURES", 0, NONE, 8, None),
    Entry(16, "SET_PROTOCOL_FEATURES", 8, NONE, None, None),
    Entry(17, "GET_QUEUE_NUM", 0, NONE, 8, "MQ"),
    Entry(18, "SET_VRING_ENABLE", 8, NONE, None, None),
    Entry(19, "SEND_RARP", 8, NONE, None, "RARP"),
    Entry(20, "NET_SET_MTU", 8, NONE, None, "MTU"),
    Entry(21, "SET_BACKEND_REQ_FD", 0, ONE, None, "BACKEND_REQ"),
    Entry(22, "IOTLB_MSG", 32, NONE, 8, None),
    Entry(23, "SET_VRING_ENDIAN", 8, NONE, None, "CROSS_ENDIAN"),
    Entry(24, "GET_CONFIG", VARIES, NONE, VARIES, "CONFIG"),
    Entry(25, "SET_CONFIG", VARIES, NONE, None, "CONFIG"),
    Entry(26, "CREATE_CRYPTO_SESSION", VARIES, NONE, VARIES, "CRYPTO_SESSION"),
    Entry(27, "CLOSE_CRYPTO_SESSION", 8, NONE, None, "CRYPTO_SESSION"),
    Entry(28, "POSTCOPY_ADVISE", 0, NONE, 0, "PAGEFAULT"),
    Entry(29, "POSTCOPY_LISTEN", 0, NONE, None, "PAGEFAULT"),
    Entry(30, "POSTCOPY_END", 0, NONE, 8, "PAGEFAULT"),
    Entry(31, "GET_INFLIGHT_FD", 24, NONE, 24, "INFLIGHT_SHMFD"),
    Entry(32, "SET_INFLIGHT_FD", 24, ONE, None, "INFLIGHT_SHMFD"),
    Entry(33, "GPU_SET_SOCKET", 0, ONE, None, None),
    Entry(34, "RESET_DEVICE", 0, NONE, None, "RESET_DEVICE"),
    Entry(35, "VRING_KICK", 8, NONE, None, "INBAND_NOTIFICATIONS"),
    Entry(36, "GET_MAX_MEM_SLOTS", 0, NONE, 8, "CONFIGURE_MEM_SLOTS"),
    Entry(37, "ADD_MEM_REG", 40, MAYBE, None, "CONFIGURE_MEM_SLOTS"),
    Entry(38, "REM_MEM_REG", 40, MAYBE, None, "CONFIGURE_MEM_SLOTS"),
    Entry(39, "SET_STATUS", 8, NONE, None, "STATUS"),
    Entry(40, "GET_STATUS", 0, NONE, 8, "STATUS"),
    Entry(41, "GET_SHARED_OBJECT", 16, NONE, 0, "SHARED_OBJECT"),
    Entry(42, "SET_DEVICE_STATE_FD", 8, ONE, 8, "DEVICE_STATE"),
    Entry(43, "CHECK_DEVICE_STATE", 0, NONE, 8, "DEVICE_STATE"),
    Entry(44, "GET_SHMEM_CONFIG", 0, NONE, 2056, "SHMEM_MAP"),
]

# vhost-user, "Back-end message types".
BACK_END = [
    Entry(1, "BACKEND_IOTLB_MSG", 32, NONE, None, None),
    Entry(2, "CONFIG_CHANGE_MSG", 0, NONE, None, "CONFIG"),
    Entry(3, "VRING_HOST_NOTIFIER_MSG", 24, MAYBE, None, "HOST_NOTIFIER"),
    Entry(4, "BACKEND_VRING_CALL", 8, NONE, None, "INBAND_NOTIFICATIONS"),
    Entry(5, "BACKEND_VRING_ERR", 8, NONE, None, "INBAND_NOTIFICATIONS"),
    Entry(6, "SHARED_OBJECT_ADD", 16, NONE, None, "SHARED_OBJECT"),
    Entry(7, "SHARED_OBJECT_REMOVE", 16, NONE, None, "SHARED_OBJECT"),
    Entry(8, "SHARED_OBJECT_LOOKUP", 16, NONE, 8, "SHARED_OBJECT"),
    Entry(9, "SHMEM_MAP", 40, ONE, None, "SHMEM_MAP"),
    Entry(10, "SHMEM_UNMAP", 40, NONE, None, "SHMEM_MAP"),
]

# Replies that bring an fd: always, or if the request succeeded.
REPLY_FDS = {"POSTCOPY_ADVISE": ONE, "GET_INFLIGHT_FD": MAYBE, "GET_SHARED_OBJECT": MAYBE}
REPLY_FDS |= {"SET_DEVICE_STATE_FD": MAYBE, "SHARED_OBJECT_LOOKUP": MAYBE}

TABLES = [("front-end", REQUESTS, FRONT_END), ("back-end", BACKEND_REQUESTS, BACK_END)]


def test_protocol_features_are_those_of_the_specification() -> None:
    assert numbers(ProtocolFeature) == PROTOCOL_FEATURES


@pytest.mark.parametrize(
    ("table", "entries"), [(table, entries) for _, table, entries in TABLES], ids=["front-end", "back-end"]
)
def test_requests_are_those_of_the_specification(
    table: dict[int, Row[Any, Any]], entries: list[Entry]
) -> None:
    assert sorted(table) == [each.number for each in entries]


@pytest.mark.parametrize(
    ("row", "entry"),
    [
        pytest.param(table[entry.number], entry, id=f"{side}-{entry.name}")
        for side, table, entries in TABLES
        for entry in entries
    ],
)
def test_a_row_says_what_the_specification_says(row: Row[Any, Any], entry: Entry) -> None:
    assert row.request == entry.number
    assert str(row) == entry.name
    assert set(row.fds) == entry.fds
    assert set(row.reply_fds) == REPLY_FDS.get(entry.name, NONE)
    assert row.needs == (None if entry.feature is None else numbers(ProtocolFeature)[entry.feature])
    assert getattr(row.payload, "SIZE", VARIES) == entry.size
    assert (row.reply is None) == (entry.reply is None)
    assert row.reply is None or getattr(row.reply, "SIZE", VARIES) == entry.reply


def test_replies_can_say_no_where_the_specification_has_a_way() -> None:
    refusals = {row: row.refusal.pack() for row in REQUESTS.values() if row.refusal is not None}
    assert refusals == {
        GET_CONFIG: b"",
        SET_DEVICE_STATE_FD: struct.pack("=Q", 0x101),
        CHECK_DEVICE_STATE: struct.pack("=Q", 1),
        GET_INFLIGHT_FD: bytes(24),
        IOTLB_MSG: struct.pack("=Q", 1),
    }


@pytest.mark.parametrize(
    ("value", "index", "has_fd"), [(0, 0, True), (0xFF, 255, True), (0x100, 0, False), (0x107, 7, False)]
)
def test_bit_8_says_that_there_is_no_fd(*, value: int, index: int, has_fd: bool) -> None:
    assert (VringFd(value).index, VringFd(value).has_fd) == (index, has_fd)


@pytest.mark.parametrize("count", range(MemoryTable.MAX_REGIONS + 1))
def test_a_memory_table_has_up_to_32_regions(count: int) -> None:
    regions = tuple(MemoryRegion(at, at + 1, at + 2, at + 3) for at in range(count))
    packed = MemoryTable(regions).pack()
    assert len(packed) == 8 + 32 * count
    assert MemoryTable.unpack(packed).regions == regions


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        struct.pack("=II", 1, 0),
        struct.pack("=II", 1, 0) + bytes(31),
        struct.pack("=II", 8, 0) + bytes(7 * 32),
        struct.pack("=II", 33, 0) + bytes(33 * 32),
        struct.pack("=II", 0xFFFF_FFFF, 0) + bytes(8 * 32),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_a_memory_table_of_another_size_is_none(data: bytes) -> None:
    with pytest.raises(struct.error):
        MemoryTable.unpack(data)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_memory_table_may_have_room_for_more(count: int) -> None:
    """User-mode Linux sends one region in room for two."""
    packed = struct.pack("=II", count, 0) + bytes(32 * count)
    assert MemoryTable.unpack(packed + bytes(32)).pack() == packed


@pytest.mark.parametrize("size", [0, 1, 256])
def test_a_config_space_has_up_to_256_bytes(size: int) -> None:
    space = ConfigSpace.unpack(ConfigSpace(5, bytes(range(size)), flags=1).pack())
    assert (space.offset, space.data, space.flags) == (5, bytes(range(size)), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        struct.pack("=III", 0, 1, 0),
        struct.pack("=III", 0, 257, 0) + bytes(257),
        struct.pack("=III", 0, 0xFFFF_FFFF, 0) + bytes(256),
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_a_config_space_of_another_size_is_none(data: bytes) -> None:
    with pytest.raises(struct.error):
        ConfigSpace.unpack(data)


def test_a_config_space_may_have_room_for_more() -> None:
    assert ConfigSpace.unpack(struct.pack("=III", 1, 2, 0) + b"abc").data == b"ab"


def test_a_crypto_session_has_8_bytes_at_least() -> None:
    assert CryptoSession.unpack(bytes(8)).pack() == bytes(8)
    with pytest.raises(struct.error):
        CryptoSession.unpack(bytes(7))


def test_empty_is_empty() -> None:
    assert Empty().pack() == b""
    with pytest.raises(struct.error):
        Empty.unpack(b"\0")
