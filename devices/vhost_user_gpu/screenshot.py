"""Screenshots of a guest without a display, taken on request.

Pixels are copied on the event loop, where the guest's commands change them. A thread compresses and writes
them, since writing may wait for a disk.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress

from vhost_user_gpu.pixels import PIXEL
from vhost_user_gpu.png import png
from vhost_user_gpu.scanout import Scanout
from vhostd import Folder, Grants, MemoryLost, SetupError, Threads

BAND = 1 << 18  # bytes that are copied at a time, and then written
PATIENCE = 0.05  # seconds to wait for the removal of an incomplete file

log = logging.getLogger(__name__)


class Target:
    """The path where screenshots are written. Holds its folder; raises SetupError without one."""

    def __init__(self, path: str) -> None:
        self.path = path
        folder = os.path.dirname(path)
        try:
            self.folder = Folder(folder)
        except OSError as error:
            raise SetupError(f"--screenshot={path}: {folder} is no folder: {error.strerror}") from None
        if os.path.isdir(path):
            self.folder.close()
            raise SetupError(f"--screenshot={path} is a folder, not a file's name")

    def close(self) -> None:
        """Closes the folder; idempotent."""
        self.folder.close()


class Screenshots:
    """Writes what the scan-outs show, on request. The first that shows something is written to `target`.

    For each other one, its number is put in front of the file's suffix. A file is replaced as a whole or not
    at all; in that case the log says why.
    """

    def __init__(self, target: Target, scanouts: Sequence[Scanout]) -> None:
        """Owns the target."""
        self._target = target
        self._scanouts = scanouts
        self._asked = asyncio.Event()

    def take(self) -> None:
        """Requests screenshots. Several requests before they are taken count as one."""
        self._asked.set()

    async def run(self) -> None:
        """Takes the screenshots that are requested, until it is cancelled."""
        threads = Threads(name="screenshot")
        try:
            while await self._asked.wait():
                self._asked.clear()
                showing = [scanout for scanout in self._scanouts if scanout.framebuffer is not None]
                await _take(self._target, showing, threads)
        finally:
            threads.close()

    def grants(self) -> Grants:
        """The folder of the files."""
        return Grants(written=(self._target.folder.path,))

    def close(self) -> None:
        """Closes the target."""
        self._target.close()


async def _take(target: Target, showing: Sequence[Scanout], threads: Threads) -> None:
    if not showing:
        log.warning("no screenshot: the guest shows nothing")
    stem, suffix = os.path.splitext(target.path)
    paths = [target.path, *(f"{stem}-{scanout.number}{suffix}" for scanout in showing[1:])]
    for each, scanout in zip(paths, showing, strict=False):
        try:
            await _write(target.folder, os.path.basename(each), scanout, threads)
        except (OSError, MemoryLost) as error:
            log.error("no screenshot at %s: %s", each, error)
        else:
            log.info("screenshot of scan-out %d: %s", scanout.number, each)


async def _write(folder: Folder, name: str, scanout: Scanout, threads: Threads) -> None:
    """Writes a picture band by band. The guest is served between two bands."""
    framebuffer, rect = scanout.framebuffer, scanout.rect
    if framebuffer is None:
        raise FileNotFoundError(f"scan-out {scanout.number} shows nothing any more")
    if (reading := framebuffer.resource.refresh()) is not None:
        await reading.answered()
    bands = deque[bytearray | None]()
    saving = _save(folder, name, png(rect.width, rect.height, iter(bands.popleft, None)))
    try:
        await threads.run(lambda: next(saving))  # the file's head
        for band in rect.bands(BAND // (rect.width * PIXEL)):
            bands.append(framebuffer.copy(band))
            await threads.run(lambda: next(saving))
        bands.append(None)
        await threads.run(lambda: list(saving))
    finally:
        with suppress(TimeoutError):
            await asyncio.wait_for(threads.run(saving.close), PATIENCE)


def _save(folder: Folder, name: str, pieces: Iterator[bytes]) -> Generator[None, None, None]:
    """Writes a file, one piece per step. Its name comes last; if closed before, the file is removed."""
    partial = f".screenshot-{os.urandom(8).hex()}"  # which nobody can guess
    fd = folder.make(partial)
    try:
        with open(fd, "wb") as file:
            for piece in pieces:
                file.write(piece)
                yield
        folder.rename(partial, name)
    finally:
        with suppress(FileNotFoundError, ValueError):  # it has its name, or the folder is closed
            folder.remove(partial)
