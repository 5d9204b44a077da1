"""Screenshots that are asked for; what is in a PNG file is tested with `png` itself."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_gpu.guest import (
    END,
    GUEST,
    RAM,
    RGBX,
    SEAM,
    Guest,
    create_blob,
    crop,
    make_memory,
    noise,
    set_scanout,
    set_scanout_blob,
    unref,
)
from tests.ring.machine import memfd
from vhost_user_gpu import screenshot
from vhost_user_gpu.pixels import Format, to_wire
from vhost_user_gpu.png import png
from vhostd.wire.fds import Fd

PIXELS = noise(8 * 6 * 4)
LIMIT = 10.0  # seconds, on a busy machine


class Lines(logging.Handler):
    """The lines of the log, to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.put_nowait(record.getMessage())


@pytest.fixture
def log() -> Iterator[Lines]:
    handler = Lines()
    screenshot.log.addHandler(handler)
    yield handler
    screenshot.log.removeHandler(handler)


@pytest.fixture
def guest() -> Guest:
    guest = Guest()
    guest.picture(1, 8, 6, pixels=PIXELS)
    guest.picture(2, 8, 6, RGBX, PIXELS, RAM + 4096)
    return guest


class Taker:
    """Takes screenshots of a guest, to `path`."""

    def __init__(self, guest: Guest, path: Path, log: Lines) -> None:
        self.log = log
        self.screenshots = screenshot.Screenshots(screenshot.Target(str(path)), guest.card.scanouts)
        self.task = asyncio.create_task(self.screenshots.run())

    async def take(self, lines: int = 1) -> list[str]:
        """Asks for one; what is logged then."""
        self.screenshots.take()
        return [await self.log.lines.get() for _ in range(lines)]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.screenshots.close()


def test_one_monitor(run_async: Run, guest: Guest, log: Lines, tmp_path: Path) -> None:
    path = tmp_path / "a.b.png"

    async def main() -> None:
        guest.run(set_scanout(3, 1, (2, 1, 3, 4)))
        taker = Taker(guest, path, log)
        assert await taker.take() == [f"screenshot of scan-out 3: {path}"]
        assert path.read_bytes() == b"".join(png(3, 4, [crop(PIXELS, 8, (2, 1, 3, 4))]))
        guest.run(set_scanout(3, 2, (0, 0, 8, 6)))
        await taker.take()
        assert path.read_bytes() == b"".join(png(8, 6, [to_wire(bytearray(PIXELS), Format.R8G8B8X8)]))
        await taker.stop()
        assert list(tmp_path.iterdir()) == [path], "nothing else is left behind"

    run_async(main)


def test_several_monitors(run_async: Run, guest: Guest, log: Lines, tmp_path: Path) -> None:
    path = tmp_path / "shot.png"

    async def main() -> None:
        guest.run(
            set_scanout(1, 1, (0, 0, 8, 6)), set_scanout(2, 1, (0, 0, 1, 1)), set_scanout(15, 1, (7, 5, 1, 1))
        )
        taker = Taker(guest, path, log)
        await taker.take(lines=3)
        await taker.stop()
        assert path.read_bytes() == b"".join(png(8, 6, [PIXELS]))
        assert (tmp_path / "shot-2.png").read_bytes() == b"".join(png(1, 1, [PIXELS[:4]]))
        assert (tmp_path / "shot-15.png").read_bytes() == b"".join(png(1, 1, [PIXELS[-4:]]))
        assert len(list(tmp_path.iterdir())) == 3

    run_async(main)


def test_nothing_to_be_seen(run_async: Run, guest: Guest, log: Lines, tmp_path: Path) -> None:
    path = tmp_path / "shot.png"
    path.write_bytes(b"old")

    async def main() -> None:
        taker = Taker(guest, path, log)
        assert await taker.take() == ["no screenshot: the guest shows nothing"]
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)), unref(1))
        assert await taker.take() == ["no screenshot: the guest shows nothing"]
        await taker.stop()
        assert path.read_bytes() == b"old"

    run_async(main)


def test_memory_that_vanished(run_async: Run, log: Lines, tmp_path: Path) -> None:
    async def main() -> None:
        with Fd(memfd(SEAM - GUEST)) as low, Fd(memfd(END - SEAM)) as high:
            guest = Guest(memory=make_memory(low.fileno(), high.fileno()))
            guest.run(create_blob(1, 256, (SEAM, 256)), set_scanout_blob(0, 1, (0, 0, 8, 8), (8, 8), 32))
            os.ftruncate(high.fileno(), 0)
            taker = Taker(guest, tmp_path / "shot.png", log)
            (line,) = await taker.take()
            assert line.startswith("no screenshot")
            await taker.stop()
            assert list(tmp_path.iterdir()) == []

    run_async(main)


class SlowFile:
    """A file on a disk that hangs until `go_on`: whoever writes to it waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._waiting, self._goes_on = threading.Event(), threading.Event()
        monkeypatch.setattr(screenshot, "open", self._open, raising=False)

    def _open(self, fd: int, mode: str) -> BinaryIO:
        self._waiting.set()
        self._goes_on.wait()
        return cast("BinaryIO", open(fd, mode))

    async def writer(self) -> threading.Thread:
        """The thread that waits, once it does."""
        while not self._waiting.is_set():
            await asyncio.sleep(0)
        return next(thread for thread in threading.enumerate() if thread.name == "screenshot")

    def go_on(self) -> None:
        """Lets it be written, and all that follow."""
        self._goes_on.set()


def test_nothing_waits_for_a_disk_that_hangs(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "shot.png"
    slow = SlowFile(monkeypatch)

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, path, log)
        await taker.take(lines=0)
        await slow.writer()
        guest.run(set_scanout(0, 1, (0, 0, 1, 1)))
        for _ in range(20):
            await taker.take(lines=0)
        slow.go_on()
        for _ in range(2):  # all other signals are one
            assert await log.lines.get() == f"screenshot of scan-out 0: {path}"
        assert path.read_bytes() == b"".join(png(1, 1, [PIXELS[:4]]))
        await taker.stop()
        assert log.lines.empty()
        assert list(tmp_path.iterdir()) == [path]

    run_async(main)


def test_a_disk_that_hangs_does_not_keep_the_program_from_ending(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowFile(monkeypatch)

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, tmp_path / "shot.png", log)
        await taker.take(lines=0)
        writer = await slow.writer()
        before = time.monotonic()
        await taker.stop()
        assert time.monotonic() - before < LIMIT
        slow.go_on()
        writer.join(20)
        assert not writer.is_alive()

    run_async(main)


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_cannot_be_written(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path, *, gone: bool
) -> None:
    """It is one line in the log, and the next one may be better."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "shot.png" if gone else Path("/proc/shot.png")

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, path, log)
        folder.rmdir()
        for _ in range(2):
            said = asyncio.ensure_future(taker.take())
            await asyncio.wait([said, taker.task], return_when=asyncio.FIRST_COMPLETED)
            assert not taker.task.done(), taker.task.exception()
            (line,) = await said
            assert line.startswith("no screenshot")
            assert str(path) in line
        await taker.stop()
        assert list(tmp_path.iterdir()) == []

    run_async(main)


def test_a_folder_in_the_place_of_the_file_is_left(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path
) -> None:
    path = tmp_path / "shot.png"

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, path, log)
        path.mkdir()
        (line,) = await taker.take()
        assert line.startswith(f"no screenshot at {path}")
        await taker.stop()
        assert list(tmp_path.iterdir()) == [path]

    run_async(main)


def test_nothing_is_written_through_a_link_of_somebody_else_s(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path
) -> None:
    folder, precious = tmp_path / "theirs", tmp_path / "precious"
    folder.mkdir()
    precious.write_bytes(b"precious")
    for name in ("shot.png", f".shot.png.{os.getpid()}"):
        (folder / name).symlink_to(precious)

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, folder / "shot.png", log)
        await taker.take()
        await taker.stop()

    run_async(main)
    assert precious.read_bytes() == b"precious"
    assert (folder / "shot.png").read_bytes() == b"".join(png(8, 6, [PIXELS]))


def test_nothing_is_written_to_a_folder_that_took_the_place_of_the_one(
    run_async: Run, guest: Guest, log: Lines, tmp_path: Path
) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()

    async def main() -> None:
        guest.run(set_scanout(0, 1, (0, 0, 8, 6)))
        taker = Taker(guest, folder / "shot.png", log)
        folder.rename(tmp_path / "away")
        folder.symlink_to(other)
        await taker.take()
        await taker.stop()

    run_async(main)
    assert list(other.iterdir()) == []
    assert (tmp_path / "away/shot.png").exists()
