"""Adds a partition to a disk, or deletes one, for the kernel alone: addpart(8), which newer Debians lack.

partition.py DISK NUMBER START SIZE     START and SIZE in bytes; a SIZE of 0 deletes
"""

import ctypes
import fcntl
import struct
import sys

# Linux, include/uapi/linux/blkpg.h
BLKPG, ADD, DELETE = 0x1269, 1, 2


def main(disk: str, number: int, start: int, size: int) -> None:
    partition = ctypes.create_string_buffer(struct.pack("@qqi64s64s4x", start, size, number, b"", b""))
    length = len(partition) - 1
    address = ctypes.addressof(partition)
    with open(disk, "rb") as file:
        fcntl.ioctl(file, BLKPG, struct.pack("@iiiP", ADD if size else DELETE, 0, length, address))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
