"""Kicks and interrupts as messages, behind User-mode Linux: each stands still until it is acked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import Program, executable, listening
from tests.uml.linux import Device, Linux
from vhostd.virtio.vocabulary import DeviceType

pytestmark = pytest.mark.guest

OFFER = "--offer=default,inband-notifications"
FIO = (
    "fio --name=verified --filename=/dev/vda --direct=1 --ioengine=libaio --rw=randwrite --size=8M "
    "--eta=never --iodepth=32 --bsrange=512-256k --verify=crc32c --verify_fatal=1 --verify_state_save=0"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.sock"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(64 << 20))
    return path


@pytest.fixture
def program(path: Path, image: Path) -> Iterator[Program]:
    """A disk's program that tells of every message."""
    command = [executable("vhost-user-blk"), f"--blk-file={image}", "--log-level=debug", OFFER]
    with listening(command, path) as program:
        yield program


def test_a_disk(program: Program, path: Path, image: Path, tmp_path: Path) -> None:
    with Linux(tmp_path, Device(path, DeviceType.BLOCK)) as linux:
        assert "< VRING_KICK index=0" in program.hear("VRING_KICK"), "and no SET_VRING_KICK before it"
        program.hear("> back-end BACKEND_VRING_CALL index=0")
        linux.shell(FIO)
        linux.shell("mkfs.ext4 -q -F /dev/vda && mount /dev/vda /mnt && echo kept >/mnt/file && umount /mnt")
        linux.shell("echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind")
        linux.shell("echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind")
        linux.shell("mount /dev/vda /mnt && grep kept /mnt/file && umount /mnt && fsck.ext4 -fn /dev/vda")
    program.stop()
    assert b"kept\n" in image.read_bytes()
