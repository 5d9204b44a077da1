"""Screenshots of a guest that nobody looks at, taken when somebody sends SIGUSR1."""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from vhost_user_gpu.png import png
from vhost_user_gpu.scanout import Scanout

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
    pictures = [(scanout.number, scanout.rect, scanout.copy()) for scanout in showing]
    for index, (number, rect, pixels) in enumerate(pictures):
        target = path.with_stem(f"{path.stem}-{number}") if index else path
        try:
            # Compressing takes a while, in which the guest is served.
            await asyncio.to_thread(_write, target, rect.width, rect.height, pixels)
        except OSError as error:
            log.error("no screenshot: %s: %s", target, error.strerror)
        else:
            log.info("screenshot of scan-out %d: %s", number, target)


def _write(path: Path, width: int, height: int, pixels: bytearray) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(png(width, height, pixels))
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)
