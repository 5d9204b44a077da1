"""Files of others, read and written while the event loop goes on: pipes, sockets, files, and others."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from tests.conftest import Run
from vhostd.host.stream import PIECE, Stream
from vhostd.wire.fds import Fd

LONG = bytes(range(256)) * (3 * PIECE // 256)
MANY = 1 << 40


def pipe() -> tuple[Fd, Fd]:
    return tuple(map(Fd, os.pipe()))  # type: ignore[return-value]  # two of them


def socket_pair() -> tuple[Fd, Fd]:
    return tuple(Fd(end.detach()) for end in socket.socketpair())  # type: ignore[return-value]  # the same


def file_with(content: bytes) -> Fd:
    fd = Fd(os.memfd_create("content", os.MFD_CLOEXEC))
    os.pwrite(fd.fileno(), content, 0)
    return fd


@pytest.fixture(params=[pipe, socket_pair])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Fd, Fd]]:
    """To read from, and to write to."""
    reading, writing = request.param()
    yield reading, writing
    reading.close()
    writing.close()


async def turns() -> None:
    """Lets others have their turns, some times."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_is_written_is_read(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(ends[0], "reader")) as source:
            reading = asyncio.create_task(source.read(MANY))
            with closing(Stream(ends[1], "writer")) as sink:
                await sink.write(LONG[:1])
                await sink.write(b"")
                await sink.write(LONG[1:])
                assert not reading.done()
            assert await reading == LONG

    run_async(main)


def test_no_more_is_read_than_asked_for(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        os.write(ends[1].fileno(), b"head and body")
        ends[1].close()
        with closing(Stream(ends[0], "reader")) as source:
            assert await source.read(4) == b"head"
            assert await source.read(0) == b""
            assert await source.read(9) == b" and body"
            assert await source.read(1) == b""

    run_async(main)


def test_bytes_that_come_one_by_one(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(ends[0], "reader")) as source:
            reading = asyncio.create_task(source.read(5))
            for byte in b"bytes":
                assert not reading.done()
                os.write(ends[1].fileno(), bytes([byte]))
                await turns()
            assert await reading == b"bytes"

    run_async(main)


def test_who_waits_for_a_silent_one_can_be_cancelled(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(ends[0], "reader")) as source:
            reading = asyncio.create_task(source.read(1))
            await turns()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            assert await source.read(0) == b""

    run_async(main)


def test_who_waits_for_a_full_one_can_be_cancelled(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(ends[0], "reader")) as source, closing(Stream(ends[1], "writer")) as sink:
            writing = asyncio.create_task(sink.write(LONG * 8))
            assert await source.read(1) == LONG[:1]  # it has begun
            await turns()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing

    run_async(main)


def test_nobody_reads_any_more(ends: tuple[Fd, Fd], run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(ends[1], "writer")) as sink:
            writing = asyncio.create_task(sink.write(LONG * 8))
            with closing(Stream(ends[0], "reader")) as source:
                assert await source.read(1) == LONG[:1]
            with pytest.raises(ConnectionError):
                await writing

    run_async(main)


def test_a_file_is_read_and_written(run_async: Run) -> None:
    async def main() -> None:
        fd = file_with(LONG)
        with Fd(os.dup(fd.fileno())) as copy, closing(Stream(fd, "file")) as stream:
            assert await stream.read(MANY) == LONG
            await stream.write(b"the end")
            assert os.pread(copy.fileno(), 16, len(LONG)) == b"the end"

    run_async(main)


def test_a_file_without_an_end_can_be_left(run_async: Run) -> None:
    async def main() -> None:
        with closing(Stream(Fd(os.open("/dev/zero", os.O_RDONLY)), "zeros")) as stream:
            assert await stream.read(PIECE + 1) == bytes(PIECE + 1)
            reading = asyncio.create_task(stream.read(MANY))
            await turns()
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

    run_async(main)


def test_what_cannot_be_written(run_async: Run) -> None:
    async def main() -> None:
        stream = Stream(Fd(os.open("/", os.O_RDONLY)), "folder")
        with closing(stream), pytest.raises(OSError, match="Bad file descriptor"):
            await stream.write(b"x")

    run_async(main)


def test_what_cannot_be_read(run_async: Run) -> None:
    async def main() -> None:
        stream = Stream(Fd(os.open("/", os.O_RDONLY)), "folder")
        with closing(stream), pytest.raises(IsADirectoryError):
            await stream.read(1)

    run_async(main)


def test_what_is_no_use_stays_the_caller_s(run_async: Run) -> None:
    async def main() -> None:
        with Fd(os.open("/", os.O_PATH)) as fd:
            with pytest.raises(OSError, match="Bad file descriptor"):
                Stream(fd, "path")
            assert fd

    run_async(main)


def test_a_flag_that_was_cleared_holds_nobody_up(run_async: Run) -> None:
    """Whoever passed a pipe may clear O_NONBLOCK, and take away what the event loop has seen."""

    async def main() -> None:
        reading, writing = pipe()
        with Fd(os.dup(reading.fileno())) as thief, writing:
            stream = Stream(reading, "thief")
            waiting = asyncio.create_task(stream.read(1))
            await turns()
            os.set_blocking(thief.fileno(), True)
            os.write(writing.fileno(), b"x")
            with suppress(BlockingIOError):
                os.read(thief.fileno(), 1)
            await turns()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            writing.close()
            stream.close()

    run_async(main)
