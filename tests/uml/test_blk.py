"""vhost-user-blk behind User-mode Linux: another front-end, and another kernel, than QEMU's guest has."""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Program, executable, listening
from tests.uml.linux import NEWER, Device, Linux
from vhostd.virtio.vocabulary import DeviceType, Feature

pytestmark = pytest.mark.guest

MIB = 1 << 20
SECTOR = 512
SIZE = 64 * MIB
SERIAL = "twenty-characters-01"  # as many as there can be
CHECKOUT = Path(__file__).parents[2]

FIO = (
    "fio --name=verified --direct=1 --ioengine=libaio --rw=randwrite --size=8M --eta=never "
    "--verify=crc32c --verify_fatal=1 --verify_state_save=0"
)

# The kernel's words for requests that failed, and for answers to requests that it did not make.
COMPLAINT = re.compile(r"I/O error|is not a head|EXT4-fs error|blocked for more than")


def serve(folder: Path, *options: str) -> Iterator[Path]:
    """A disk's socket, until its program is told to end."""
    folder.mkdir()
    with listening([executable("vhost-user-blk"), *options], folder / "disk.sock") as program:
        yield folder / "disk.sock"
        program.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where everything is that these tests share."""
    return tmp_path_factory.mktemp("uml")


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    """An image without a content."""
    path = folder / "image"
    path.touch()
    os.truncate(path, SIZE)
    return path


@pytest.fixture(scope="module")
def fixed_image(folder: Path) -> Path:
    """An image that nobody may write to."""
    path = folder / "fixed"
    path.write_bytes(os.urandom(MIB))
    return path


@pytest.fixture(scope="module")
def disk(folder: Path, image: Path) -> Iterator[Path]:
    yield from serve(folder / "first", f"--blk-file={image}", f"--serial={SERIAL}", "--num-queues=4")


@pytest.fixture(scope="module")
def fixed_disk(folder: Path, fixed_image: Path) -> Iterator[Path]:
    yield from serve(folder / "second", f"--blk-file={fixed_image}", "--read-only")


@pytest.fixture(scope="module")
def booted(folder: Path, disk: Path, fixed_disk: Path) -> Iterator[Linux]:
    with Linux(folder, Device(disk, DeviceType.BLOCK), Device(fixed_disk, DeviceType.BLOCK)) as linux:
        yield linux


@pytest.fixture
def linux(booted: Linux) -> Iterator[Linux]:
    """The guest of all tests, with the disks vda and vdb; its kernel has nothing to complain of."""
    yield booted
    assert COMPLAINT.findall(booted.console()) == []


def attributes(linux: Linux, disk: str, *names: str) -> list[str]:
    """What these files below /sys/block say of a disk."""
    return [linux.shell(f"cat /sys/block/{disk}/{name}") for name in names]


def allocated(image: Path) -> int:
    """The bytes that an image takes on this side's disk."""
    with image.open("rb") as file:
        os.fsync(file)  # what is not yet allocated becomes so
    return image.stat().st_blocks * SECTOR


def digest(data: bytes) -> str:
    """As sha256sum shows it."""
    return hashlib.sha256(data).hexdigest()


def test_the_disks_are_found(linux: Linux) -> None:
    assert attributes(linux, "vda", "size", "serial", "ro") == [str(SIZE // SECTOR), SERIAL, "0"]
    assert attributes(linux, "vda", "cache_type", "queue/logical_block_size") == ["write back", "512"]
    assert attributes(linux, "vdb", "size", "ro") == [str(MIB // SECTOR), "1"]


def test_its_rings_are_packed(linux: Linux) -> None:
    """It takes whatever is offered. That it says 0 for where they begin is no matter."""
    found = linux.shell("cat /sys/bus/virtio/devices/*/features").split()
    assert [bits[Feature.RING_PACKED] for bits in found] == ["1", "1"]


def test_one_processor_takes_one_queue_of_several(linux: Linux) -> None:
    assert linux.shell("nproc") == "1"
    assert linux.shell("ls /sys/block/vda/mq") == "0"


def test_what_may_only_be_read(linux: Linux, fixed_image: Path) -> None:
    before = fixed_image.read_bytes()
    assert linux.shell("sha256sum </dev/vdb").split()[0] == digest(before)
    status, said = linux.run("dd if=/dev/zero of=/dev/vdb bs=4k count=1")
    assert status == 1
    assert "Operation not permitted" in said or "Read-only" in said
    assert fixed_image.read_bytes() == before


def test_what_is_written_is_read(linux: Linux, image: Path) -> None:
    linux.shell(
        f"{FIO} --filename=/dev/vda --iodepth=32 --bsrange=512-256k --numjobs=2 --offset_increment=8M"
    )
    assert linux.shell("sha256sum </dev/vda").split()[0] == digest(image.read_bytes())


def test_a_file_system(linux: Linux, image: Path) -> None:
    """It is whole, and has the files, as the guest sees it and as this side does."""
    linux.shell("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt")
    linux.shell(f"cp -r {CHECKOUT}/vhostd /mnt && {FIO} --filename=/mnt/file --iodepth=8 --bs=4k --fsync=32")
    linux.shell("sync && umount /mnt && echo 3 >/proc/sys/vm/drop_caches && fsck.ext4 -fn /dev/vda")
    linux.shell(f"mount /dev/vda /mnt && diff -r {CHECKOUT}/vhostd /mnt/vhostd && umount /mnt")
    subprocess.run(["/sbin/e2fsck", "-fn", image], check=True, capture_output=True)
    command = ["/sbin/debugfs", "-R", "cat /vhostd/errors.py", str(image)]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    assert shown == (CHECKOUT / "vhostd/errors.py").read_bytes()


def test_space_is_given_back(linux: Linux, image: Path) -> None:
    """By the file system when files are removed, and when all of the disk is discarded."""
    linux.shell("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt")
    linux.shell("dd if=/dev/urandom of=/mnt/file bs=1M count=16 conv=fsync")
    before = allocated(image)
    linux.shell("rm /mnt/file && sync && fstrim /mnt && umount /mnt")
    assert before - allocated(image) > 15 * MIB
    linux.shell("blkdiscard -f /dev/vda")
    assert allocated(image) < MIB  # what the host's file system needs to know of the file
    assert linux.shell(f"cmp -n {SIZE} /dev/vda /dev/zero") == ""


def test_growth(linux: Linux, image: Path) -> None:
    """The program notices, and tells the guest through the back-end's channel."""
    (before,) = attributes(linux, "vda", "size")
    grown = int(before) + 32 * MIB // SECTOR
    os.truncate(image, grown * SECTOR)
    linux.shell(f'until [ "$(cat /sys/block/vda/size)" = {grown} ]; do :; done')
    linux.shell(f"dd if=/dev/urandom of=/dev/vda bs=1M seek={SIZE // MIB} count=32 conv=fsync")
    assert linux.shell("sha256sum </dev/vda").split()[0] == digest(image.read_bytes())


def test_a_driver_may_let_go_of_the_disk_and_take_it_again(linux: Linux, image: Path) -> None:
    """This front-end sends no GET_VRING_BASE for that."""
    driver = "/sys/bus/virtio/drivers/virtio_blk"
    linux.shell(f"echo virtio0 >{driver}/unbind; [ ! -e /sys/block/vda ]")
    linux.shell(f"echo virtio0 >{driver}/bind; [ -e /sys/block/vda ]")
    assert linux.shell("sha256sum </dev/vda").split()[0] == digest(image.read_bytes())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where `program` listens."""
    return tmp_path / "disk.sock"


@pytest.fixture
def program(path: Path) -> Iterator[Program]:
    """A program that a test may end, with a disk in memory."""
    with listening([executable("vhost-user-blk"), "--ram=64M"], path) as program:
        yield program


def keep_busy(linux: Linux) -> None:
    """Writes to the disk, and verifies, until it goes away."""
    linux.shell(
        f"{FIO} --filename=/dev/vda --iodepth=16 --bs=4k --loops=1000000 --output=/tmp/fio >/tmp/said 2>&1 &"
    )
    linux.shell("until read -r _ _ _ _ writes _ </sys/block/vda/stat && [ $writes -gt 100 ]; do :; done")


@pytest.mark.skipif(
    NEWER.is_dir(),
    reason="Linux 7.2 may wait for ever for requests that a disk had, whichever program that was",
)
def test_a_program_may_end_under_load(program: Program, path: Path, tmp_path: Path) -> None:
    """The guest loses the disk, and goes on without."""
    with Linux(tmp_path, Device(path, DeviceType.BLOCK)) as linux:
        keep_busy(linux)
        program.stop()
        linux.shell("while [ -e /sys/block/vda ]; do :; done")


def test_a_guest_may_be_killed_under_load(program: Program, path: Path, tmp_path: Path) -> None:
    """The program serves the next one, which may reboot, too."""
    with Linux(tmp_path, Device(path, DeviceType.BLOCK)) as linux:
        keep_busy(linux)
    with Linux(tmp_path, Device(path, DeviceType.BLOCK)) as linux:
        linux.shell(
            "head -c 8M /dev/urandom >/tmp/written && dd if=/tmp/written of=/dev/vda bs=1M conv=fsync"
        )
        written = linux.shell("sha256sum </tmp/written")
        linux.reboot()
        assert linux.shell("head -c 8M /dev/vda | sha256sum") == written
    program.stop()
