"""The config space and the feature bits: what a driver is told of each disk (virtio 1.3, 5.2.3 and 5.2.4)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.vhost_user_blk import driver
from tests.devices.vhost_user_blk.guest import SIZE, noise, open_image
from vhost_user_blk.config import Config, features_of
from vhost_user_blk.engine import SyncEngine
from vhost_user_blk.image import Image
from vhost_user_blk.protocol import ConfigSpace
from vhost_user_blk.requests import Requests
from vhostd import RefusedRequest

WCE = 32
ALWAYS = (1, 2, 4, 6, 9, 10, 11, 12)  # SIZE_MAX, SEG_MAX, GEOMETRY, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    image = open_image(tmp_path, SIZE)
    yield image
    image.close()


def config(
    image: Image,
    *,
    writeback: bool = True,
    queues: int = 1,
    queue_size: int = 128,
    block_sizes: tuple[int, int] = (512, 4096),
) -> Config:
    requests = Requests(image, SyncEngine(), "", writeback=writeback)
    features = features_of(image)
    return Config(requests, features, queues=queues, queue_size=queue_size, block_sizes=block_sizes)


def space(image: Image, **how: int) -> ConfigSpace:
    return ConfigSpace.unpack(config(image, **how).read())  # type: ignore[arg-type]  # passed on


def mask(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


# --- Reading --------------------------------------------------------------------------------------------


def test_all_of_it(image: Image) -> None:
    assert space(image) == ConfigSpace(
        capacity=SIZE // 512,
        size_max=0x7FFF_F000,
        seg_max=126,
        cylinders=0,
        heads=16,
        sectors=63,
        blk_size=512,
        physical_block_exp=3,
        alignment_offset=0,
        min_io_size=8,
        opt_io_size=0,
        writeback=1,
        unused0=0,
        num_queues=1,
        max_discard_sectors=0x3F_FFFF,
        max_discard_seg=256,
        discard_sector_alignment=8,
        max_write_zeroes_sectors=0x3F_FFFF,
        max_write_zeroes_seg=256,
        write_zeroes_may_unmap=1,
        unused1=bytes(3),
        max_secure_erase_sectors=0x3F_FFFF,
        max_secure_erase_seg=256,
        secure_erase_sector_alignment=1,
        zoned=bytes(24),
    )


@pytest.mark.parametrize("size", [0, 512, 1 << 20, (504 << 20) - 512, 8 << 40])
def test_the_capacity_and_what_partition_tools_of_old_see_of_it(image: Image, size: int) -> None:
    os.truncate(image.path, size)
    found = config(image)
    image.resize(image.measure())
    read = ConfigSpace.unpack(found.read())
    assert read.capacity == size // 512
    assert read.cylinders == min(size // (512 * 16 * 63), 16383)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((512, 512), (512, 0, 1, 1, 1)),
        ((512, 4096), (512, 3, 8, 8, 1)),
        ((4096, 4096), (4096, 0, 1, 8, 8)),
        ((512, 1 << 20), (512, 11, 2048, 2048, 1)),
        ((1 << 20, 1 << 20), (1 << 20, 0, 1, 2048, 2048)),
    ],
)
def test_blocks(image: Image, sizes: tuple[int, int], wanted: tuple[int, ...]) -> None:
    read = ConfigSpace.unpack(config(image, block_sizes=sizes).read())
    assert wanted == (
        read.blk_size,
        read.physical_block_exp,
        read.min_io_size,
        read.discard_sector_alignment,
        read.secure_erase_sector_alignment,
    )


@pytest.mark.parametrize(("queues", "queue_size"), [(1, 4), (4, 128), (256, 32768)])
def test_queues(image: Image, queues: int, queue_size: int) -> None:
    read = space(image, queues=queues, queue_size=queue_size)
    assert (read.num_queues, read.seg_max) == (queues, queue_size - 2)


@pytest.mark.parametrize("can", [False, True])
def test_zeroes_may_unmap_where_the_host_can(
    image: Image,
    can: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """5.2.5.2: the field is clear if and only if a WRITE_ZEROES cannot deallocate anything."""
    monkeypatch.setattr(image, "can_fallocate", lambda _: can)
    assert space(image).write_zeroes_may_unmap == can


# --- Writing --------------------------------------------------------------------------------------------


def test_the_cache_mode_is_the_driver_s_to_choose(image: Image) -> None:
    found = config(image)
    for value in (b"\0", b"\0", b"\1"):
        found.write(WCE, value)
        assert found.read()[WCE : WCE + 1] == value
    assert config(image, writeback=False).read()[WCE] == 0


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        *((offset, b"\0") for offset in range(96) if offset != WCE),
        *((WCE, bytes([value])) for value in (2, 3, 128, 255)),
        (WCE, b""),
        (WCE, b"\0\0"),
        (WCE - 1, b"\0\0"),
        (0, bytes(96)),
    ],
)
def test_nothing_else_is(image: Image, offset: int, data: bytes) -> None:
    found = config(image)
    before = found.read()
    with pytest.raises(RefusedRequest):
        found.write(offset, data)
    assert found.read() == before


# --- Features -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_file", "read_only", "more"),
    [
        (True, False, (driver.FEATURE_DISCARD, driver.FEATURE_WRITE_ZEROES)),
        (True, True, (driver.RO,)),
        (False, False, (driver.FEATURE_DISCARD, driver.FEATURE_WRITE_ZEROES)),
    ],
    ids=["file", "read-only", "ram"],
)
def test_features_of_each_image(
    tmp_path: Path,
    is_file: bool,  # noqa: FBT001
    read_only: bool,  # noqa: FBT001
    more: tuple[int, ...],
) -> None:
    image = open_image(tmp_path if is_file else None, SIZE, read_only=read_only)
    assert features_of(image) == mask(*ALWAYS, *more)
    image.close()


def test_no_discard_where_the_host_cannot_punch_holes(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(image, "fallocate", fail)
    assert features_of(image) == mask(*ALWAYS, driver.FEATURE_WRITE_ZEROES)


def test_secure_erase_where_the_host_can(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "is_device", True)
    monkeypatch.setattr(image, "erase_securely", lambda *_: None)
    assert features_of(image) == mask(*ALWAYS, 13, 14, 16)
    with open(image.path, "rb") as file:
        assert file.read() == noise(SIZE)
