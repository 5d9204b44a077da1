"""Discards, zeroes and erasures: the way that is taken, the steps that it is taken in, and what is left."""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.storage.images import (
    noise,
)
from vhostd.storage import image as module
from vhostd.storage.abilities import Abilities
from vhostd.storage.clearing import STEP, discarding, erasing, whole_blocks, zeroing
from vhostd.storage.image import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Image

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZE = 64 * KIB
ALLOCATE = 0
FAST = Abilities(discards=True, zeroes_fast=True, unmaps=True)

Call = tuple[Any, int, int]


class Host:
    """An image on a host that notes what it is asked for, and knows no `unknown` ways."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        has: Abilities,
        *,
        is_device: bool = False,
        is_memory: bool = False,
    ) -> None:
        self.image = Image.in_memory(8 * GIB)
        self.image.is_device, self.image.is_memory = is_device, is_memory
        self.image.abilities, self.image.block_size = has, has.logical_block_size
        self.calls: list[Call] = []
        self.errors: dict[object, int] = {}
        monkeypatch.setattr(self.image, "fallocate", self._note)
        monkeypatch.setattr(self.image, "discard", lambda *range_: self._note("discard", *range_))
        monkeypatch.setattr(self.image, "write_zeroes", lambda *range_: self._note("write", *range_))
        monkeypatch.setattr(self.image, "erase_securely", lambda *range_: self._note("erase", *range_))

    def _note(self, what: object, offset: int, size: int) -> None:
        assert size > 0
        self.calls.append((what, offset, size))
        if what in self.errors:
            raise OSError(self.errors[what], "no")

    def ways(self) -> list[object]:
        """What was asked for since, each way once for each time it was turned to."""
        names = [what for what, _, _ in self.calls]
        self.calls = []
        return [name for i, name in enumerate(names) if not i or names[i - 1] != name]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Host]]:
    hosts: list[Host] = []

    def make(has: Abilities, **kind: bool) -> Host:
        hosts.append(Host(monkeypatch, has, **kind))
        return hosts[-1]

    yield make
    for each in hosts:
        each.image.close()


Make = Callable[..., Host]


# --- Ways -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "kind", "may_unmap", "wanted"),
    [
        (FAST, {}, True, PUNCH_HOLE),
        (FAST, {}, False, ZERO_RANGE),
        (FAST, {"is_memory": True}, False, PUNCH_HOLE),
        (FAST.keeping_space(), {}, True, ZERO_RANGE),
        (FAST.keeping_space(), {"is_memory": True}, True, ZERO_RANGE),
        (FAST, {"is_device": True}, True, PUNCH_HOLE),
        (FAST, {"is_device": True}, False, ZERO_RANGE),
        (Abilities(discards=True), {"is_device": True}, True, ZERO_RANGE),
        (Abilities(), {"is_device": True}, True, ZERO_RANGE),
    ],
)
def test_the_best_way(
    make: Make,
    has: Abilities,
    kind: dict[str, bool],
    may_unmap: bool,  # noqa: FBT001
    wanted: int,
) -> None:
    made = make(has, **kind)
    assert sum(zeroing(made.image, 512, MIB, may_unmap=may_unmap)) == MIB
    assert made.calls == [(wanted, 512, MIB)]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.ENOTTY])
def test_what_the_host_turns_out_to_lack_is_remembered(make: Make, number: int) -> None:
    made = make(FAST)
    made.errors = {ZERO_RANGE: number}
    ways: list[list[object]] = [[ZERO_RANGE, PUNCH_HOLE, ALLOCATE], [PUNCH_HOLE, ALLOCATE]]
    for wanted in ways:
        assert sum(zeroing(made.image, 0, MIB, may_unmap=False)) == MIB
        assert made.ways() == wanted
    made.errors[ALLOCATE] = number  # as on ZFS
    ways = [[PUNCH_HOLE, ALLOCATE, "write"], ["write"]]
    for wanted in ways:
        assert sum(zeroing(made.image, 0, MIB, may_unmap=False)) == MIB
        assert made.ways() == wanted
    made.errors[PUNCH_HOLE] = number
    ways = [[PUNCH_HOLE, "write"], ["write"]]
    for wanted in ways:
        assert sum(zeroing(made.image, 0, MIB, may_unmap=True)) == MIB
        assert made.ways() == wanted


def test_what_is_not_aligned_as_the_file_system_wants_it_is_not_remembered(make: Make) -> None:
    """GPFS says EINVAL then."""
    made = make(FAST)
    made.errors = {ZERO_RANGE: errno.EINVAL, PUNCH_HOLE: errno.EINVAL}
    for _ in range(2):
        assert sum(zeroing(made.image, 512, 3 * MIB, may_unmap=True)) == 3 * MIB
        assert made.ways() == [PUNCH_HOLE, ZERO_RANGE, PUNCH_HOLE, "write"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EFBIG])
def test_other_errors_are_the_caller_s(make: Make, number: int) -> None:
    made = make(FAST)
    made.errors = dict.fromkeys((PUNCH_HOLE, ZERO_RANGE, "discard", "erase"), number)
    for steps in (
        zeroing(made.image, 0, MIB, may_unmap=True),
        zeroing(made.image, 0, MIB, may_unmap=False),
        discarding(made.image, 0, MIB),
        erasing(made.image, 0, MIB),
    ):
        with pytest.raises(OSError, match="no") as raised:
            next(steps)
        assert raised.value.errno == number
    assert not made.image.lacking


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_there_is_no_way_after_the_last(make: Make, number: int) -> None:
    made = make(Abilities())
    made.errors = dict.fromkeys((PUNCH_HOLE, ZERO_RANGE, ALLOCATE, "write"), number)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            next(zeroing(made.image, 0, MIB, may_unmap=False))


# --- Steps ----------------------------------------------------------------------------------------------


def test_nothing_is_done_before_it_is_asked_for(make: Make) -> None:
    made = make(FAST)
    steps = discarding(made.image, 0, GIB)
    assert made.calls == []
    for done in range(1, 4):
        assert next(steps) == STEP
        assert len(made.calls) == done
    assert list(discarding(made.image, 5, 0)) == list(zeroing(made.image, 5, 0, may_unmap=True)) == []
    assert list(erasing(made.image, 5, 0)) == []


@pytest.mark.parametrize("kind", [{}, {"is_device": True}])
@pytest.mark.parametrize(
    ("unit", "first", "start", "size"),
    [
        (512, 0, 0, 2 * GIB),
        (64 * KIB, 0, 512, 2 * GIB - 1024),
        (3 * 512 * KIB, 0, 512, GIB),
        (MIB, 7 * 512, 4096, GIB),
        (GIB, 0, 512, 4 * GIB),
    ],
)
def test_steps_end_between_the_host_s_units(
    make: Make, kind: dict[str, bool], unit: int, first: int, start: int, size: int
) -> None:
    made = make(FAST._replace(discard_granularity=unit, discard_alignment=first), **kind)
    steps = list(discarding(made.image, start, size))
    assert sum(steps) == size
    assert max(steps) <= max(STEP, unit)
    at = start
    for (_, offset, count), step in zip(made.calls, steps, strict=True):
        assert (offset, count) == (at, step)
        at += step
        assert at == start + size or (at - first) % unit == 0


@pytest.mark.parametrize(
    ("has", "is_device", "most"),
    [(FAST, False, STEP), (FAST, True, STEP), (Abilities(), True, MIB), (Abilities(), False, STEP)],
)
def test_as_much_at_a_time_as_is_done_fast(make: Make, has: Abilities, is_device: bool, most: int) -> None:  # noqa: FBT001
    """Where a device's zeroes are written, by the kernel, a step is as short as if we wrote them."""
    made = make(has, is_device=is_device)
    assert max(zeroing(made.image, 0, GIB, may_unmap=True)) == most


def test_a_way_that_is_lost_in_the_middle(make: Make) -> None:
    """The steps that are left are as short as the next way wants them."""
    made = make(FAST)
    steps = zeroing(made.image, 0, 3 * STEP, may_unmap=False)
    assert next(steps) == STEP
    made.errors = dict.fromkeys((ZERO_RANGE, PUNCH_HOLE), errno.EOPNOTSUPP)
    assert set(steps) == {MIB}
    assert made.calls[-1] == ("write", 3 * STEP - MIB, MIB)


# --- Blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "size", "wanted"),
    [
        (0, 4096, (0, 4096)),
        (0, 8192 + 512, (0, 8192)),
        (512, 8192, (4096, 8192)),
        (512, 512, (1024, 1024)),
        (3584, 1024, (4608, 4608)),
        (4096, 512, (4608, 4608)),
        (3584, 512, (4096, 4096)),
        (8192, 0, (8192, 8192)),
    ],
)
def test_whole_blocks(make: Make, offset: int, size: int, wanted: tuple[int, int]) -> None:
    made = make(Abilities(logical_block_size=4096), is_device=True)
    assert whole_blocks(made.image, offset, size) == wanted


def test_a_discard_of_less_than_a_block(make: Make) -> None:
    made = make(FAST._replace(logical_block_size=4096), is_device=True)
    assert list(discarding(made.image, 512, 4096)) == []
    assert list(discarding(made.image, 512, 8192)) == [4096]
    assert made.calls == [("discard", 4096, 4096)]


def test_zeroes_of_parts_of_blocks_are_written(make: Make) -> None:
    made = make(FAST._replace(logical_block_size=4096), is_device=True)
    assert sum(zeroing(made.image, 3584, 9216, may_unmap=False)) == 9216
    assert made.calls == [("write", 3584, 512), (ZERO_RANGE, 4096, 8192), ("write", 12288, 512)]
    made.calls = []
    assert sum(zeroing(made.image, 512, 1024, may_unmap=False)) == 1024
    assert made.calls == [("write", 512, 1024)]


def test_a_file_has_no_such_parts(make: Make) -> None:
    """Its file system does them; only O_DIRECT wants more, and only of what is written."""
    made = make(FAST._replace(logical_block_size=4096))
    assert list(zeroing(made.image, 512, 1024, may_unmap=True)) == [1024]
    assert list(discarding(made.image, 512, 1024)) == [1024]
    assert made.calls == [(PUNCH_HOLE, 512, 1024), ("discard", 512, 1024)]


# --- What is left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacking", [set(), {"zero"}, {"zero", "refill"}, {"punch"}])
@pytest.mark.parametrize("may_unmap", [False, True])
def test_what_is_in_a_file_after_each_way(tmp_path: Path, lacking: set[str], may_unmap: bool) -> None:  # noqa: FBT001
    path = tmp_path / "disk.img"
    path.write_bytes(noise(SIZE))
    image = Image.open(str(path), read_only=False, direct=False)
    image.lacking |= lacking
    before = os.stat(path).st_blocks
    for offset, size in ((512, 1024), (8192, 32768)):
        assert sum(zeroing(image, offset, size, may_unmap=may_unmap)) == size
    freed = before - os.stat(path).st_blocks
    image.close()
    wanted = bytearray(noise(SIZE))
    wanted[512:1536], wanted[8192:40960] = bytes(1024), bytes(32768)
    assert path.read_bytes() == wanted
    if may_unmap and "punch" not in lacking:
        assert freed * 512 >= 28 * KIB
    else:
        assert freed <= 0


def test_a_file_that_is_to_keep_its_space(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(noise(SIZE))
    image = Image.open(str(path), read_only=False, direct=False, discard=False)
    before = os.stat(path).st_blocks
    assert sum(zeroing(image, 0, SIZE, may_unmap=True)) == SIZE
    assert os.stat(path).st_blocks >= before
    assert path.read_bytes() == bytes(SIZE)
    image.close()


def test_a_discard_of_a_device_is_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int, tuple[int, ...]]] = []

    def ioctl(fd: int, request: int, argument: bytes) -> bytes:
        calls.append((fd, request, struct.unpack("=QQ", argument)))
        return argument

    made = make(FAST, is_device=True)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    Image.discard(made.image, 512, 4096)
    assert calls == [(made.image.fd, 0x1277, (512, 4096))]


def test_a_discard_of_a_file_is_a_hole(make: Make) -> None:
    made = make(FAST)
    Image.discard(made.image, 512, 4096)
    assert made.calls == [(PUNCH_HOLE, 512, 4096)]


def test_a_hole_is_filled_without_a_change_of_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(noise(SIZE))
    image = Image.open(str(path), read_only=False, direct=False)
    image.lacking.add("zero")
    modes: list[int] = []

    def fallocate(_number: int, _fd: int, mode: int, _offset: int, _size: int) -> int:
        modes.append(mode)
        return 0

    monkeypatch.setattr(module, "syscall", fallocate)
    assert list(zeroing(image, 0, SIZE, may_unmap=False)) == [SIZE]
    assert modes == [PUNCH_HOLE | KEEP_SIZE, KEEP_SIZE]
    image.close()
