"""What is found out of the host: of files, of memory, and of block devices, real ones and made-up ones."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loop_device import loop_device
from tests.storage.images import (
    noise,
    skipped_without,
)
from vhostd.storage import abilities
from vhostd.storage.abilities import UNBOUNDED, Abilities
from vhostd.storage.image import Image

SIZE = 1 << 20
KIB, MIB = 1 << 10, 1 << 20
LIKES = {
    abilities.BLKSSZGET: 512,
    abilities.BLKPBSZGET: 4096,
    abilities.BLKIOMIN: 4096,
    abilities.BLKIOOPT: MIB,
}


# --- Files and memory -----------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "disk.img"
    path.write_bytes(noise(SIZE))
    return str(path)


@pytest.mark.parametrize("direct", [False, True])
def test_a_file(file: str, direct: bool) -> None:  # noqa: FBT001
    with skipped_without("--cache=direct"):
        image = Image.open(file, read_only=False, direct=direct)
    block = os.stat(file).st_blksize
    has = image.abilities
    assert (has.logical_block_size, has.physical_block_size) == (image.block_size, block)
    assert (has.discards, has.discard_granularity, has.discard_alignment) == (True, block, 0)
    assert (has.zeroes_fast, has.unmaps, has.max_discard) == (True, True, UNBOUNDED)
    assert (has.min_io_size, has.opt_io_size, has.alignment_offset) == (0, 0, 0)
    image.close()


def test_memory() -> None:
    image = Image.in_memory(SIZE)
    assert image.abilities.discards
    assert image.abilities.unmaps
    assert image.abilities.zeroes_fast
    image.close()


def test_a_file_that_may_only_be_read(file: str) -> None:
    image = Image.open(file, read_only=True, direct=False)
    has = image.abilities
    assert (has.discards, has.zeroes_fast, has.unmaps) == (False, False, False)
    image.close()


@pytest.mark.parametrize("punches", [False, True])
@pytest.mark.parametrize("zeroes", [False, True])
def test_file_systems_that_know_less(file: str, punches: bool, zeroes: bool) -> None:  # noqa: FBT001
    """NFS before 4.2, FAT and FUSE know neither; tmpfs, NFS 4.2 and ZFS no zeroes."""
    with open(file, "rb") as opened:
        has = abilities.of_file(opened.fileno(), punches=punches, zeroes=zeroes)
    assert (has.discards, has.unmaps, has.zeroes_fast) == (punches, punches, punches or zeroes)


@pytest.mark.parametrize(
    ("told", "wanted"), [(4096, 4096), (0, 512), (1, 512), (1536, 1024), (512, 512), (MIB, MIB)]
)
def test_blocks_that_are_none(told: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE file systems may tell anything."""

    class Stat:
        st_blksize = told

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda _: Stat)
        has = abilities.of_file(-1, punches=True, zeroes=True)
    assert has.discard_granularity == wanted


# --- Block devices that sysfs shows ---------------------------------------------------------------------


class Sysfs:
    """A folder like /sys that shows one device, 259:3."""

    def __init__(self, root: Path, *, partition: bool) -> None:
        self.root = root
        self._disk = disk = root / "devices/nvme0n1"
        self._queue = disk / "queue"
        self._queue.mkdir(parents=True)
        self._device = disk / "nvme0n1p3" if partition else disk
        if partition:
            self._device.mkdir()
            self._device.joinpath("partition").write_text("3\n")
            disk.joinpath("discard_alignment").write_text("77\n")  # the disk's own
        links = root / "dev/block"
        links.mkdir(parents=True)
        links.joinpath("259:3").symlink_to(self._device)

    def tell(self, **queue: int | str) -> None:
        for name, value in queue.items():
            self._queue.joinpath(name).write_text(f"{value}\n")

    def zero(self, mode: str) -> None:
        folder = self._disk / "device/scsi_disk/0:0:0:0"
        folder.mkdir(parents=True)
        folder.joinpath("zeroing_mode").write_text(f"{mode}\n")

    def align(self, discards: int) -> None:
        self._device.joinpath("discard_alignment").write_text(f"{discards}\n")


@pytest.fixture(params=[False, True], ids=["disk", "partition"])
def sysfs(request: pytest.FixtureRequest, tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys", partition=request.param)


class Ioctls:
    """Answers for a device; DISCARD is the error that a discard of nothing gets."""

    def __init__(self, discard: int = errno.ENOTTY, **also: int) -> None:
        self._discard = discard
        self._answers = {**LIKES, abilities.BLKALIGNOFF: also.get("alignment", 0)}

    def __call__(self, _fd: int, request: int, argument: bytes) -> bytes:
        if request == abilities.BLKDISCARD:
            assert struct.unpack("=QQ", argument) == (1, 0), "a range that nothing can be done with"
            raise OSError(self._discard, os.strerror(self._discard))
        return struct.pack("=I", self._answers[request] & 0xFFFF_FFFF)


def of_device(
    monkeypatch: pytest.MonkeyPatch, sysfs: Path, ioctls: Ioctls, *, read_only: bool = False
) -> Abilities:
    class Stat:
        st_rdev = os.makedev(259, 3)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", lambda _: Stat)
        patched.setattr(fcntl, "ioctl", ioctls)
        return abilities.of_device(-1, read_only=read_only, sysfs=str(sysfs))


def test_an_ssd(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.tell(discard_max_bytes=2 << 40, discard_granularity=4096, write_zeroes_max_bytes=128 * KIB)
    sysfs.align(512)
    assert of_device(monkeypatch, sysfs.root, Ioctls(alignment=3584)) == Abilities(
        logical_block_size=512,
        physical_block_size=4096,
        min_io_size=4096,
        opt_io_size=MIB,
        alignment_offset=3584,
        discards=True,
        discard_granularity=4096,
        discard_alignment=512,
        max_discard=2 << 40,
        zeroes_fast=True,
        unmaps=True,
    )


@pytest.mark.parametrize(("told", "wanted"), [(1024, 1024), (100, 0), (-1, 0), ((1 << 32) - 1, 0)])
def test_where_units_begin(sysfs: Sysfs, told: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where a discard can begin: -1 is said of disks put together of others that do not match."""
    sysfs.tell(discard_max_bytes=MIB, discard_granularity=4096)
    sysfs.align(told)
    assert of_device(monkeypatch, sysfs.root, Ioctls()).discard_alignment == wanted


def test_a_thin_pool(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Discards, but no zeroes."""
    sysfs.tell(discard_max_bytes=64 * KIB, discard_granularity=64 * KIB, write_zeroes_max_bytes=0)
    has = of_device(monkeypatch, sysfs.root, Ioctls())
    assert (has.discards, has.discard_granularity, has.max_discard) == (True, 64 * KIB, 64 * KIB)
    assert (has.zeroes_fast, has.unmaps) == (False, False)


def test_a_rotating_disk(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    """WRITE SAME and nothing else: what is zeroed stays allocated, whatever it is told."""
    sysfs.tell(discard_max_bytes=0, discard_granularity=0, write_zeroes_max_bytes=32 * MIB)
    has = of_device(monkeypatch, sysfs.root, Ioctls())
    assert (has.discards, has.zeroes_fast, has.unmaps) == (False, True, False)
    assert has.discard_granularity == 4096


@pytest.mark.parametrize(("told", "wanted"), [(0, False), (MIB, True)])
def test_linux_6_17_tells_whether_zeroes_give_space_back(
    sysfs: Sysfs,
    told: int,
    wanted: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sysfs.tell(discard_max_bytes=MIB, discard_granularity=512, write_zeroes_max_bytes=MIB)
    sysfs.tell(write_zeroes_unmap_max_bytes=told)
    assert of_device(monkeypatch, sysfs.root, Ioctls()).unmaps == wanted


@pytest.mark.parametrize(
    ("mode", "wanted"), [("writesame", False), ("writesame_16_unmap", True), ("writesame_10_unmap", True)]
)
def test_a_scsi_disk_tells_how_it_is_zeroed(
    sysfs: Sysfs,
    mode: str,
    wanted: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sysfs.tell(discard_max_bytes=MIB, discard_granularity=512, write_zeroes_max_bytes=MIB)
    sysfs.zero(mode)
    assert of_device(monkeypatch, sysfs.root, Ioctls()).unmaps == wanted


def test_a_scsi_disk_that_tells_nothing_is_like_any_other(
    sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    sysfs.tell(discard_max_bytes=MIB, discard_granularity=512, write_zeroes_max_bytes=MIB)
    sysfs.root.joinpath("devices/nvme0n1/device/scsi_disk").mkdir(parents=True)
    assert of_device(monkeypatch, sysfs.root, Ioctls()).unmaps


def test_units_that_are_larger_than_any_request(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.tell(discard_max_bytes=1 << 40, discard_granularity=3 << 30, write_zeroes_max_bytes=0)
    assert not of_device(monkeypatch, sysfs.root, Ioctls()).discards


@pytest.mark.parametrize(
    ("number", "wanted"), [(errno.EINVAL, True), (errno.EOPNOTSUPP, False), (errno.EPERM, False)]
)
def test_without_sysfs_only_what_ioctls_tell(
    tmp_path: Path,
    number: int,
    wanted: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a container: zeroes are not known to be fast."""
    has = of_device(monkeypatch, tmp_path, Ioctls(number))
    assert has == Abilities(512, 4096, 4096, MIB, discards=wanted, discard_granularity=4096)


@pytest.mark.parametrize("text", ["", "many", "-"])
def test_sysfs_that_makes_no_sense(sysfs: Sysfs, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("discard_max_bytes", "discard_granularity", "write_zeroes_max_bytes")
    sysfs.tell(**dict.fromkeys(names, text))
    has = of_device(monkeypatch, sysfs.root, Ioctls(errno.EOPNOTSUPP))
    assert has == Abilities(512, 4096, 4096, MIB, discard_granularity=4096)


def test_of_what_may_only_be_read_nothing_is_asked(sysfs: Sysfs, monkeypatch: pytest.MonkeyPatch) -> None:
    sysfs.tell(discard_max_bytes=MIB, discard_granularity=4096, write_zeroes_max_bytes=MIB)
    has = of_device(monkeypatch, sysfs.root, Ioctls(alignment=-1), read_only=True)
    assert has == Abilities(512, 4096, 4096, MIB)


# --- Block devices of this host -------------------------------------------------------------------------


@pytest.fixture
def backing(tmp_path: Path) -> Path:
    file = tmp_path / "backing"
    file.write_bytes(noise(SIZE))
    return file


@pytest.fixture(params=[512, 4096])
def device(request: pytest.FixtureRequest, backing: Path) -> Iterator[str]:
    with loop_device(backing, request.param) as path:
        yield path


def test_a_loop_device_as_sysfs_and_ioctls_tell_of_it(device: str) -> None:
    image = Image.open(device, read_only=False, direct=False)
    has = image.abilities
    assert has.discards
    assert has.discard_granularity >= has.physical_block_size
    assert has.logical_block_size == image.block_size
    without = abilities.of_device(image.fd, read_only=False, sysfs="/nowhere")
    assert without.discards
    assert not without.zeroes_fast
    image.close()


def test_asking_changes_nothing(device: str, backing: Path) -> None:
    before = os.stat(backing)
    Image.open(device, read_only=False, direct=False).close()
    after = os.stat(backing)
    assert (after.st_blocks, after.st_mtime_ns) == (before.st_blocks, before.st_mtime_ns)
    assert backing.read_bytes() == noise(SIZE)
