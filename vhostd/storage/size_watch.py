"""The image's size, which may change while it is in use."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from vhostd.host.threads import Threads
from vhostd.storage.image import Image

log = logging.getLogger(__name__)

LOOK_INTERVAL = 1.0  # seconds between two looks


class SizeWatch:
    """Looks at the size now and then; calls `changed` when the guest sees another one.

    A look may take long where the storage hangs. The next one waits for it, and nobody else does.
    """

    def __init__(self, image: Image, changed: Callable[[], None]) -> None:
        self._image = image
        self._changed = changed
        self._asked = asyncio.Event()

    def look_now(self) -> None:
        """Has the next look be soon."""
        self._asked.set()

    async def run(self) -> None:
        """Looks, until it is cancelled."""
        threads = Threads(name="size")
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_INTERVAL):
                        await self._asked.wait()
                self._asked.clear()
                if await self._look(threads):
                    self._changed()
        finally:
            threads.close()

    async def _look(self, threads: Threads) -> bool:
        try:
            return self._image.resize(await threads.run(self._image.measure))
        except OSError as error:
            log.warning("the size of %s is not to be had: %s", self._image.path, error.strerror)
            return False
