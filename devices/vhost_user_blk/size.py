"""The image's size, which may change while it is in use."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from signal import SIGHUP

from vhost_user_blk.image import Image
from vhostd import Threads

log = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0  # seconds between two looks


async def watch(image: Image, changed: Callable[[], None]) -> None:
    """Looks at the size now and then, and at SIGHUP; calls `changed` when the guest sees another one.

    A look may take long where the storage hangs. The next one waits for it, and nobody else does.
    """
    loop, threads, asked = asyncio.get_running_loop(), Threads(name="size"), asyncio.Event()
    loop.add_signal_handler(SIGHUP, asked.set)
    try:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await asked.wait()
            asked.clear()
            if await _look(image, threads):
                changed()
    finally:
        loop.remove_signal_handler(SIGHUP)
        threads.close()


async def _look(image: Image, threads: Threads) -> bool:
    try:
        return image.resize(await threads.run(image.measure))
    except OSError as error:
        log.warning("the size of %s is not to be had: %s", image.path, error.strerror)
        return False
