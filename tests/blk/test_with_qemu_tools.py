"""vhost-user-blk behind qemu-io and qemu-img, a front-end and a driver that nobody here has written."""

import json
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.blk.newer_qemu import qemu_img, qemu_io, vhost_user
from tests.blk.scripted import guest
from tests.conftest import Run
from tests.programs import PATIENCE, Program, executable, listening
from vhostd.frontend.drivers.block import IOERR, SECTOR, FailedRequest

KIB, MIB = 1 << 10, 1 << 20
SIZE = 8 * MIB
MODES = (
    ("writeback", "io_uring"),
    ("writeback", "threads"),
    ("writeback", "sync"),
    ("writethrough", "io_uring"),
    ("writethrough", "threads"),
    ("direct", "io_uring"),
    ("direct", "threads"),
    ("direct", "sync"),
)


class Disk:
    """A program that serves `image` at `path`."""

    def __init__(self, image: Path, path: Path, program: Program) -> None:
        self.image = image
        self.path = path
        self.program = program

    def io(self, *commands: str, read_only: bool = False) -> str:
        """What qemu-io says to these commands, of which none may fail."""
        arguments = [argument for command in commands for argument in ("-c", command)]
        mode = ["-r"] if read_only else []
        return run(qemu_io(*mode, "--image-opts", vhost_user(self.path, read_only=read_only), *arguments))

    def holds(self, pattern: int, offset: int, size: int) -> bool:
        """Whether the image consists of one byte from `offset` on."""
        return self.image.read_bytes()[offset : offset + size] == bytes([pattern]) * size


def run(command: Sequence[str]) -> str:
    """What a command says, which must end with status 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def serve(folder: Path, *options: str) -> Iterator[Disk]:
    """A disk of random bytes, until its program is told to end."""
    image, path = folder / "disk.img", folder / "disk.sock"
    image.write_bytes(random.Random(1).randbytes(SIZE))
    # Its log is the tests' own, so that a pipe that nobody reads cannot fill.
    with listening(
        [executable("vhost-user-blk"), f"--blk-file={image}", *options], path, stderr=2
    ) as program:
        yield Disk(image, path, program)
        program.stop()


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(mode))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    """One in every mode."""
    cache, aio = request.param
    yield from serve(tmp_path, f"--cache={cache}", f"--aio={aio}")


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Disk]:
    """One as it is without options."""
    yield from serve(tmp_path)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Disk]:
    """One that nobody may write."""
    yield from serve(tmp_path, "--read-only")


def test_what_is_written_is_read(disk: Disk) -> None:
    disk.io("write -P 0xa5 0 1M", "read -P 0xa5 0 1M", f"write -P 0x5a {SIZE - 64 * KIB} 64k", "flush")
    disk.io("read -P 0xa5 0 1M", f"read -P 0x5a {SIZE - 64 * KIB} 64k")
    assert disk.holds(0xA5, 0, MIB)
    assert disk.holds(0x5A, SIZE - 64 * KIB, 64 * KIB)


def test_sectors(disk: Disk) -> None:
    """Requests that are aligned to nothing larger than a sector, in front of and behind others' bytes."""
    disk.io("write -P 1 0 64k", "write -P 2 512 512", "write -P 3 1536 7k", "write -P 4 33280 512")
    disk.io("read -P 1 0 512", "read -P 2 512 512", "read -P 1 1k 512", "read -P 3 1536 7k")
    disk.io("read -P 1 8704 24576", "read -P 4 33280 512", "read -P 1 33792 31744", "flush")
    assert disk.holds(3, 1536, 7 * KIB)


def test_requests_of_many_pieces(disk: Disk) -> None:
    disk.io("writev -P 0x11 4k 4k 8k 512 64k 1k 1536", "readv -P 0x11 4k 512 512 76k 2k")
    assert disk.holds(0x11, 4 * KIB, 79 * KIB)


def test_many_at_a_time(disk: Disk) -> None:
    writes = [f"aio_write -q -P {number + 1} {number * 64}k 64k" for number in range(100)]
    disk.io(*writes, "aio_flush", *(f"aio_read -q -P {n + 1} {n * 64}k 64k" for n in range(100)), "aio_flush")
    assert all(disk.holds(number + 1, number * 64 * KIB, 64 * KIB) for number in range(100))


def test_the_image_becomes_another_and_comes_back(disk: Disk, tmp_path: Path) -> None:
    """Converts, to the disk and from it, and compares."""
    source, copy = tmp_path / "source.img", tmp_path / "copy.img"
    source.write_bytes(random.Random(2).randbytes(SIZE // 2) + bytes(SIZE // 4) + b"\xff" * (SIZE // 4))
    target = vhost_user(disk.path)
    run(qemu_img("convert", "-n", "--image-opts", raw(source), "--target-image-opts", target))
    assert disk.image.read_bytes() == source.read_bytes()
    run(qemu_img("compare", "--image-opts", raw(source), target))
    run(qemu_img("convert", "--image-opts", target, "-O", "raw", str(copy)))
    assert copy.read_bytes() == source.read_bytes()


def raw(image: Path) -> str:
    """What --image-opts opens: a file as it is."""
    return f"driver=raw,file.driver=file,file.filename={image}"


def test_discarded_space_is_given_back(disk: Disk) -> None:
    before = disk.image.stat().st_blocks
    disk.io("write -P 7 0 4M", "discard 1M 2M", "read -P 7 0 1M", "read -P 0 1M 2M", "read -P 7 3M 1M")
    assert disk.image.stat().st_blocks <= before - 2 * MIB // 512


def test_zeroes_keep_their_space(disk: Disk) -> None:
    before = disk.image.stat().st_blocks
    disk.io("write -z 1M 1M", "write -z 512 1k", "read -P 0 1M 1M", "read -P 0 512 1k")
    assert disk.holds(0, MIB, MIB)
    assert disk.image.stat().st_blocks >= before


def test_zeroes_may_give_their_space_back(disk: Disk) -> None:
    before = disk.image.stat().st_blocks
    disk.io("write -P 7 0 4M", "write -z -u 1M 1M", "read -P 7 0 1M", "read -P 0 1M 1M", "read -P 7 2M 2M")
    assert disk.image.stat().st_blocks <= before - MIB // 512


def test_the_size_is_the_files(plain: Disk) -> None:
    info = run(qemu_img("info", "--output=json", "--image-opts", vhost_user(plain.path)))
    assert json.loads(info)["virtual-size"] == SIZE


def test_one_front_end_after_the_other(plain: Disk) -> None:
    """The last of them is killed in the middle of its requests."""
    bench = ("bench", "-w", "-c", "10000000", "-d", "32", "--image-opts", vhost_user(plain.path))
    for number in range(1, 4):
        plain.io(f"write -P {number} 0 64k", f"read -P {number} 0 64k")
        with Program(qemu_img(*bench), stderr=subprocess.DEVNULL) as front_end:
            # It writes zeros.
            front_end.until(lambda _: plain.holds(0, 0, 64 * KIB))
    plain.io("write -P 9 0 64k", "read -P 9 0 64k")


def test_nobody_writes_what_is_read_only(read_only: Disk, run_async: Run) -> None:
    before = read_only.image.read_bytes()
    read_only.io("read 0 1M", f"read {SIZE - 512} 512", read_only=True)
    refused = subprocess.run(
        qemu_io("--image-opts", vhost_user(read_only.path), "-c", "write 0 512"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "read-only" in refused.stdout + refused.stderr

    async def main() -> None:
        async with guest(read_only.path) as (_, driver):
            for attempt in (driver.write(0, bytes(512)), driver.write_zeroes((0, 1)), driver.discard((0, 1))):
                with pytest.raises(FailedRequest):
                    await attempt
            await driver.flush()
            assert await driver.read(0, 4096) == before[:4096]

    run_async(main)
    assert read_only.image.read_bytes() == before


def test_past_the_end(disk: Disk, run_async: Run) -> None:
    """qemu-io does not send such requests; a guest may. The image stays as it is, and as long as it is."""
    before = disk.image.read_bytes()
    end = SIZE // SECTOR

    async def main() -> None:
        async with guest(disk.path) as (_, driver):
            assert await driver.read(end - 1, SECTOR) == before[-SECTOR:]
            for sector, size in ((end, 512), (end - 1, 1024), (end + 8, 4096), ((1 << 64) - 1, 512)):
                for attempt in (driver.read(sector, size), driver.write(sector, b"x" * size)):
                    with pytest.raises(FailedRequest) as failure:
                        await attempt
                    assert failure.value.status == IOERR
            for ranges in ([(end, 1)], [(0, 0), (end - 1, 2)], [((1 << 64) - 1, 2)]):
                for attempt in (driver.discard(*ranges), driver.write_zeroes(*ranges)):
                    with pytest.raises(FailedRequest):
                        await attempt
            assert await driver.read(0, SECTOR) == before[:SECTOR]

    run_async(main)
    assert disk.image.read_bytes() == before


def test_the_serial_number(tmp_path: Path, run_async: Run) -> None:
    disks = serve(tmp_path, "--serial=A serial of 20 byte")
    disk = next(disks)

    async def main() -> None:
        async with guest(disk.path) as (_, driver):
            assert await driver.get_id() == "A serial of 20 byte"

    run_async(main)
    assert next(disks, None) is None


def test_a_file_that_is_replaced_stays_the_disk(plain: Disk) -> None:
    """Who has opened it keeps it: a copy that takes its name is another disk."""
    copy = plain.image.with_name("copy")
    copy.write_bytes(plain.image.read_bytes())
    os.replace(copy, plain.image)
    plain.io("write -P 1 0 64k", "read -P 1 0 64k")
    assert not plain.holds(1, 0, 64 * KIB)
