"""The image: a file, a block device, or memory, of which the guest sees a disk."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from typing import Self

from vhost_user_blk import formats
from vhost_user_blk.locking import lock
from vhost_user_blk.protocol import SECTOR
from vhostd import SetupError

# Linux, include/uapi/linux/falloc.h and fs.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
BLOCK_IOCTLS = 0x12  # the type of those that follow
BLKSSZGET, BLKPBSZGET, BLKSECDISCARD = 0x1268, 0x127B, 0x127D
RANGE = struct.Struct("=QQ")

PAGE = mmap.PAGESIZE
TRIED_BLOCK_SIZES = (512, 1024, 2048, 4096)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Image:
    """An open image; owns its fds, and the lock that keeps other writers away.

    `size` is in bytes, of whole sectors. `block_size` is the smallest unit that the host can transfer.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool, direct: bool = False) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self.direct = direct
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.is_memory = False
        self.size = self._find_size()
        self.block_size, self.physical_block_size = self._find_block_sizes()

    @classmethod
    def open(
        cls,
        path: str,
        *,
        read_only: bool,
        direct: bool,
        locking: str = "auto",
        share_rw: bool = False,
        raw: bool = False,
    ) -> Self:
        """Opens a file or a block device, and locks it; raises SetupError if that cannot be.

        Unless it is known to be `raw`, one that looks like an image of another format cannot be.
        """
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR) | (os.O_DIRECT if direct else 0)
        try:
            mode = os.stat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):  # others may block, or have no size
                raise SetupError(f"--blk-file={path}: neither a file nor a block device")
            fd = os.open(path, flags)
        except OSError as error:
            hint = ": no --cache=direct there" if direct and error.errno == errno.EINVAL else ""
            raise SetupError(f"--blk-file={path}: {error.strerror}{hint}") from None
        try:
            lock(fd, path, locking=locking, read_only=read_only, share_rw=share_rw)
            formats.check(fd, path, raw=raw)
            return cls(fd, path, read_only=read_only, direct=direct)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def in_memory(cls, size: int) -> Self:
        """An image of zeros that is gone with the program."""
        fd = os.memfd_create("ram-disk", os.MFD_CLOEXEC)
        os.ftruncate(fd, size)
        image = cls(fd, "the RAM disk", read_only=False)
        image.is_memory = True
        return image

    def refresh(self) -> bool:
        """Looks whether the image has another size now; True if it has."""
        old, self.size = self.size, self._find_size()
        return self.size != old

    def can_fallocate(self, mode: int) -> bool:
        """Whether the host can punch holes, or zero ranges; tried where there is nothing."""
        if self.is_device:
            return True  # where the device cannot, the kernel writes zeros, or says so
        try:
            self.fallocate(mode, self.size + PAGE, PAGE)
        except OSError:
            return False
        return True

    def fallocate(self, mode: int, offset: int, size: int) -> None:
        """fallocate(2), which keeps the image's size; raises OSError."""
        while _libc.fallocate(self.fd, mode | KEEP_SIZE, offset, size):
            if (number := ctypes.get_errno()) != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def can_erase_securely(self) -> bool:
        """Whether the host can erase data beyond recovery; tried on nothing."""
        if not self.is_device or self.read_only:
            return False
        try:
            self.erase_securely(0, 0)
        except OSError:
            return False
        return True

    def erase_securely(self, offset: int, size: int) -> None:
        """Erases a range of a block device and all its copies; raises OSError."""
        fcntl.ioctl(self.fd, BLKSECDISCARD, RANGE.pack(offset, size))

    def write_zeroes(self, offset: int, size: int) -> None:
        """Writes zeros where the host knows no faster way; raises OSError."""
        with mmap.mmap(-1, min(size, 1 << 20), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as zeros:
            view = memoryview(zeros)
            try:
                while size:
                    done = os.pwrite(self.fd, view[: min(size, len(view))], offset)
                    offset, size = offset + done, size - done
            finally:
                view.release()

    def close(self) -> None:
        """Closes the image; the lock goes with it."""
        os.close(self.fd)

    def _find_size(self) -> int:
        size = os.lseek(self.fd, 0, os.SEEK_END)
        return size - size % SECTOR

    def _find_block_sizes(self) -> tuple[int, int]:
        if self.is_device:
            return self._ask_device(BLKSSZGET), self._ask_device(BLKPBSZGET)
        physical = os.fstat(self.fd).st_blksize
        return self._least_transfer() if self.direct else SECTOR, max(physical, SECTOR)

    def _ask_device(self, request: int) -> int:
        (answer,) = struct.unpack("=I", fcntl.ioctl(self.fd, request, bytes(4)))
        return int(answer)

    def _least_transfer(self) -> int:
        """The smallest read that the host allows without its page cache."""
        with mmap.mmap(-1, PAGE) as aligned:
            for size in TRIED_BLOCK_SIZES:
                part = memoryview(aligned)[:size]
                try:
                    os.preadv(self.fd, [part], size)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        continue
                finally:
                    part.release()
                return size
        return PAGE
