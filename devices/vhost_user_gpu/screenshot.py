"""Screenshots of a guest that nobody looks at, taken when somebody sends SIGUSR1."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from vhost_user_gpu.pixels import PIXEL
from vhost_user_gpu.png import png
from vhost_user_gpu.scanout import Scanout
from vhostd import MemoryLost

BAND = 1 << 18  # bytes that are copied and compressed at a time: some milliseconds

log = logging.getLogger(__name__)


async def take_on_signal(path: str, scanouts: Sequence[Scanout]) -> None:
    """Writes what the scan-outs show, each time the signal comes: the first that shows something to `path`.

    Another one's number goes in front of the file's suffix. A file is replaced as a whole, or, with a line in
    the log that says why, not at all.
    """
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, asked.set)
    try:
        while await asked.wait():
            asked.clear()
            await _take(Path(path), [scanout for scanout in scanouts if scanout.framebuffer is not None])
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


async def _take(path: Path, showing: Sequence[Scanout]) -> None:
    if not showing:
        log.warning("no screenshot: the guest shows nothing")
    targets = [path, *(path.with_stem(f"{path.stem}-{scanout.number}") for scanout in showing[1:])]
    for target, scanout in zip(targets, showing, strict=False):
        try:
            await _write(target, scanout)
        except (OSError, MemoryLost) as error:
            log.error("no screenshot at %s: %s", target, error)
        else:
            log.info("screenshot of scan-out %d: %s", scanout.number, target)


async def _write(path: Path, scanout: Scanout) -> None:
    """Writes a picture band by band, and lets the guest be served meanwhile."""
    framebuffer, rect = scanout.framebuffer, scanout.rect
    if framebuffer is None:
        raise FileNotFoundError(f"scan-out {scanout.number} shows nothing any more")
    bands = (framebuffer.copy(band) for band in rect.bands(BAND // (rect.width * PIXEL)))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            for piece in png(rect.width, rect.height, bands):
                file.write(piece)
                await asyncio.sleep(0)
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
