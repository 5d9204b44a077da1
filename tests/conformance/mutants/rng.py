"""Faults of a source of entropy."""

import os
import signal
from itertools import count
from typing import Any

from tests.conformance.faults import breaks
from vhost_user_rng import device

getrandom = os.getrandom


def gives(source: Any) -> None:
    """Has each buffer filled by a function of its size."""
    device.os.getrandom = source  # type: ignore[attr-defined]  # a module's module


@breaks("RNG-1", "came back empty")
def nothing_at_all() -> None:
    """Buffers come back empty."""
    gives(lambda _size: b"")


@breaks("RNG-2", "the same bytes came twice")
def few_bytes_in_turn() -> None:
    """After a few buffers the bytes begin anew."""
    numbers = count()
    gives(lambda size: bytes([1 + next(numbers) % 4]) * size)


@breaks("RNG-3", "of 64 bytes were filled")
def half() -> None:
    """Half of a buffer is filled."""
    gives(lambda size: getrandom(-(-size // 2)))


@breaks("RNG-4", "the first buffer is empty")
def last_buffer_only() -> None:
    """Of several buffers the last is filled."""
    gives(lambda size: bytes(size - 64 if size > 64 else 0) + getrandom(min(size, 64)))


@breaks("RNG-5", "was ended by SIGKILL")
def nowhere_to_write() -> None:
    """It writes also where it may only read."""

    def source(size: int) -> bytes:
        if not size:
            signal.raise_signal(signal.SIGKILL)
        return getrandom(size)

    gives(source)
