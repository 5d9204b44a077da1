"""The virtio-blk vocabulary: feature bits, requests, and the config space (virtio 1.3, 5.2)."""

import struct
from typing import Annotated

from vhostd import Layout, array, u8, u16, u32, u64

SECTOR = 512  # bytes, whatever the block size


class BlkFeature:
    """Feature bits (5.2.3)."""

    SIZE_MAX = 1
    SEG_MAX = 2
    GEOMETRY = 4
    RO = 5
    BLK_SIZE = 6
    FLUSH = 9
    TOPOLOGY = 10
    CONFIG_WCE = 11
    MQ = 12
    DISCARD = 13
    WRITE_ZEROES = 14
    SECURE_ERASE = 16


class Kind:
    """Types of requests (5.2.6)."""

    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8
    DISCARD = 11
    WRITE_ZEROES = 13
    SECURE_ERASE = 14


OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"  # the status, the last byte of a request

HEADER = struct.Struct("<IIQ")  # struct virtio_blk_req: type, reserved, sector
SEGMENT = struct.Struct("<QII")  # struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags
UNMAP = 1  # a segment's flag: the space may be given back

ID_SIZE = 20  # bytes of the serial number


class VirtioBlkConfig(Layout):
    """struct virtio_blk_config, with the end that counts with features that are not offered here."""

    capacity: u64
    size_max: u32
    seg_max: u32
    cylinders: u16
    heads: u8
    sectors: u8
    blk_size: u32
    physical_block_exp: u8
    alignment_offset: u8
    min_io_size: u16
    opt_io_size: u32
    writeback: u8
    unused0: u8
    num_queues: u16
    max_discard_sectors: u32
    max_discard_seg: u32
    discard_sector_alignment: u32
    max_write_zeroes_sectors: u32
    max_write_zeroes_seg: u32
    write_zeroes_may_unmap: u8
    unused1: Annotated[bytes, array(3)]
    max_secure_erase_sectors: u32
    max_secure_erase_seg: u32
    secure_erase_sector_alignment: u32
    zoned: Annotated[bytes, array(24)]


WRITEBACK = 32  # the offset of `writeback`, the one field that the driver may write
