"""The config space and the feature bits: what a driver is told of each disk (virtio 1.3, 5.2.3 and 5.2.4)."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.devices.vhost_user_blk.guest import (
    SIZE,
)
from tests.storage.images import (
    noise,
    open_image,
)
from vhost_user_blk.config import Config, features_of
from vhost_user_blk.protocol import VirtioBlkConfig
from vhost_user_blk.requests import Requests
from vhostd import RefusedRequest
from vhostd.frontend.drivers import block as driver
from vhostd.storage.abilities import Abilities
from vhostd.storage.engine import SyncEngine
from vhostd.storage.image import Image

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
    return Config(requests, queues=queues, queue_size=queue_size, block_sizes=block_sizes)


def space(image: Image, **how: int) -> VirtioBlkConfig:
    return VirtioBlkConfig.unpack(config(image, **how).read())  # type: ignore[arg-type]  # passed on


def mask(*bits: int) -> int:
    return sum(1 << bit for bit in bits)


# --- Reading --------------------------------------------------------------------------------------------


def test_all_of_it(image: Image) -> None:
    assert space(image) == VirtioBlkConfig(
        capacity=SIZE // 512,
        size_max=0x104_1000,
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
        max_discard_sectors=0x4_0000,
        max_discard_seg=16,
        discard_sector_alignment=8,
        max_write_zeroes_sectors=0x8000,
        max_write_zeroes_seg=16,
        write_zeroes_may_unmap=1,
        unused1=bytes(3),
        max_secure_erase_sectors=0x4_0000,
        max_secure_erase_seg=16,
        secure_erase_sector_alignment=1,
        zoned=bytes(24),
    )


@pytest.mark.parametrize("queue_size", [4, 128, 1024, 32768])
def test_the_longest_request_fits_31_bits(image: Image, queue_size: int) -> None:
    read = space(image, queue_size=queue_size)
    assert 0x7FFF_FFFF - (read.seg_max << 12) <= read.size_max * read.seg_max + 0xFFF <= 0x7FFF_FFFF
    assert not read.size_max % 4096


@pytest.mark.parametrize("size", [0, 512, 1 << 20, (504 << 20) - 512, 8 << 40])
def test_the_capacity_and_what_partition_tools_of_old_see_of_it(image: Image, size: int) -> None:
    os.truncate(image.path, size)
    found = config(image)
    image.resize(image.measure())
    read = VirtioBlkConfig.unpack(found.read())
    assert read.capacity == size // 512
    assert read.cylinders == min(size // (512 * 16 * 63), 16383)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((512, 512), (512, 0, 1, 8, 1)),
        ((512, 4096), (512, 3, 8, 8, 1)),
        ((4096, 4096), (4096, 0, 1, 8, 8)),
        ((512, 1 << 20), (512, 11, 2048, 2048, 1)),
        ((1 << 20, 1 << 20), (1 << 20, 0, 1, 2048, 2048)),
    ],
)
def test_blocks(image: Image, sizes: tuple[int, int], wanted: tuple[int, ...]) -> None:
    read = VirtioBlkConfig.unpack(config(image, block_sizes=sizes).read())
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
) -> None:
    """5.2.5.2: the field is clear if and only if a WRITE_ZEROES cannot deallocate anything."""
    image.abilities = image.abilities._replace(unmaps=can)
    assert space(image).write_zeroes_may_unmap == can


KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("sizes", "host", "wanted"),
    [
        ((512, 4096), {}, (8, 0, 0)),
        ((512, 4096), {"min_io_size": 64 * KIB, "opt_io_size": MIB}, (128, 2048, 0)),
        ((4096, 4096), {"min_io_size": 64 * KIB, "opt_io_size": MIB}, (16, 256, 0)),
        ((512, 4096), {"min_io_size": 512}, (8, 0, 0)),
        ((4096, 4096), {"min_io_size": 6 * KIB}, (1, 0, 0)),
        ((512, 512), {"min_io_size": 0xFFFF * 512, "opt_io_size": 0xFFFF * 512}, (0xFFFF, 0xFFFF, 0)),
        ((512, 512), {"min_io_size": 1 << 25}, (1, 0, 0)),
        # A USB bridge's most, that Linux takes for its best: 65535 sectors.
        ((512, 4096), {"opt_io_size": 0xFFFF * 512}, (8, 0, 0)),
        ((512, 4096), {"alignment_offset": 3584}, (8, 0, 7)),
        ((4096, 4096), {"alignment_offset": 3584}, (1, 0, 0)),
        ((512, 1 << 20), {"alignment_offset": 255 * 512}, (2048, 0, 255)),
        ((512, 1 << 20), {"alignment_offset": 256 * 512}, (2048, 0, 0)),
    ],
)
def test_what_the_host_likes_in_logical_blocks(
    image: Image, sizes: tuple[int, int], host: dict[str, int], wanted: tuple[int, int, int]
) -> None:
    image.abilities = image.abilities._replace(**host)  # type: ignore[arg-type]  # numbers only
    read = VirtioBlkConfig.unpack(config(image, block_sizes=sizes).read())
    assert (read.min_io_size, read.opt_io_size, read.alignment_offset) == wanted


@pytest.mark.parametrize(
    ("host", "wanted"),
    [
        ({"discard_granularity": 512}, (0x4_0000, 16, 1)),
        ({"discard_granularity": 64 * KIB}, (0x4_0000, 16, 128)),
        ({"discard_granularity": 3 * 512 * KIB}, (85 * 3072, 16, 3072)),  # a RAID of three disks
        ({"discard_granularity": 1 << 30}, (1 << 21, 2, 1 << 21)),
        ({"discard_granularity": 2 << 30}, (1 << 22, 1, 1 << 22)),
        ({"max_discard": MIB}, (2048, 16, 1)),
        ({"max_discard": 2 * MIB + 512, "discard_granularity": 4096}, (4096, 16, 8)),
        ({"max_discard": 512, "discard_granularity": 4096}, (2048, 16, 8)),
        ({"max_discard": 4096, "discard_granularity": 768 * KIB}, (3072, 16, 1536)),
        ({"max_discard": (1 << 32) - 1}, (0x4_0000, 16, 1)),
    ],
)
def test_discards_of_whole_units_of_the_host_s(
    image: Image, host: dict[str, int], wanted: tuple[int, int, int]
) -> None:
    """The host may ignore a part of a unit: then a disk of which all is discarded would keep some."""
    image.abilities = Abilities(discards=True, **host)  # type: ignore[arg-type]  # numbers only
    read = VirtioBlkConfig.unpack(config(image, block_sizes=(512, 512)).read())
    assert (read.max_discard_sectors, read.max_discard_seg, read.discard_sector_alignment) == wanted
    assert read.max_discard_sectors * read.max_discard_seg * 512 <= 2 << 30
    assert read.max_discard_sectors % read.discard_sector_alignment == 0


def test_few_zeroes_where_each_has_to_be_written(image: Image) -> None:
    image.abilities = Abilities()
    read = space(image)
    assert (read.max_write_zeroes_sectors, read.max_write_zeroes_seg) == (0x8000, 1)
    assert not read.write_zeroes_may_unmap


def test_nothing_is_given_back_if_nothing_is_to_be(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(noise(SIZE))
    kept = [
        Image.open(str(tmp_path / "disk.img"), read_only=False, direct=False, discard=False),
        Image.in_memory(SIZE, discard=False),
    ]
    for image in kept:
        assert features_of(image) == mask(*ALWAYS, driver.FEATURE_WRITE_ZEROES)
        assert not space(image).write_zeroes_may_unmap
        image.close()


# --- Writing --------------------------------------------------------------------------------------------


def test_the_cache_mode_is_the_driver_s_to_choose(image: Image) -> None:
    found = config(image)
    for value in (b"\0", b"\0", b"\1"):
        found.write(WCE, value)
        assert found.read()[WCE : WCE + 1] == value
    assert config(image, writeback=False).read()[WCE] == 0


@pytest.mark.parametrize("offset", [offset for offset in range(96) if offset != WCE])
def test_nothing_else_is(image: Image, offset: int) -> None:
    found = config(image)
    before = found.read()
    with pytest.raises(RefusedRequest):
        found.write(offset, bytes([before[offset] ^ 1]))
    assert found.read() == before


@pytest.mark.parametrize("value", [2, 3, 128, 255])
def test_there_are_two_write_caches(image: Image, value: int) -> None:
    found = config(image)
    before = found.read()
    with pytest.raises(RefusedRequest):
        found.write(WCE, bytes([value]))
    assert found.read() == before


@pytest.mark.parametrize(("first", "end"), [(WCE, WCE + 4), (WCE - 1, WCE + 1), (WCE, WCE), (0, 96)])
def test_what_is_around_it_may_be_written_as_it_is(image: Image, first: int, end: int) -> None:
    """As front-ends do that write four bytes at a time, or all."""
    found = config(image)
    data = bytearray(found.read())
    for writeback in (0, 1) if first < end else (1,):
        data[WCE] = writeback
        found.write(first, bytes(data[first:end]))
        assert found.read() == data
        if first < end:
            other = bytearray(data)
            other[WCE - 1 if first < WCE else WCE + 1] ^= 1
            with pytest.raises(RefusedRequest):
                found.write(first, bytes(other[first:end]))
            assert found.read() == data


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


def test_no_discard_where_the_host_cannot_punch_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Image, "fallocate", fail)
    image = open_image(tmp_path, SIZE)
    image.close()
    assert features_of(image) == mask(*ALWAYS, driver.FEATURE_WRITE_ZEROES)


def test_secure_erase_where_the_host_can(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "is_device", True)
    monkeypatch.setattr(image, "erase_securely", lambda *_: None)
    assert features_of(image) == mask(*ALWAYS, 13, 14, 16)
    with open(image.path, "rb") as file:
        assert file.read() == noise(SIZE)


# --- A state for another program ------------------------------------------------------------------------


def test_the_driver_s_choice_of_the_cache_goes_along(image: Image) -> None:
    for writeback, initial in itertools.product((True, False), repeat=2):
        destination = config(image, writeback=initial)
        assert not destination.load(config(image, writeback=writeback).save())
        assert VirtioBlkConfig.unpack(destination.read()).writeback == writeback


def test_a_disk_of_another_size(image: Image, tmp_path: Path) -> None:
    (tmp_path / "larger").mkdir()
    larger = open_image(tmp_path / "larger", SIZE + 4096)
    try:
        assert config(larger).load(config(image).save())
        with pytest.raises(RefusedRequest, match=f"a disk of {SIZE + 4096} bytes, and this one has {SIZE}"):
            config(image).load(config(larger).save())
    finally:
        larger.close()


def test_a_state_that_is_wrong_changes_nothing(image: Image) -> None:
    state, destination = config(image).save(), config(image, writeback=False)
    for wrong in (*(state[:size] for size in range(len(state))), state + b"\0", state[:8] + b"\2"):
        with pytest.raises(RefusedRequest):
            destination.load(wrong)
    assert destination.save() == config(image, writeback=False).save()
