"""The scripted front-end's pipes, from end to end."""

import asyncio
import os
from collections.abc import Iterator

import pytest

from tests.conftest import Run
from vhostd.frontend.pipe import PIECE, read_all, write_all
from vhostd.wire.fds import Fd

LONG = bytes(range(256)) * (3 * PIECE // 256)


@pytest.fixture
def ends() -> Iterator[tuple[Fd, Fd]]:
    """To read from, and to write to."""
    reading, writing = map(Fd, os.pipe())
    yield reading, writing
    reading.close()
    writing.close()


@pytest.mark.parametrize("data", [b"", b"x", LONG], ids=len)
def test_all_that_is_written_is_read(data: bytes, ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        reading = asyncio.create_task(read_all(ends[0]))
        await write_all(ends[1], data)
        ends[1].close()
        assert await reading == data

    run_async(main)


def test_nobody_reads(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        writing = asyncio.create_task(write_all(ends[1], LONG))
        await asyncio.sleep(0)
        ends[0].close()
        with pytest.raises(BrokenPipeError):
            await writing

    run_async(main)
