"""The vocabulary against the kernel's header, and the structs byte by byte (virtio 1.3, 5.2)."""

import re
from pathlib import Path

import pytest

from tests.devices.vhost_user_gpu.golden import golden
from tests.numbers import numbers
from vhost_user_blk import protocol
from vhost_user_blk.protocol import BlkFeature, Kind, VirtioBlkConfig

DEFINE = re.compile(r"^#define\s+VIRTIO_BLK_(\w+)\s+(\w+)", re.MULTILINE)
HEADER_FILE = Path("/usr/include/linux/virtio_blk.h")


@pytest.fixture(scope="module")
def defined() -> dict[str, int]:
    """What the kernel's header defines, without VIRTIO_BLK_."""
    found = DEFINE.findall(HEADER_FILE.read_text())
    return {name: int(value, 0) for name, value in found if value[0].isdigit()}


@pytest.mark.parametrize(("prefix", "names"), [("F", BlkFeature), ("T", Kind)])
def test_numbers_of_the_kernel_s_header(defined: dict[str, int], prefix: str, names: type[object]) -> None:
    found = numbers(names)
    assert found
    assert found == {name: defined[f"{prefix}_{name}"] for name in found}


def test_the_rest_of_the_kernel_s_header(defined: dict[str, int]) -> None:
    statuses = (protocol.OK, protocol.IOERR, protocol.UNSUPP)
    assert statuses == tuple(bytes([defined[name]]) for name in ("S_OK", "S_IOERR", "S_UNSUPP"))
    assert defined["ID_BYTES"] == protocol.ID_SIZE
    assert defined["WRITE_ZEROES_FLAG_UNMAP"] == protocol.UNMAP


def test_the_config_space() -> None:
    golden(
        VirtioBlkConfig,
        """
        08 07 06 05 04 03 02 01  capacity = 0x0102030405060708
        00 f0 ff 7f              size_max = 0x7ffff000
        7e 00 00 00              seg_max = 126
        ff 3f                    cylinders = 16383
        10                       heads = 16
        3f                       sectors = 63
        00 10 00 00              blk_size = 4096
        03                       physical_block_exp = 3
        02                       alignment_offset = 2
        08 01                    min_io_size = 0x108
        00 20 00 00              opt_io_size = 8192
        01                       writeback = 1
        ff                       unused0 = 255
        04 01                    num_queues = 0x104
        ff ff 3f 00              max_discard_sectors = 4194303
        00 01 00 00              max_discard_seg = 256
        08 00 00 00              discard_sector_alignment = 8
        fe ff 3f 00              max_write_zeroes_sectors = 4194302
        01 01 00 00              max_write_zeroes_seg = 257
        01                       write_zeroes_may_unmap = 1
        00 * 3                   unused1 = 0
        fd ff 3f 00              max_secure_erase_sectors = 4194301
        02 01 00 00              max_secure_erase_seg = 258
        01 00 00 00              secure_erase_sector_alignment = 1
        00 * 24                  zoned = 0
        """,
    ).check()
    assert VirtioBlkConfig(*(0,) * 20, bytes(3), 0, 0, 0, bytes(24)).pack() == bytes(96)


def test_where_the_cache_mode_is() -> None:
    space = bytearray(VirtioBlkConfig.SIZE)
    space[protocol.WRITEBACK] = 1
    assert VirtioBlkConfig.unpack(bytes(space)).writeback == 1


def test_the_header_of_a_request() -> None:
    packed = bytes.fromhex("0d 00 00 00  04 03 02 01  08 07 06 05 04 03 02 01")
    assert protocol.HEADER.pack(Kind.WRITE_ZEROES, 0x01020304, 0x0102030405060708) == packed


def test_a_segment() -> None:
    packed = bytes.fromhex("08 07 06 05 04 03 02 01  04 03 02 01  01 00 00 00")
    assert protocol.SEGMENT.pack(0x0102030405060708, 0x01020304, protocol.UNMAP) == packed
