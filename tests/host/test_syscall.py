"""System calls by number, with numbers and buffers for arguments."""

import errno
import os
from pathlib import Path

import pytest

from vhostd.host.syscall import FALLOCATE, FSTATFS, PRCTL, UNLINKAT, syscall

PR_GET_NAME = 16


def test_its_result(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert syscall(FALLOCATE, file.fileno(), 0, 4096, 8192) == 0
    assert (tmp_path / "file").stat().st_size == 4096 + 8192


def test_the_kernel_writes_to_a_bytearray() -> None:
    name = bytearray(16)
    syscall(PRCTL, PR_GET_NAME, name, 0, 0, 0)
    assert name.rstrip(b"\0").decode() + "\n" == Path("/proc/thread-self/comm").read_text()


def test_the_kernel_reads_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path, os.O_PATH)
    syscall(UNLINKAT, fd, b"file", 0)
    os.close(fd)
    assert not [*tmp_path.iterdir()]


def test_a_failure() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as failure:
        syscall(FSTATFS, -1, bytearray(256))
    assert failure.value.errno == errno.EBADF


def test_more_arguments_than_there_are() -> None:
    with pytest.raises(TypeError, match="six"):
        syscall(PRCTL, 1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize("argument", ["text", None, 1 << 64])
def test_what_is_no_argument(argument: object) -> None:
    with pytest.raises((TypeError, OverflowError)):
        syscall(PRCTL, argument)  # type: ignore[arg-type]
