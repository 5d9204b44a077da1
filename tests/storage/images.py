"""Images, engines and bytes for them."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pytest

from vhostd import SetupError
from vhostd.storage import Engine, Image, make_engine

ENGINES = ("io_uring", "threads", "sync")
PATIENCE = 20.0  # seconds for what takes milliseconds


def open_image(path: Path | None, size: int, *, read_only: bool = False, direct: bool = False) -> Image:
    """An image of noise, of `size` bytes."""
    if path is None:
        image = Image.in_memory(size)
        os.pwrite(image.fd, noise(size), 0)
        return image
    file = path / "disk.img"
    file.write_bytes(noise(size))
    with skipped_without("--cache=direct"):
        return Image.open(str(file), read_only=read_only, direct=direct)


def engine_of(name: str) -> Engine:
    """An engine; skips the test where the host has no io_uring."""
    with skipped_without("io_uring"):
        return make_engine(name)


@contextmanager
def skipped_without(what: str) -> Iterator[None]:
    try:
        yield
    except SetupError as error:
        if what not in str(error):
            raise
        pytest.skip(str(error))


@lru_cache(256)
def noise(size: int, seed: int = 0) -> bytes:
    """Bytes of no order, the same each time."""
    return random.Random(seed).randbytes(size)


@contextmanager
def replaced(fd: int, path: str, flags: int = os.O_RDWR) -> Iterator[None]:
    """Has another file behind an fd: one from which the kernel gives real errors.

    /dev/full has no space, /proc/self/mem has no bytes at small addresses (EIO), and neither can be synced
    (EINVAL).
    """
    kept = os.dup(fd)
    other = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.dup2(other, fd, inheritable=False)
        os.close(other)
        yield
    finally:
        os.dup2(kept, fd, inheritable=False)
        os.close(kept)
