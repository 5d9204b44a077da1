"""What an image's host can do. It is asked once, at open: the sandbox hides sysfs later."""

import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import NamedTuple

from vhostd.host.syscall import FSTATFS, STATX, syscall

SECTOR = 512  # bytes: what Linux counts in, and the least that any device transfers

# Linux, include/uapi/linux/fs.h
BLKSSZGET, BLKPBSZGET, BLKIOMIN, BLKIOOPT, BLKALIGNOFF = 0x1268, 0x127B, 0x1278, 0x1279, 0x127A
BLKDISCARD = 0x1277
RANGE = struct.Struct("=QQ")
NUMBER = struct.Struct("=i")  # of the answers only BLKALIGNOFF's is ever negative

# struct statfs begins with f_type; Linux, include/uapi/linux/magic.h: ext4, XFS, btrfs, tmpfs, F2FS
STATFS_SIZE = 256
HEEDING = (0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010)

# Linux, include/uapi/linux/stat.h and fcntl.h: statx(2), and where struct statx has its last needed field
AT_EMPTY_PATH, STATX_DIOALIGN = 0x1000, 0x2000
STATX_SIZE, STX_DIO_OFFSET_ALIGN = 256, 156

SYSFS = "/sys"
UNBOUNDED = (1 << 64) - 1  # where the host names no most: what is too much for the device it divides itself
LARGEST_UNIT = 2 << 30  # bytes: who gives back no less is never asked for so much at a time


class Abilities(NamedTuple):
    """What an image's host can do, and likes. Sizes are bytes; 0 where it has no wish."""

    logical_block_size: int = SECTOR  # the least that it transfers
    physical_block_size: int = SECTOR
    min_io_size: int = 0
    opt_io_size: int = 0
    alignment_offset: int = 0  # where the first physical block begins
    discards: bool = False
    discard_granularity: int = SECTOR  # it gives back nothing less
    discard_alignment: int = 0  # where the first such unit begins
    max_discard: int = UNBOUNDED
    zeroes_fast: bool = False  # without writing them one by one
    unmaps: bool = False  # the same, and the space is given back

    def keeping_space(self) -> "Abilities":
        """The same, but for what gives space back."""
        return self._replace(discards=False, unmaps=False)


def of_file(fd: int, *, punches: bool, zeroes: bool) -> Abilities:
    """A file whose host knows PUNCH_HOLE and ZERO_RANGE, or not.

    What a guest sees must not depend on where the file happens to lie: its logical block is a sector.
    """
    block = _power(os.fstat(fd).st_blksize, SECTOR)
    return Abilities(
        physical_block_size=block,
        discards=punches,
        discard_granularity=block,
        zeroes_fast=punches or zeroes,  # a hole is zeros, and can be filled again
        unmaps=punches,
    )


def may_wait(fd: int) -> bool:
    """Whether the file system may keep a caller waiting who asks not to (RWF_NOWAIT).

    Those of Linux that are known to heed it do not; FUSE, for one, says that it does, and waits.
    """
    about = bytearray(STATFS_SIZE)
    try:
        syscall(FSTATFS, fd, about)
    except OSError:
        return True
    (kind,) = struct.unpack_from("@l", about)
    return kind & 0xFFFF_FFFF not in HEEDING


def direct_unit(fd: int) -> int:
    """What a transfer past the page cache must be a multiple of; 0 if the host does not tell (Linux 6.1)."""
    about = bytearray(STATX_SIZE)
    try:
        syscall(STATX, fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, about)
    except OSError:
        return 0
    (told,) = struct.unpack_from("=I", about)
    (unit,) = struct.unpack_from("=I", about, STX_DIO_OFFSET_ALIGN)
    return int(unit) if told & STATX_DIOALIGN else 0


def of_device(fd: int, *, read_only: bool, sysfs: str = SYSFS) -> Abilities:
    """A block device. Of one that sysfs does not show, only what ioctls tell is known."""
    has = Abilities(
        logical_block_size=_number(fd, BLKSSZGET),
        physical_block_size=_number(fd, BLKPBSZGET),
        min_io_size=_number(fd, BLKIOMIN),
        opt_io_size=_number(fd, BLKIOOPT),
        alignment_offset=max(_number(fd, BLKALIGNOFF), 0),  # -1: its blocks lie across the disk's
    )
    if read_only:
        return has
    device = os.fstat(fd).st_rdev
    return _with_space(fd, has, f"{sysfs}/dev/block/{os.major(device)}:{os.minor(device)}")


def _with_space(fd: int, has: Abilities, folder: str) -> Abilities:
    """The same, with what the device can do with a range, of which `folder` tells."""
    # A partition's folder lies in its disk's.
    disk = f"{folder}/.." if os.path.exists(f"{folder}/partition") else folder
    queue = f"{disk}/queue"
    most = _read(f"{queue}/discard_max_bytes")
    discards = _takes_discards(fd) if most is None else most > 0
    # Linux makes it no less than a physical block, but has not always done so.
    unit = max(_read(f"{queue}/discard_granularity") or 0, has.physical_block_size)
    first = _read(f"{folder}/discard_alignment") or 0
    zeroes = bool(_read(f"{queue}/write_zeroes_max_bytes"))
    return has._replace(
        discards=discards and unit <= LARGEST_UNIT,
        discard_granularity=unit,
        discard_alignment=0 if first % has.logical_block_size else first,  # -1 if it cannot be said
        max_discard=most or UNBOUNDED,
        zeroes_fast=zeroes,
        unmaps=zeroes and _may_unmap(disk, discards=discards),
    )


def _may_unmap(disk: str, *, discards: bool) -> bool:
    """Whether zeroes give space back.

    Linux tells since 6.17. Before, a SCSI disk tells how it is zeroed, and any other that discards may do so.
    """
    told = _read(f"{disk}/queue/write_zeroes_unmap_max_bytes")
    if told is not None:
        return told > 0
    with suppress(FileNotFoundError):  # of other disks
        for name in os.listdir(f"{disk}/device/scsi_disk"):
            with open(f"{disk}/device/scsi_disk/{name}/zeroing_mode", encoding="ascii") as file:
                return file.read().strip().endswith("_unmap")
    return discards


def _takes_discards(fd: int) -> bool:
    """Whether there is a discard at all; asks for one that cannot be, of which it is told later."""
    try:
        fcntl.ioctl(fd, BLKDISCARD, RANGE.pack(1, 0))
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def _number(fd: int, request: int) -> int:
    (answer,) = NUMBER.unpack(fcntl.ioctl(fd, request, bytes(NUMBER.size)))
    return int(answer)


def _read(path: str) -> int | None:
    """The number in a file of sysfs, None if there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _power(size: int, least: int) -> int:
    """`size` if it is a power of two, as a block is; else one below it, and never less than `least`."""
    return max(1 << size.bit_length() - 1 if size else 0, least)
