"""Reader: nobody else waits for a file that hangs, and no byte is lost or given twice."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.line import Line, opened_line
from vhostd.host.reader import Reader
from vhostd.host.threads import CLOSE_PATIENCE


@pytest.fixture
def line() -> Iterator[Line]:
    with opened_line() as line:
        yield line


@contextmanager
def opened(path: str | Path) -> Iterator[Reader]:
    reader = Reader(str(path))
    try:
        yield reader
    finally:
        reader.close()


async def take(reader: Reader, size: int) -> bytes:
    """So many bytes; on a busy machine they may come in pieces."""
    taken = b""
    while len(taken) < size:
        await reader.fill(size - len(taken))
        taken += reader.take(size - len(taken))
    return taken


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, run_async: Run) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")

    async def main() -> None:
        with opened(path) as reader:
            assert (reader.at_hand, reader.take(1)) == (0, b"")
            await reader.fill(4)
            await reader.fill(4)
            assert (reader.at_hand, reader.take(3), reader.take(3), reader.take(3)) == (4, b"012", b"3", b"")
            await reader.fill(100)
            assert reader.take(100) == b"456789"
            for _ in range(2):
                with pytest.raises(EOFError):
                    await reader.fill(1)

    run_async(main)


def test_an_error_of_the_file(run_async: Run) -> None:
    async def main() -> None:
        with opened("/proc/self/mem") as reader, pytest.raises(OSError, match="Input/output error"):
            await reader.fill(1)

    run_async(main)


def test_who_is_cancelled_loses_nothing(line: Line, run_async: Run) -> None:
    async def main() -> None:
        with opened(line.path) as reader:
            for _ in range(3):  # of which all wait for the same read
                waiting = asyncio.create_task(reader.fill(8))
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            line.write(b"first")
            assert await take(reader, 5) == b"first"
            line.write(b"second")
            await asyncio.gather(reader.fill(6), reader.fill(6))
            assert await take(reader, 6) == b"second"

    run_async(main)


def test_what_is_there_is_not_kept_back_for_more(line: Line, run_async: Run) -> None:
    async def main() -> None:
        with opened(line.path) as reader:
            line.write(b"few")
            await reader.fill(4096)
            assert reader.take(4096) == b"few"
            line.write(b"more")
            assert await take(reader, 4) == b"more"

    run_async(main)


def test_a_slow_device_is_asked_for_little(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may collect all that it is asked for before it gives any of it."""
    asked = []

    def read(_fd: int, size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    async def fill(reader: Reader, patience: float) -> int:
        monkeypatch.setattr("vhostd.host.reader.PATIENCE", patience)
        await reader.fill(4096)
        return len(reader.take(4096))

    async def main() -> None:
        asked.clear()
        with opened("/dev/null") as reader:
            assert [await fill(reader, patience) for patience in (0, 60, 60, 0, 0)] == [
                64,
                4096,
                4096,
                4096,
                64,
            ]
            assert asked == [64, 64, 512, 3520, 4096, 4096, 64]

    monkeypatch.setattr(os, "read", read)
    run_async(main)


def test_the_end_comes_after_a_long_wait(line: Line, run_async: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for bytes must not go on without any."""
    monkeypatch.setattr("vhostd.host.reader.PATIENCE", 0)

    async def main() -> None:
        with opened(line.path) as reader:
            waiting = asyncio.create_task(reader.fill(8))
            await asyncio.sleep(0)
            line.hang_up()
            with pytest.raises((EOFError, OSError)):
                await waiting

    run_async(main)


def test_closing_waits_only_a_moment_for_a_file_that_hangs(line: Line, run_async: Run) -> None:
    async def main() -> None:
        reader = Reader(line.path)
        waiting = asyncio.create_task(reader.fill(8))
        await asyncio.sleep(0)
        while not reader._threads._waiting.empty():  # until the thread has begun to read
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        before = time.monotonic()
        reader.close()
        assert CLOSE_PATIENCE / 2 <= time.monotonic() - before < 20
        line.write(b"the end")  # of the thread

    run_async(main)


def test_a_terminal_does_not_become_ours(line: Line) -> None:
    """Its bytes would be signals then."""
    program = (
        "import os, sys\n"
        "from vhostd.host.reader import Reader\n"
        "os.setsid()\n"
        "Reader(sys.argv[1])._fd.take()\n"
        "os.open('/dev/tty', os.O_RDONLY)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, line.path], capture_output=True, check=False)
    assert b"No such device or address: '/dev/tty'" in done.stderr
