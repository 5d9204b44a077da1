"""Bouncing: any range of a file in whole units, of which nothing else changes; and how far a file grows."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.storage.images import (
    noise,
)
from vhostd.storage import bounce

UNIT = 4096
quick = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def fd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A file; the host is one that moves whole units only."""
    preadv, pwritev = os.preadv, os.pwritev

    def read(fd: int, buffers: list[memoryview], offset: int) -> int:
        expect_units(buffers, offset)
        return preadv(fd, buffers, offset)

    def write(fd: int, buffers: list[memoryview], offset: int, flags: int) -> int:
        expect_units(buffers, offset)
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(os, "pwritev", write)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def expect_units(buffers: list[memoryview], offset: int) -> None:
    assert not offset % UNIT
    assert not any(len(each) % UNIT for each in buffers)


def fill(fd: int, length: int) -> bytes:
    """Gives the file new contents."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, noise(length), 0)
    return noise(length)


def contents(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


PLACES = st.integers(0, 5 * UNIT) | st.sampled_from([0, 512, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT, 3 * UNIT])
SIZES = st.integers(1, 3 * UNIT) | st.sampled_from([1, 512, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT])


@quick
@given(length=PLACES, offset=PLACES, size=SIZES)
def test_read(fd: int, length: int, offset: int, size: int) -> None:
    data = fill(fd, length)
    assert bounce.read(fd, UNIT, offset, size) == data[offset : offset + size]
    assert contents(fd) == data


@quick
@given(length=PLACES, offset=PLACES, size=SIZES)
def test_write(fd: int, length: int, offset: int, size: int) -> None:
    wanted = bytearray(fill(fd, length).ljust(offset, b"\0"))
    wanted[offset : offset + size] = noise(size, 1)
    assert bounce.write(fd, UNIT, offset, noise(size, 1), 0) == size
    assert contents(fd) == wanted


def test_a_file_that_others_make_longer_meanwhile_is_not_cut(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(fd, 100)
    pwritev = os.pwritev

    def growing(*arguments: object) -> int:
        done = pwritev(*arguments)  # type: ignore[arg-type]
        os.pwrite(fd, b"x", 3 * UNIT)
        return done

    monkeypatch.setattr(os, "pwritev", growing)
    bounce.write(fd, UNIT, 512, bytes(512), 0)
    assert len(contents(fd)) == 3 * UNIT + 1


def test_a_host_that_moves_one_unit_at_a_time(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: preadv(fd, [buffers[0][:UNIT]], at))
    monkeypatch.setattr(
        os, "pwritev", lambda fd, buffers, at, flags: pwritev(fd, [buffers[0][:UNIT]], at, flags)
    )
    data = bytearray(fill(fd, 4 * UNIT))
    assert bounce.read(fd, UNIT, 512, 3 * UNIT) == data[512 : 512 + 3 * UNIT]
    data[512 : 512 + 3 * UNIT] = noise(3 * UNIT, 1)
    bounce.write(fd, UNIT, 512, noise(3 * UNIT, 1), 0)
    assert contents(fd) == data


def test_flags_are_passed_on(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(fd, UNIT)
    pwritev, seen = os.pwritev, []

    def noting(fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        seen.append(flags)
        return pwritev(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "pwritev", noting)
    bounce.write(fd, UNIT, 512, bytes(512), os.RWF_DSYNC)
    assert seen == [os.RWF_DSYNC]


def test_errors_are_the_host_s(fd: int) -> None:
    with open("/dev/full", "r+b", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        bounce.write(full.fileno(), UNIT, 0, bytes(UNIT), 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        bounce.read(-1, UNIT, 0, 512)
    assert contents(fd) == b""
