"""Images of other formats than raw, by how they begin: the guest would see, and overwrite, their headers."""

import mmap
import os

from vhostd.errors import SetupError

# By what QEMU knows them (block/*.c). LUKS is not among them: a guest may have its own. Nor is a VPC image of
# fixed size, which is raw but for its last sector.
MAGICS = (
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"conectix", "VPC (VHD)"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
)
BEGINNING = 64 << 10  # of which a disk without a page cache can be read: no block is larger


def check(fd: int, path: str, *, raw: bool) -> None:
    """Raises SetupError for other formats, unless it is known to be `raw`, and for what is empty."""
    if not raw:  # first: some are short texts that name other files
        _refuse_others(fd, path)
    if not os.lseek(fd, 0, os.SEEK_END):
        raise SetupError(f"{path}: it is empty; truncate -s 10G makes a disk of 10 GiB of it")


def recognize(beginning: bytes) -> str | None:
    """The format of an image that begins so; None if it is one of no known format, and so a raw one."""
    return next((name for at, magic, name in MAGICS if beginning.startswith(magic, at)), None)


def _refuse_others(fd: int, path: str) -> None:
    try:
        name = recognize(_read_beginning(fd))
    except OSError as error:
        reason = f"cannot be read: {error.strerror}: --format=raw does not look at it"
        raise SetupError(f"{path}: {reason}") from None
    if name is not None:
        raise SetupError(
            f"{path}: looks like an image in {name} format, which would be served as raw bytes: "
            "qemu-nbd and qemu-storage-daemon serve such images; --format=raw if it is the guest's own data"
        )


def _read_beginning(fd: int) -> bytes:
    """Reads it into whole pages, as --cache=direct needs it."""
    with mmap.mmap(-1, BEGINNING, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        return pages[: os.preadv(fd, [pages], 0)]
