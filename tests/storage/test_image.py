"""The image: what can be one, who may have it, how large it is, and what its host can do."""

import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loop_device import loop_device
from tests.storage.images import (
    noise,
    skipped_without,
)
from vhostd import SetupError
from vhostd.host.syscall import FALLOCATE
from vhostd.storage import abilities, locking
from vhostd.storage import image as module
from vhostd.storage.image import PUNCH_HOLE, ZERO_RANGE, Image

SIZE = 64 << 10


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "disk.img"
    file.write_bytes(noise(SIZE))
    return str(file)


@pytest.fixture(params=["writable", "read-only", "direct", "ram"])
def image(request: pytest.FixtureRequest, path: str) -> Iterator[Image]:
    if request.param == "ram":
        image = Image.in_memory(SIZE)
    else:
        with skipped_without("--cache=direct"):
            image = Image.open(path, read_only=request.param == "read-only", direct=request.param == "direct")
    yield image
    image.close()


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here lets go of an image that another waits for."""
    monkeypatch.setattr(locking, "PATIENCE", 0)


def open_file(path: str, *, read_only: bool = False, direct: bool = False) -> Image:
    return Image.open(path, read_only=read_only, direct=direct)


def refuses(path: str, reason: str, *, read_only: bool = False) -> None:
    """Cannot be opened, for a reason that fits on a line, and nothing stays open."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SetupError) as raised:
        open_file(path, read_only=read_only)
    assert str(raised.value) == f"{path}: {reason}"
    assert os.listdir("/proc/self/fd") == before


# --- What can be an image -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (os.mkdir, "neither a file nor a block device"),
        (os.mkfifo, "neither a file nor a block device"),
        (lambda path: os.symlink(path, path), "Too many levels of symbolic links"),
        (lambda path: os.symlink("/dev/null", path), "neither a file nor a block device"),
    ],
    ids=["missing", "folder", "fifo", "loop", "null"],
)
@pytest.mark.parametrize("read_only", [False, True])
def test_what_cannot_be(
    tmp_path: Path,
    make: Callable[[str], None],
    reason: str,
    read_only: bool,  # noqa: FBT001
) -> None:
    path = str(tmp_path / "it")
    make(path)
    refuses(path, reason, read_only=read_only)


def test_a_socket_cannot_be(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "it"))
        refuses(str(tmp_path / "it"), "neither a file nor a block device")


@pytest.mark.parametrize("path", ["", "a\nb", "x" * 300])
def test_paths_that_cannot_be(path: str) -> None:
    refuses(path, "File name too long" if len(path) > 255 else "No such file or directory")


def test_a_path_with_a_null() -> None:
    """No command line has one, but whoever calls is told all the same."""
    with pytest.raises((SetupError, ValueError)):
        open_file("a\0b")


def test_a_file_that_may_only_be_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write to any, so the kernel's answer is made up."""
    opening = os.open

    def refusing(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opening(path, flags, mode)

    monkeypatch.setattr(os, "open", refusing)
    refuses(path, "Permission denied")
    open_file(path, read_only=True).close()


def test_a_host_without_direct_io(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(SetupError, match=r"^.*: Invalid argument: no --cache=direct there$"):
        open_file(path, direct=True)
    with pytest.raises(SetupError, match=r"^.*: Invalid argument$"):
        open_file(path)


# --- Who may have it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "advice"),
    [
        (False, False, ""),
        (False, True, ", and writes to it: --share-rw lets both, if their guests know of each other"),
        (True, False, ", and lets nobody else write: --read-only goes with that"),
        (True, True, None),
    ],
)
def test_readers_share_and_a_writer_is_alone(
    path: str,
    first: bool,  # noqa: FBT001
    second: bool,  # noqa: FBT001
    advice: str | None,
) -> None:
    holder = open_file(path, read_only=first)
    try:
        if advice is None:
            open_file(path, read_only=second).close()
        else:
            refuses(path, f"another program has it in use{advice}", read_only=second)
    finally:
        holder.close()
    open_file(path, read_only=second).close()


def test_the_lock_outlives_other_openings_of_the_file(path: str) -> None:
    """Unlike the traditional ones, which any close of the file by this process would undo."""
    holder = open_file(path)
    os.close(os.open(path, os.O_RDWR))
    refuses(path, "another program has it in use")
    holder.close()


def test_what_it_holds(image: Image) -> None:
    assert not os.get_inheritable(image.fd)
    flags = fcntl.fcntl(image.fd, fcntl.F_GETFL)
    assert bool(flags & os.O_DIRECT) == image.direct
    assert flags & os.O_ACCMODE == (os.O_RDONLY if image.read_only else os.O_RDWR)
    assert not image.is_device


# --- How large it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "wanted"), [(1, 512), (511, 512), (512, 512), (513, 1024), (2 * SIZE - 511, 2 * SIZE)]
)
def test_whole_sectors(path: str, size: int, wanted: int) -> None:
    image = open_file(path)
    os.truncate(path, size)
    assert image.resize(image.measure())
    assert image.size == wanted
    image.close()
    image = open_file(path)
    assert image.size == wanted
    image.close()


def test_it_grows_and_shrinks(path: str) -> None:
    image = open_file(path)
    assert not image.resize(image.measure())
    for size in (2 * SIZE, SIZE // 2, 0, SIZE):
        os.truncate(path, size)
        assert image.resize(image.measure())
        assert image.size == size
        assert not image.resize(image.measure())
    os.truncate(path, SIZE - 511)
    assert not image.resize(image.measure())
    assert (image.size, image.length) == (SIZE, SIZE - 511)
    image.close()


@pytest.mark.parametrize(("block_size", "size"), [(512, SIZE + 1024), (4096, SIZE + 4096)])
def test_whole_blocks_and_a_warning_of_what_the_last_one_lacks(
    path: str, block_size: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(path, SIZE + 600)
    image = open_file(path)
    image.set_block_size(block_size)
    assert image.size == size
    assert caplog.messages == [
        f"{path} has {SIZE + 600} bytes, no whole number of blocks of {block_size}: behind them the guest "
        f"reads {size - SIZE - 600} zeroes, and what it writes there makes the file grow"
    ]
    caplog.clear()
    os.truncate(path, SIZE)
    image.resize(image.measure())
    image.set_block_size(block_size)
    assert not caplog.messages
    image.close()


def test_a_last_block_that_nobody_may_write(path: str, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(path, SIZE + 600)
    image = open_file(path, read_only=True)
    image.set_block_size(512)
    assert image.size == SIZE + 1024
    (line,) = caplog.messages
    assert line.endswith("behind them the guest reads 424 zeroes")
    image.close()


def test_memory_of_any_size(caplog: pytest.LogCaptureFixture) -> None:
    """There is no file of which anybody could be told."""
    image = Image.in_memory(100)
    image.set_block_size(4096)
    assert image.size == 4096
    assert not caplog.messages
    image.close()


def test_a_very_large_one(path: str) -> None:
    os.truncate(path, 8 << 40)
    image = open_file(path)
    assert image.size == 8 << 40
    image.close()


def test_memory() -> None:
    image = Image.in_memory(1 << 40)
    assert (image.size, image.is_memory, image.read_only, image.path) == (
        1 << 40,
        True,
        False,
        "the RAM disk",
    )
    assert os.pread(image.fd, 512, 1 << 30) == bytes(512)
    assert os.fstat(image.fd).st_blocks * 512 <= 4096
    image.close()


def test_block_sizes(image: Image) -> None:
    assert image.block_size == 512
    assert image.unit in ((512, 1024, 2048, 4096) if image.direct else (1,))
    assert image.physical_block_size == max(os.fstat(image.fd).st_blksize, 512)


@pytest.mark.parametrize("least", [512, 1024, 4096])
def test_the_least_transfer(path: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def reading(_fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset % least or len(buffers[0]) % least:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return len(buffers[0])

    monkeypatch.setattr(abilities, "direct_unit", lambda _: 0)
    monkeypatch.setattr(os, "preadv", reading)
    with skipped_without("--cache=direct"):
        image = open_file(path, direct=True)
    assert (image.unit, image.block_size) == (least, 512)
    image.close()


@pytest.mark.parametrize("size", [300, SIZE])
def test_the_least_transfer_where_there_are_no_data(
    path: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may read a hole, and nobody is told of the rest."""
    os.truncate(path, 0)
    os.truncate(path, size)
    monkeypatch.setattr(abilities, "direct_unit", lambda _: 0)
    with skipped_without("--cache=direct"):
        image = open_file(path, direct=True)
    assert image.unit == 4096
    image.close()


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("size", [300, 1 << 20])
def test_a_new_file_on_a_device_of_large_blocks(
    device: str,
    tmp_path: Path,
    size: int,
    told: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host wants whole blocks written, but lets anybody read what is not there."""
    if not told:
        monkeypatch.setattr(abilities, "direct_unit", lambda _: 0)
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    subprocess.run(["mount", device, folder], check=True)
    try:
        file = folder / "disk.img"
        file.touch()
        os.truncate(file, size)
        image = open_file(str(file), direct=True)
        assert image.unit == 4096
        assert (image.block_size, image.size) == (512, -(-size // 512) * 512)
        image.close()
    finally:
        subprocess.run(["umount", folder], check=True)


# --- What its host can do -------------------------------------------------------------------------------


def test_trying_changes_nothing(image: Image) -> None:
    before = os.stat(image.fd)
    image.can_fallocate(PUNCH_HOLE)
    assert not image.can_erase_securely()
    after = os.stat(image.fd)
    assert (after.st_size, after.st_blocks) == (before.st_size, before.st_blocks)


def test_holes(path: str) -> None:
    image = open_file(path)
    assert image.can_fallocate(PUNCH_HOLE)
    before = os.fstat(image.fd).st_blocks
    image.fallocate(PUNCH_HOLE, 8192, 16384)
    assert os.fstat(image.fd).st_blocks < before
    image.fallocate(ZERO_RANGE, 0, 4096)
    image.fallocate(ZERO_RANGE, SIZE - 512, 4096)
    with open(path, "rb") as file:
        assert file.read() == bytes(4096) + noise(SIZE)[4096:8192] + bytes(16384) + noise(SIZE)[
            24576:-512
        ] + bytes(512)
    image.close()


def test_no_holes_in_what_may_only_be_read(path: str) -> None:
    image = open_file(path, read_only=True)
    assert not image.can_fallocate(PUNCH_HOLE)
    with pytest.raises(OSError, match="Bad file descriptor"):
        image.fallocate(PUNCH_HOLE, 0, 4096)
    image.close()


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 0), (0, -1), ((1 << 63) - 1, 1)])
def test_ranges_that_no_file_has(path: str, offset: int, size: int) -> None:
    image = open_file(path)
    with pytest.raises(OSError, match=r"Invalid argument|File too large"):
        image.fallocate(PUNCH_HOLE, offset, size)
    image.close()


def test_a_signal_in_the_middle_is_no_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """fallocate(2): EINTR; SIGHUP and SIGTERM come at any time, and the guest's request is not to blame."""
    calls: list[tuple[int, ...]] = []

    def interrupted(number: int, *arguments: int) -> int:
        assert number == FALLOCATE
        calls.append(arguments)
        if len(calls) == 1:
            raise InterruptedError
        return 0

    image = open_file(path)
    monkeypatch.setattr(module, "syscall", interrupted)
    try:
        image.fallocate(PUNCH_HOLE, 4096, 512)
    finally:
        image.close()
    assert calls == [(image.fd, PUNCH_HOLE | 1, 4096, 512)] * 2


@pytest.mark.parametrize("size", [1, 512, (1 << 20) - 1, 1 << 20, (1 << 20) + 512, 3 << 20])
def test_zeros_written_one_by_one(path: str, size: int) -> None:
    os.truncate(path, 4 << 20)
    os.pwrite((image := open_file(path)).fd, noise(4 << 20), 0)
    image.write_zeroes(1024, size)
    with open(path, "rb") as file:
        assert file.read() == noise(4 << 20)[:1024] + bytes(size) + noise(4 << 20)[1024 + size :]
    image.close()


def test_zeros_for_which_there_is_no_space(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_file(path)
    monkeypatch.setattr(image, "measure", lambda: 4096)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, image.fd)
    os.close(full)
    with pytest.raises(OSError, match="No space left"):
        image.write_zeroes(0, 4096)
    image.close()


# --- Block devices --------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A block device of 4096-byte blocks; only root can have one."""
    file = tmp_path / "backing"
    file.write_bytes(noise(1 << 20))
    with loop_device(file) as path:
        yield path


@pytest.mark.parametrize("direct", [False, True])
def test_a_block_device(device: str, direct: bool) -> None:  # noqa: FBT001
    image = open_file(device, direct=direct)
    assert image.is_device
    assert (image.size, image.block_size, image.physical_block_size) == (1 << 20, 4096, 4096)
    assert image.abilities.discards
    assert not image.can_erase_securely()
    assert not image.resize(image.measure())
    refuses(device, "another program has it in use")
    image.fallocate(PUNCH_HOLE, 4096, 8192)
    image.fallocate(ZERO_RANGE, 16384, 4096)
    image.write_zeroes(32768, 4096)
    image.close()
    wanted = bytearray(noise(1 << 20))
    for start, size in ((4096, 8192), (16384, 4096), (32768, 4096)):
        wanted[start : start + size] = bytes(size)
    with open(device, "rb") as file:
        assert file.read() == wanted


def test_a_device_ends_where_it_ends(device: str, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot grow: the guest sees its whole blocks."""
    image = open_file(device)
    image.set_block_size(1 << 19)
    assert (image.size, caplog.messages) == (1 << 20, [])
    image.resize((1 << 20) - 4096)
    image.set_block_size(1 << 19)
    assert image.size == 1 << 19
    assert caplog.messages == [
        f"{device} has {(1 << 20) - 4096} bytes, no whole number of blocks of {1 << 19}: "
        f"the guest does not see the last {(1 << 19) - 4096}"
    ]
    image.resize(4096)
    with pytest.raises(SetupError, match=rf"^--logical-block-size=8192: {device} has only 4096 bytes$"):
        image.set_block_size(8192)
    image.close()


def test_a_device_that_the_host_uses(device: str, caplog: pytest.LogCaptureFixture) -> None:
    """As a mount does."""
    fd = os.open(device, os.O_RDONLY | os.O_EXCL)
    open_file(device, read_only=True).close()
    assert not caplog.messages
    open_file(device).close()
    assert caplog.messages == [
        f"{device} is mounted, or in use by this host in another way, which lsblk shows"
    ]
    os.close(fd)
    caplog.clear()
    open_file(device).close()
    assert not caplog.messages
