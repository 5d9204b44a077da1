"""The lock: who may have an image beside whom, what who may not is told, and hosts that have no locks."""

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from vhostd import SetupError
from vhostd.frontend.drivers.block import SECTOR
from vhostd.storage import locking
from vhostd.storage.locking import FLOCK, NO_LOCKS, Claim, lock


class User(NamedTuple):
    """How one opens an image."""

    read_only: bool
    share_rw: bool

    def opens(self, path: str, how: str = "on") -> int:
        """A locked fd; raises SetupError, having closed it."""
        fd = os.open(path, os.O_RDONLY if self.read_only else os.O_RDWR)
        try:
            lock(fd, path, locking=how, read_only=self.read_only, share_rw=self.share_rw)
        except BaseException:
            os.close(fd)
            raise
        return fd


WRITER, READER = User(read_only=False, share_rw=False), User(read_only=True, share_rw=False)
SHARING_WRITER, SHARING_READER = User(read_only=False, share_rw=True), User(read_only=True, share_rw=True)
USERS = (WRITER, READER, SHARING_WRITER, SHARING_READER)

IN_USE = "another program has it in use"
WRITES = ", and writes to it: --share-rw lets both, if their guests know of each other"
FORBIDS = ", and lets nobody else write: --read-only goes with that"
# What the second is told; every other pair goes together.
CONFLICTS = {
    (WRITER, WRITER): "",
    (WRITER, READER): WRITES,
    (WRITER, SHARING_WRITER): FORBIDS,
    (READER, WRITER): FORBIDS,
    (READER, SHARING_WRITER): FORBIDS,
    (SHARING_WRITER, WRITER): WRITES,
    (SHARING_WRITER, READER): WRITES,
}


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(SECTOR))
    return str(file)


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody lets go while another waits, but where a test is of that."""
    monkeypatch.setattr(locking, "PATIENCE", 0)


@pytest.fixture
def other(path: str) -> Iterator[int]:
    """Another program's fd of the image."""
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def take(fd: int, kind: int, start: int, size: int) -> None:
    """A lock as another program may take it."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(kind, os.SEEK_SET, start, size, 0))


def held(fd: int) -> set[int]:
    """The bytes that others than `fd` hold a lock on, of those that QEMU knows."""
    bytes_of_qemu = (*range(100, 104), *range(200, 204))
    return {byte for byte in bytes_of_qemu if locking._is_held_by_another(fd, byte)}


def refused(user: User, path: str, how: str = "on") -> str:
    """What who may not have the image is told, behind its path; on one line."""
    with pytest.raises(SetupError) as raised:
        user.opens(path, how)
    start, _, reason = str(raised.value).partition(f"{path}: ")
    assert start == ""
    assert "\n" not in reason
    return reason


# --- Who may have it beside whom ------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), list(product(USERS, USERS)))
def test_two(path: str, first: User, second: User) -> None:
    holder = first.opens(path)
    advice = CONFLICTS.get((first, second))
    if advice is None:
        os.close(second.opens(path))
    else:
        assert refused(second, path) == IN_USE + advice
        assert not held(holder)
    os.close(holder)
    os.close(second.opens(path))


@pytest.mark.parametrize(("first", "second"), list(CONFLICTS))
def test_advice_helps(path: str, first: User, second: User) -> None:
    """Who follows it may have the image."""
    advice = CONFLICTS[first, second]
    holder = first.opens(path)
    if "--share-rw" in advice:
        second = second._replace(share_rw=True)
    if "--read-only" in advice:
        second = second._replace(read_only=True)
    if advice:
        os.close(second.opens(path))
    os.close(holder)


def test_advice_that_would_not_help_is_not_given(path: str) -> None:
    """One lets others write, another does not."""
    holders = (SHARING_WRITER.opens(path), SHARING_READER.opens(path))
    assert refused(READER, path) == IN_USE + WRITES
    os.close(holders[0])
    reader = READER.opens(path)
    assert refused(WRITER, path) == IN_USE + FORBIDS
    os.close(reader)
    os.close(holders[1])


@pytest.mark.parametrize(
    ("user", "wanted"),
    [
        (WRITER, {100, 101, 201}),
        (READER, {100, 201}),
        (SHARING_WRITER, {100, 101}),
        (SHARING_READER, {100}),
    ],
)
def test_what_is_held(path: str, other: int, user: User, wanted: set[int]) -> None:
    """As QEMU 10's virtio-blk: /proc/locks told."""
    holder = user.opens(path)
    assert held(other) == wanted
    os.close(os.open(path, os.O_RDWR))  # would undo a traditional lock
    assert held(other) == wanted
    os.close(holder)
    assert not held(other)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("byte", [*range(0, 100), 102, 103, 104, 199, 202, 203, 204, 511])
def test_bytes_that_nobody_looks_at(path: str, other: int, user: User, byte: int) -> None:
    """Of libvirt, which has its own, and of QEMU's resizing."""
    take(other, fcntl.F_WRLCK, byte, 1)
    os.close(user.opens(path))


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(("start", "size"), [(0, 0), (0, SECTOR), (100, 1)])
def test_a_write_lock(path: str, other: int, user: User, start: int, size: int) -> None:
    """Of an older version of this program, of another monitor on every byte, and of nobody known."""
    take(other, fcntl.F_WRLCK, start, size)
    assert refused(user, path).startswith(IN_USE)
    take(other, fcntl.F_UNLCK, 0, 0)
    os.close(user.opens(path))


@pytest.mark.parametrize("user", USERS)
def test_a_reader_of_an_older_version(path: str, other: int, user: User) -> None:
    """It holds every byte, and so also says what it would not say: that is no advice."""
    take(other, fcntl.F_RDLCK, 0, 0)
    assert refused(user, path) == IN_USE


def test_an_older_version_notices_us(path: str, other: int) -> None:
    holder = WRITER.opens(path)
    with pytest.raises(BlockingIOError):
        take(other, fcntl.F_WRLCK, 0, 0)
    os.close(holder)


# --- Waiting --------------------------------------------------------------------------------------------


def test_who_goes_is_waited_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed program's lock may outlive it by some milliseconds."""
    monkeypatch.setattr(locking, "PATIENCE", 20.0)
    holder = [WRITER.opens(path)]

    def pause(_: float) -> None:
        assert not held(holder[0])  # who waits does not keep others away
        os.close(holder.pop())

    monkeypatch.setattr(time, "sleep", pause)
    os.close(WRITER.opens(path))
    assert not holder


def test_who_stays_is_not_waited_for_for_long(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "PATIENCE", 0.05)
    holder = WRITER.opens(path)
    start = time.monotonic()
    assert refused(WRITER, path) == IN_USE
    assert time.monotonic() - start >= 0.05
    os.close(holder)


# --- Hosts without locks --------------------------------------------------------------------------------


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int, *commands: int) -> None:
    """A kernel that answers `commands` with an error."""
    real = fcntl.fcntl

    def answer(fd: int, command: int, argument: bytes = b"") -> int | bytes:
        if command in commands:
            raise OSError(number, os.strerror(number))
        return real(fd, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", answer)


COMMANDS = [
    (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK),
    (fcntl.F_OFD_GETLK,),
]


@pytest.mark.parametrize("number", NO_LOCKS)
@pytest.mark.parametrize("commands", COMMANDS, ids=["none", "cannot be asked for"])
@pytest.mark.parametrize("user", USERS)
def test_no_locks(
    path: str,
    other: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    commands: tuple[int, ...],
    user: User,
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        without_locks(patch, number, *commands)
        fd = user.opens(path, "auto")
        reason = os.strerror(number)
        assert caplog.messages == [f"{path} is not locked: {reason}: others may write to it meanwhile"]
        assert refused(user, path) == f"cannot be locked: {reason}: --locking=off does without"
    assert not held(other)
    os.close(fd)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("how", ["auto", "on"])
def test_locks_that_fail(path: str, monkeypatch: pytest.MonkeyPatch, number: int, how: str) -> None:
    """There are some: who goes on without may meet who has one. AppArmor denies locks by EACCES."""
    without_locks(monkeypatch, number, fcntl.F_OFD_SETLK)
    reason = f"cannot be locked: {os.strerror(number)}: --locking=off does without"
    assert refused(WRITER, path, how) == reason


@pytest.mark.parametrize("first", USERS)
@pytest.mark.parametrize("second", USERS)
def test_no_lock_is_wanted(path: str, other: int, first: User, second: User) -> None:
    holder = first.opens(path, "off")
    assert not held(other)
    fd = second.opens(path)
    os.close(first.opens(path, "off"))
    os.close(fd)
    os.close(holder)


@pytest.mark.parametrize("user", USERS)
def test_automatic_is_on_where_there_are_locks(path: str, other: int, user: User) -> None:
    fd = user.opens(path, "auto")
    assert held(other) == set(Claim.of(read_only=user.read_only, share_rw=user.share_rw).held)
    os.close(fd)
