"""Block devices of all kinds as a disk's host: run by tests/guest/test_host_devices.py inside the guest.

What is offered is what the device has; a discard reaches it, and one that it has not writes nothing. The
kernel's own counters and maps of the device say so.
"""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.storage.images import (
    noise,
)
from vhost_user_blk.config import Config, features_of
from vhost_user_blk.protocol import BlkFeature, VirtioBlkConfig
from vhost_user_blk.requests import Requests
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.block import UNSUPP, BlockDriver, FailedRequest
from vhostd.storage.clearing import discarding, zeroing
from vhostd.storage.engine import SyncEngine
from vhostd.storage.image import Image

KIB, MIB = 1 << 10, 1 << 20
SECTOR = 512
CONFIGFS = Path("/sys/kernel/config")
NULL_BLK = CONFIGFS / "nullb"
SCSI_DEBUG = Path("/sys/bus/pseudo/drivers/scsi_debug")
CHUNK = 64 * KIB  # of the thin pool
PATIENCE = 20.0

DISCARD, WRITE_ZEROES = 1 << BlkFeature.DISCARD, 1 << BlkFeature.WRITE_ZEROES


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def dmsetup(*arguments: str) -> str:
    """Runs it; it makes the nodes itself, for there is no udev here."""
    return run("env", "DM_DISABLE_UDEV=1", "dmsetup", *arguments)


class Counts(NamedTuple):
    """What a device was asked for."""

    written: int
    discarded: int


class Node:
    """A block device."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/dev/{name}"

    def counts(self) -> Counts:
        """Sectors so far (Documentation/block/stat.rst)."""
        fields = [int(text) for text in Path(f"/sys/block/{self.name}/stat").read_text().split()]
        return Counts(fields[6], fields[13])

    def fill(self, size: int = 4 * MIB) -> bytes:
        """Has noise at the beginning, on the device itself."""
        with open(self.path, "r+b") as file:
            file.write(noise(size))
            file.flush()
            os.fsync(file.fileno())
        return noise(size)

    def read(self, size: int = 4 * MIB) -> bytes:
        """What is on the device, and not in a page cache."""
        run("blockdev", "--flushbufs", self.path)
        with open(self.path, "rb") as file:
            return file.read(size)


@contextmanager
def opened(node: Node, *, direct: bool = False, discard: bool = True) -> Iterator[Image]:
    image = Image.open(node.path, read_only=False, direct=direct, discard=discard)
    try:
        yield image
    finally:
        image.close()


def offers(image: Image) -> tuple[int, VirtioBlkConfig]:
    """The features that count here, and the config space."""
    requests = Requests(image, SyncEngine(), "", writeback=True)
    sizes = (image.block_size, max(image.physical_block_size, image.block_size))
    config = Config(requests, queues=1, queue_size=128, block_sizes=sizes)
    return features_of(image) & (DISCARD | WRITE_ZEROES), VirtioBlkConfig.unpack(config.read())


def discard(image: Image, offset: int, size: int) -> None:
    for _ in discarding(image, offset, size):
        pass


def zero(image: Image, offset: int, size: int, *, may_unmap: bool = False) -> None:
    assert sum(zeroing(image, offset, size, may_unmap=may_unmap)) == size


def with_zeroes(data: bytes, offset: int, size: int) -> bytes:
    return data[:offset] + bytes(size) + data[offset + size :]


# --- Devices --------------------------------------------------------------------------------------------


@contextmanager
def null_blk(**settings: int) -> Iterator[Node]:
    """A device in memory."""
    if not NULL_BLK.exists():
        run("mount", "-t", "configfs", "configfs", str(CONFIGFS))
    before = set(os.listdir("/sys/block"))
    folder = NULL_BLK / "tested"
    folder.mkdir()
    try:
        for name, value in {"memory_backed": 1, "size": 64, **settings}.items():
            folder.joinpath(name).write_text(str(value))
        folder.joinpath("power").write_text("1")
        (name,) = set(os.listdir("/sys/block")) - before
        yield Node(name)
    finally:
        folder.rmdir()


@contextmanager
def scsi_debug(**parameters: int) -> Iterator[Node]:
    """A SCSI disk in memory."""
    settings = [f"{name}={value}" for name, value in {"dev_size_mb": 32, "delay": 0, **parameters}.items()]
    run("busybox", "insmod", os.environ["SCSI_DEBUG"], *settings)
    try:
        yield Node(
            appeared(lambda: [path.name for path in SCSI_DEBUG.glob("adapter0/host*/target*/*/block/*")])
        )
    finally:
        run("busybox", "rmmod", "scsi_debug")


def appeared(names: Callable[[], list[str]]) -> str:
    """The device, which the kernel looks at for a moment before it is there."""

    async def main() -> str:
        async with asyncio.timeout(PATIENCE):
            while not (found := [name for name in names() if os.path.exists(f"/dev/{name}")]):
                await asyncio.sleep(0)
            return found[0]

    return asyncio.run(main())


def provisioned() -> int:
    """The units that scsi_debug keeps, of a block each if it is not told otherwise."""
    ranges = [part.split("-") for part in SCSI_DEBUG.joinpath("map").read_text().strip().split(",") if part]
    return sum(int(ends[-1]) - int(ends[0]) + 1 for ends in ranges)


@contextmanager
def thin() -> Iterator[Node]:
    """A volume of a thin pool on RAM disks, which have discards or not, as the kernel has it."""
    with open("/dev/ram0", "r+b") as file:
        file.write(bytes(4096))
    data = int(run("blockdev", "--getsz", "/dev/ram1"))
    pool = f"0 {data} thin-pool /dev/ram0 /dev/ram1 {CHUNK // SECTOR} 0"
    dmsetup("create", "pool", "--table", pool)
    try:
        dmsetup("message", "pool", "0", "create_thin 0")
        volume = f"0 {8 * MIB // SECTOR} thin /dev/mapper/pool 0"
        dmsetup("create", "volume", "--table", volume)
        try:
            yield Node(f"dm-{os.minor(os.stat('/dev/mapper/volume').st_rdev)}")
        finally:
            dmsetup("remove", "--retry", "volume")
    finally:
        dmsetup("remove", "--retry", "pool")


def used_chunks() -> int:
    """Of the thin pool."""
    return int(dmsetup("status", "pool").split()[5].split("/")[0])


@contextmanager
def loop(path: Path, sector_size: int) -> Iterator[Node]:
    path.write_bytes(noise(4 * MIB))
    name = run("losetup", "--find", "--show", f"--sector-size={sector_size}", str(path)).strip()
    try:
        yield Node(os.path.basename(name))
    finally:
        run("losetup", "--detach", name)


@pytest.fixture
def memory_folder() -> Iterator[Path]:
    """A folder of a file system that can make holes: the guest's own is 9p with an overlay."""
    folder = Path("/dev/shm/images")
    folder.mkdir()
    yield folder
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


# --- Devices with discards, but no zeroes ---------------------------------------------------------------


@pytest.mark.parametrize("direct", [False, True])
def test_null_blk_with_discard(direct: bool) -> None:  # noqa: FBT001
    """PUNCH_HOLE, which asks for zeroes, it does not know: discards are ones."""
    with null_blk(discard=1, blocksize=512) as node, opened(node, direct=direct) as image:
        features, space = offers(image)
        assert features == DISCARD | WRITE_ZEROES
        assert (space.write_zeroes_may_unmap, space.max_write_zeroes_seg) == (0, 1)
        before = node.fill()
        start = node.counts()
        discard(image, MIB, 2 * MIB)
        assert node.counts() == Counts(start.written, start.discarded + 2 * MIB // SECTOR)
        assert node.read() == with_zeroes(before, MIB, 2 * MIB)  # as this device does it
        zero(image, 3 * MIB + 512, 512 * KIB, may_unmap=True)
        now = node.counts()
        assert now.written - start.written == 512 * KIB // SECTOR
        assert now.discarded - start.discarded == 2 * MIB // SECTOR
        wanted = with_zeroes(with_zeroes(before, MIB, 2 * MIB), 3 * MIB + 512, 512 * KIB)
        assert node.read() == wanted


def test_a_thin_pool_gets_its_chunks_back() -> None:
    with thin() as node, opened(node) as image:
        features, space = offers(image)
        assert features == DISCARD | WRITE_ZEROES
        assert space.discard_sector_alignment == CHUNK // SECTOR
        assert space.max_discard_sectors % space.discard_sector_alignment == 0
        assert space.write_zeroes_may_unmap == 0
        node.fill()
        full = used_chunks()
        discard(image, MIB, 2 * MIB)
        assert full - used_chunks() == 2 * MIB // CHUNK
        discard(image, 512, CHUNK)  # parts of two chunks: nothing to give back
        assert full - used_chunks() == 2 * MIB // CHUNK
        assert node.read()[:MIB] == noise(4 * MIB)[:MIB]
        discard(image, 0, image.size)
        assert used_chunks() == 0


def test_a_thin_pool_whose_volume_is_to_keep_its_chunks() -> None:
    with thin() as node, opened(node, discard=False) as image:
        assert offers(image)[0] == WRITE_ZEROES
        before = node.fill()
        full = used_chunks()
        zero(image, MIB, MIB, may_unmap=True)
        assert used_chunks() == full
        assert node.read() == with_zeroes(before, MIB, MIB)


# --- Devices without discards ---------------------------------------------------------------------------


def test_null_blk_without_discard() -> None:
    with null_blk(discard=0, blocksize=4096) as node, opened(node) as image:
        features, space = offers(image)
        assert features == WRITE_ZEROES
        assert (space.blk_size, space.write_zeroes_may_unmap, space.max_write_zeroes_seg) == (4096, 0, 1)
        before = node.fill()
        start = node.counts()
        with pytest.raises(OSError, match="not supported"):
            discard(image, 0, MIB)
        assert node.counts() == start
        zero(image, 512, MIB, may_unmap=True)  # the blocks at either end in part only
        os.fsync(image.fd)
        assert node.read() == with_zeroes(before, 512, MIB)


def test_past_the_page_cache_parts_of_blocks_are_rewritten() -> None:
    with null_blk(blocksize=4096) as node, opened(node, direct=True) as image:
        before = node.fill()
        zero(image, 512, MIB)
        assert node.read() == with_zeroes(before, 512, MIB)
        zero(image, 2 * MIB + 1024, 512)
        assert node.read() == with_zeroes(with_zeroes(before, 512, MIB), 2 * MIB + 1024, 512)


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_scsi_disk_without_discard(sector_size: int) -> None:
    """It has WRITE SAME: zeroes are fast, and give nothing back."""
    with scsi_debug(sector_size=sector_size) as node, opened(node) as image:
        features, space = offers(image)
        assert features == WRITE_ZEROES
        assert (space.blk_size, space.write_zeroes_may_unmap) == (sector_size, 0)
        before = node.fill()
        start = node.counts()
        with pytest.raises(OSError, match="not supported"):
            discard(image, 0, 8 * MIB)
        assert node.counts() == start
        zero(image, MIB + 512, MIB, may_unmap=True)
        os.fsync(image.fd)
        assert node.read() == with_zeroes(before, MIB + 512, MIB)


# --- SCSI disks with discards ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lbpu", "lbpws", "lbpws10"])
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_a_scsi_disk_with_discard(how: str, sector_size: int) -> None:
    with scsi_debug(sector_size=sector_size, **{how: 1}) as node, opened(node) as image:
        features, space = offers(image)
        assert features == DISCARD | WRITE_ZEROES
        assert (space.blk_size, space.write_zeroes_may_unmap) == (sector_size, int(how != "lbpu"))
        assert space.discard_sector_alignment * SECTOR >= sector_size
        before = node.fill()
        full = provisioned()
        discard(image, MIB, 2 * MIB)
        assert full - provisioned() == 2 * MIB // sector_size
        assert node.read() == with_zeroes(before, MIB, 2 * MIB)
        discard(image, 512, 512)
        assert full - provisioned() == (2 * MIB + (512 if sector_size == 512 else 0)) // sector_size


def test_zeroes_that_give_space_back() -> None:
    with scsi_debug(lbpws=1, lbpu=1) as node, opened(node) as image:
        assert offers(image)[1].write_zeroes_may_unmap == 1
        before = node.fill()
        full = provisioned()
        zero(image, 0, MIB, may_unmap=False)
        assert provisioned() == full
        zero(image, MIB, MIB, may_unmap=True)
        assert full - provisioned() == MIB // SECTOR
        assert node.read() == with_zeroes(before, 0, 2 * MIB)


def test_zeroes_that_are_to_keep_space() -> None:
    with scsi_debug(lbpws=1, lbpu=1) as node, opened(node, discard=False) as image:
        features, space = offers(image)
        assert (features, space.write_zeroes_may_unmap) == (WRITE_ZEROES, 0)
        before = node.fill()
        full = provisioned()
        zero(image, 0, MIB, may_unmap=True)
        assert provisioned() == full
        assert node.read() == with_zeroes(before, 0, MIB)


@pytest.mark.parametrize("how", ["lbpws", "lbpu"])
@pytest.mark.parametrize("may_unmap", [False, True])
def test_nothing_old_is_left_in_the_page_cache(how: str, may_unmap: bool) -> None:  # noqa: FBT001
    """As it once was with QEMU, and a disk like these: what was written last was read after it was zeroed."""
    with scsi_debug(sector_size=4096, **{how: 1}) as node, opened(node) as image:
        node.fill()
        new = noise(4 * MIB, 1)
        os.pwrite(image.fd, new, 0)  # and not yet on the disk
        zero(image, 512, 2 * MIB, may_unmap=may_unmap)
        wanted = with_zeroes(new, 512, 2 * MIB)
        assert os.pread(image.fd, 4 * MIB, 0) == wanted
        discard(image, 3 * MIB, 512 * KIB)
        assert os.pread(image.fd, 4 * MIB, 0) == with_zeroes(wanted, 3 * MIB, 512 * KIB)
        os.fsync(image.fd)
        assert node.read() == with_zeroes(wanted, 3 * MIB, 512 * KIB)


def test_sizes_that_a_scsi_disk_likes() -> None:
    """Units of 8 blocks that begin 3 blocks before the disk's; physical blocks of 4096 bytes."""
    sizes = {"unmap_granularity": 16, "unmap_alignment": 3, "physblk_exp": 3, "lowest_aligned": 7}
    with scsi_debug(lbpu=1, opt_blks=256, **sizes) as node, opened(node) as image:
        has = image.abilities
        assert (has.logical_block_size, has.physical_block_size) == (512, 4096)
        assert (has.discard_granularity, has.opt_io_size, has.alignment_offset) == (8192, 128 * KIB, 7 * 512)
        _, space = offers(image)
        assert (space.physical_block_exp, space.min_io_size, space.opt_io_size) == (3, 8, 256)
        assert (space.alignment_offset, space.discard_sector_alignment) == (7, 16)


def test_a_partition() -> None:
    """Its queue is the disk's."""
    with scsi_debug(lbpu=1, num_parts=2, unmap_granularity=16) as disk:
        partition = Node(
            appeared(lambda: [Path(path).name for path in Path(f"/sys/block/{disk.name}").glob("sd*2")])
        )
        with opened(partition) as image:
            assert image.abilities.discards
            assert image.abilities.discard_granularity == 8192
            first = int(Path(f"/sys/class/block/{partition.name}/start").read_text()) * SECTOR
            assert (first + image.abilities.discard_alignment) % 8192 == 0
            partition.fill()
            full = provisioned()
            discard(image, 0, image.size)
            assert full - provisioned() == 4 * MIB // 8192


# --- Others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sector_size", [512, 4096])
@pytest.mark.parametrize("direct", [False, True])
def test_a_loop_device(memory_folder: Path, sector_size: int, direct: bool) -> None:  # noqa: FBT001
    file = memory_folder / "file"
    with loop(file, sector_size) as node, opened(node, direct=direct) as image:
        assert offers(image)[0] == DISCARD | WRITE_ZEROES
        before = os.stat(file).st_blocks
        discard(image, MIB, MIB)
        assert before - os.stat(file).st_blocks == MIB // SECTOR
        zero(image, 2 * MIB, MIB, may_unmap=False)
        zero(image, 3 * MIB, 512 * KIB, may_unmap=True)
        assert node.read() == with_zeroes(noise(4 * MIB), MIB, 2 * MIB + 512 * KIB)


def test_a_ram_disk() -> None:
    node = Node("ram2")
    with opened(node) as image:
        told = int(Path("/sys/block/ram2/queue/discard_max_bytes").read_text())
        assert bool(offers(image)[0] & DISCARD) == bool(told)
        before = node.fill()
        zero(image, 512, MIB, may_unmap=True)
        os.fsync(image.fd)
        assert node.read() == with_zeroes(before, 512, MIB)


def test_the_program_in_its_sandbox() -> None:
    """From a guest's request to the device; and what is not offered is refused, and writes nothing."""

    async def main(sock: socket.socket, *, offered: bool) -> None:
        memory, frontend = SharedMemory(1 << 20), Frontend(sock)
        await frontend.negotiate()
        await frontend.share(memory)
        driver = await BlockDriver.start(frontend, memory)
        try:
            async with asyncio.timeout(PATIENCE):
                if offered:
                    await driver.discard((2048, 2048), (8192, 2048))
                else:
                    with pytest.raises(FailedRequest) as raised:
                        await driver.discard((2048, 2048))
                    assert raised.value.status == UNSUPP
                await driver.write_zeroes((0, 8), unmap=True)
        finally:
            frontend.close()
            driver.close()
            memory.close()

    for offered in (True, False):
        with null_blk(discard=1, blocksize=512) as node:
            before = node.fill(8 * MIB)
            start = node.counts()
            ours, theirs = socket.socketpair()
            option = "--discard=on" if offered else "--discard=off"
            with theirs:
                program = Path(sys.executable).with_name("vhost-user-blk")
                command = [str(program), f"--fd={theirs.fileno()}", f"--blk-file={node.path}", option]
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
            try:
                asyncio.run(main(ours, offered=offered))
                _, log = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
            assert process.returncode == 0, log
            discarded = 2 * MIB // SECTOR if offered else 0
            assert node.counts() == Counts(start.written + 8, start.discarded + discarded)
            wanted = with_zeroes(before, 0, 4096)
            if offered:
                wanted = with_zeroes(with_zeroes(wanted, MIB, MIB), 4 * MIB, MIB)
            assert node.read(8 * MIB) == wanted
