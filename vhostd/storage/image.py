"""The image: a file, a block device, or memory, of which a guest sees a disk."""

import errno
import fcntl
import logging
import mmap
import os
import stat
from typing import Self

from vhostd.errors import SetupError
from vhostd.host.grants import Grants
from vhostd.host.ioctls import Ioctl
from vhostd.host.syscall import FALLOCATE, syscall
from vhostd.storage import abilities, bounce, formats
from vhostd.storage.abilities import BLKDISCARD, RANGE
from vhostd.storage.locking import lock

# Linux, include/uapi/linux/falloc.h and fs.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
BLKSECDISCARD = 0x127D

# How what is here, in bounce.py and in the ring reads an image, and writes it. Python and glibc choose among
# those with and without flags.
READING = ("preadv", "preadv2")
WRITING = ("pwrite64", "pwritev", "pwritev2", "fdatasync", "ftruncate", "fallocate")

log = logging.getLogger(__name__)

PAGE = mmap.PAGESIZE
TRIED_BLOCK_SIZES = (512, 1024, 2048, 4096)


class Image:
    """An open image; owns its fds, and the lock that keeps other writers away.

    `length` is what the host says that it holds; `size` is what the guest sees, in whole blocks of
    `block_size`. Behind a file's length it reads zeroes, and a write there makes the file grow; a device,
    which cannot grow, keeps its last bytes to itself. Offsets and sizes of transfers must be multiples of
    `unit`, or go by way of bounce.py: the host wants that. `may_wait` says that RWF_NOWAIT and io_uring are
    no promise here.
    `abilities` are the host's, but for those that are not to be used; what it turned out to lack, `lacking`.
    """

    def __init__(
        self, fd: int, path: str, *, read_only: bool, direct: bool = False, discard: bool = True
    ) -> None:
        """Without `discard` no space is ever given back."""
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self.direct = direct
        self.is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.is_memory = False
        self.length = self.measure()
        found = self._ask_host()
        self.abilities = found if discard else found.keeping_space()
        self.lacking: set[str] = set()
        self.block_size, self.physical_block_size = found.logical_block_size, found.physical_block_size
        self.may_wait = not self.is_device and abilities.may_wait(fd)
        self.unit = self._least_transfer() if direct else 1
        self.size = 0
        self.resize(self.length)

    @classmethod
    def open(
        cls,
        path: str,
        *,
        read_only: bool,
        direct: bool,
        discard: bool = True,
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
                raise SetupError(f"{path}: neither a file nor a block device")
            fd = os.open(path, flags)
        except OSError as error:
            hint = ": no --cache=direct there" if direct and error.errno == errno.EINVAL else ""
            raise SetupError(f"{path}: {error.strerror}{hint}") from None
        try:
            lock(fd, path, locking=locking, read_only=read_only, share_rw=share_rw)
            formats.check(fd, path, raw=raw)
            if stat.S_ISBLK(mode) and not read_only and _is_claimed(path):
                log.warning("%s is mounted, or in use by this host in another way, which lsblk shows", path)
            return cls(fd, path, read_only=read_only, direct=direct, discard=discard)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def in_memory(cls, size: int, *, discard: bool = True) -> Self:
        """An image of zeros that is gone with the program."""
        fd = os.memfd_create("ram-disk", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        image = cls(fd, "the RAM disk", read_only=False, discard=discard)
        image.is_memory = True
        return image

    def grants(self) -> Grants:
        """What it takes to read and write it, and to discard and erase what is on a device."""
        if self.read_only:
            return Grants(system_calls=READING)
        ioctls = (Ioctl(BLKDISCARD), Ioctl(BLKSECDISCARD)) if self.is_device else ()
        return Grants(system_calls=(*READING, *WRITING), ioctls=ioctls)

    def measure(self) -> int:
        """Asks the host for the length in bytes; it may keep the caller waiting."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def set_block_size(self, size: int) -> None:
        """Has the guest see blocks of this size, a whole number of them; warns where the last is cut.

        Raises SetupError if there is none.
        """
        self.block_size = size
        self.resize(self.length)
        if not self.size:
            raise SetupError(f"--logical-block-size={size}: {self.path} has only {self.length} bytes")
        if self.size != self.length and not self.is_memory:
            log.warning(
                "%s has %d bytes, no whole number of blocks of %d: %s",
                self.path,
                self.length,
                size,
                self._rounding(),
            )

    def resize(self, length: int) -> bool:
        """Takes note of the length; True if the guest sees another size now."""
        old, self.length = self.size, length
        rest = length % self.block_size
        self.size = length - rest
        if rest and not self.is_device:
            self.size += self.block_size
        return self.size != old

    def can_fallocate(self, mode: int) -> bool:
        """Whether a file's host can punch holes, or zero ranges; tried where there is nothing."""
        try:
            self.fallocate(mode, (self.length // PAGE + 2) * PAGE, PAGE)
        except OSError:
            return False
        return True

    def fallocate(self, mode: int, offset: int, size: int) -> None:
        """fallocate(2), which keeps the image's size; raises OSError."""
        while True:
            try:
                syscall(FALLOCATE, self.fd, mode | KEEP_SIZE, offset, size)
            except InterruptedError:
                continue
            return

    def discard(self, offset: int, size: int) -> None:
        """Gives back the space of a range; on a device one of whole blocks, which may keep their contents."""
        if self.is_device:
            fcntl.ioctl(self.fd, BLKDISCARD, RANGE.pack(offset, size))
        else:
            self.fallocate(PUNCH_HOLE, offset, size)

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
        """Writes zeros where the host knows no faster way, up to the end of the file; raises OSError."""
        size = min(size, self.measure() - offset)
        if size <= 0:
            return
        if (offset | size) % self.unit:
            bounce.write(self.fd, self.unit, offset, bytes(size), 0)
            return
        with mmap.mmap(-1, min(size, 1 << 20), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as zeros:
            while size:
                with memoryview(zeros) as view, view[: min(size, len(view))] as part:
                    done = os.pwrite(self.fd, part, offset)
                offset, size = offset + done, size - done

    def close(self) -> None:
        """Closes the image; the lock goes with it. Storage that has something to say only then is heard."""
        try:
            os.close(self.fd)
        except OSError as error:
            log.warning("closing %s: %s: what was not flushed may be lost", self.path, error.strerror)

    def _rounding(self) -> str:
        """What the guest sees of a last block that is cut."""
        if self.is_device:
            return f"the guest does not see the last {self.length - self.size}"
        zeroes = f"behind them the guest reads {self.size - self.length} zeroes"
        return zeroes if self.read_only else f"{zeroes}, and what it writes there makes the file grow"

    def _ask_host(self) -> abilities.Abilities:
        if self.is_device:
            return abilities.of_device(self.fd, read_only=self.read_only)
        punches, zeroes = self.can_fallocate(PUNCH_HOLE), self.can_fallocate(ZERO_RANGE)
        return abilities.of_file(self.fd, punches=punches, zeroes=zeroes)

    def _least_transfer(self) -> int:
        """The smallest transfer that the host allows without its page cache."""
        if self.is_device:
            return self.abilities.logical_block_size
        return abilities.direct_unit(self.fd) or self._least_read()

    def _least_read(self) -> int:
        """The same, as reads of data show it; a page if there are none.

        Holes, and what is behind the end, the host reads in any way.
        """
        try:
            data = os.lseek(self.fd, 0, os.SEEK_DATA)
        except OSError:
            return PAGE
        with mmap.mmap(-1, PAGE) as aligned:
            for size in TRIED_BLOCK_SIZES:
                part = memoryview(aligned)[:size]
                try:
                    os.preadv(self.fd, [part], data)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        continue
                finally:
                    part.release()
                return size
        return PAGE


def _is_claimed(path: str) -> bool:
    """Whether a block device, or a part of it, is a file system's, LVM's, or anyone's who wants it alone."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False
