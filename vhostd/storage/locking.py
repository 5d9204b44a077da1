"""The lock of an image: QEMU's own, so that its programs and ours notice each other.

QEMU (block/file-posix.c) has two bytes of the file for each thing that one may do with an image: one for
those who do it, one for those who let nobody else do it. Each holds read locks, which go together, on the
bytes that say what it does and what it forbids, and then looks whether another says the opposite:

    byte 100  reads a consistent image      byte 200  lets nobody else read one
    byte 101  writes                        byte 201  lets nobody else write

and so on for two more, which no guest's disk does or forbids. `qemu-img info -U` forbids nothing, and so may
look at a disk that is in use.
"""

import errno
import fcntl
import logging
import os
import struct
import time
from contextlib import suppress
from typing import NamedTuple, Self

from vhostd.errors import SetupError

READS, WRITES = 100, 101
FORBIDS = 100  # from what one does to its opposite: nobody else may
# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
FLOCK = struct.Struct("@hhqqi4x")  # struct flock: type, whence, start, length, pid

# A killed program's requests may be under way in the kernel when the program is gone, and its lock with them.
PATIENCE = 1.0  # seconds
PAUSE = 0.01

log = logging.getLogger(__name__)


class Claim(NamedTuple):
    """What a guest's disk does and what it forbids, as QEMU's virtio-blk: bytes, and their opposites."""

    held: tuple[int, ...]
    opposite: tuple[int, ...]

    @classmethod
    def of(cls, *, read_only: bool, share_rw: bool) -> Self:
        """The claim of a reader or a writer, who may let others write."""
        does = (READS,) if read_only else (READS, WRITES)
        forbidden = () if share_rw else (WRITES,)
        held = (*does, *(byte + FORBIDS for byte in forbidden))
        return cls(held, (*(byte + FORBIDS for byte in does), *forbidden))


def lock(fd: int, path: str, *, locking: str, read_only: bool, share_rw: bool) -> None:
    """Takes the lock, which is the open file's: it goes when that is closed, and no other close undoes it.

    Waits a moment for who has the image in use. Raises SetupError if that does not help. If there are no
    locks, it is a SetupError too, or a warning if `locking` is "auto". If that is "off", nothing is done.
    """
    if locking == "off":
        return
    try:
        if _acquire_soon(fd, Claim.of(read_only=read_only, share_rw=share_rw)):
            return
        advice = _advise(fd, read_only=read_only, share_rw=share_rw)
    except OSError as error:
        if locking == "auto" and error.errno in NO_LOCKS:
            log.warning("%s is not locked: %s: others may write to it meanwhile", path, error.strerror)
            return
        reason = f"cannot be locked: {error.strerror}: --locking=off does without"
        raise SetupError(f"{path}: {reason}") from None
    raise SetupError(f"{path}: another program has it in use{advice}")


def _acquire_soon(fd: int, claim: Claim) -> bool:
    end = time.monotonic() + PATIENCE
    while not _acquire(fd, claim):
        if time.monotonic() >= end:
            return False
        time.sleep(PAUSE)
    return True


def _acquire(fd: int, claim: Claim) -> bool:
    """Whether all of it is locked now; nothing is if not, so that who waits is in nobody's way."""
    acquired = False
    try:
        for byte in claim.held:
            _set(fd, fcntl.F_RDLCK, byte, 1)
        acquired = not _is_opposed(fd, claim)
    except BlockingIOError:  # a write lock, which QEMU does not take, but older versions of this program
        pass
    finally:
        if not acquired:
            _release(fd)
    return acquired


def _release(fd: int) -> None:
    with suppress(OSError):  # there are no locks: what was said of the first is told
        _set(fd, fcntl.F_UNLCK, 0, 0)


def _is_opposed(fd: int, claim: Claim) -> bool:
    return any(_is_held_by_another(fd, byte) for byte in claim.opposite)


def _advise(fd: int, *, read_only: bool, share_rw: bool) -> str:
    """What the other does, if one more option would make both go together."""
    if not share_rw and not _is_opposed(fd, Claim.of(read_only=read_only, share_rw=True)):
        return ", and writes to it: --share-rw lets both, if their guests know of each other"
    if not read_only and not _is_opposed(fd, Claim.of(read_only=True, share_rw=share_rw)):
        return ", and lets nobody else write: --read-only goes with that"
    return ""


def _set(fd: int, kind: int, start: int, size: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, size, 0))


def _is_held_by_another(fd: int, byte: int) -> bool:
    question = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question))
    return bool(kind != fcntl.F_UNLCK)
