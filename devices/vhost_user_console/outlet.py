"""What the guest has written to a port and the line has not taken yet."""

import asyncio
import logging
import os
from functools import partial

from vhost_user_console.transfers import Output
from vhostd import Threads

log = logging.getLogger(__name__)

MOST = 1 << 20  # bytes that wait for somebody who is there, of a port whose driver cannot wait
PIECE = 1 << 16  # bytes that are written at a time


class Outlet:
    """Keeps bytes until they are written, as many as it may; the oldest are dropped first.

    `keep` bytes wait while nobody is there. For somebody who is there, and slow, the driver waits, if it
    `may_wait`. If not, up to MOST bytes wait for them.
    """

    def __init__(self, name: str, *, keep: int, may_wait: bool) -> None:
        self.name = name
        self.output = Output()  # the shortcut, which writes what need not wait
        self.dropped = 0  # bytes
        self._keep = keep
        self._may_wait = may_wait
        self._waiting = bytearray()
        self._fd = -1  # of who is there
        self._eased = asyncio.Event()  # it is not full
        self._ease()

    @property
    def is_full(self) -> bool:
        """Whether the driver has to wait."""
        return self._may_wait and self._fd >= 0 and len(self._waiting) > 0

    async def room(self) -> None:
        """Waits until it is not full."""
        await self._eased.wait()

    async def drained(self) -> None:
        """Waits until all is written that cannot wait for the next program."""

    def take(self, data: bytes) -> None:
        """Has bytes written, soon or later; never waits."""
        self._waiting += data
        self._trim()
        self._go()

    def open(self, fd: int) -> None:
        """Somebody is there: gets what was kept, and then all else."""
        self._fd = fd
        self._go()

    def shut(self) -> None:
        """Nobody is there any more. What they have not got is for the next, as far as it is kept."""
        self._stop()
        self._fd = -1
        self._trim()
        self._ease()

    def close(self) -> None:
        """Writes nothing more; the event loop has ended."""

    def _trim(self) -> None:
        """Drops what is too much."""
        if self._fd >= 0 and self._may_wait:
            return
        most = self._keep if self._fd < 0 else max(self._keep, MOST)
        if (excess := len(self._waiting) - most) > 0:
            self.dropped += excess
            log.log(
                logging.DEBUG if self._fd < 0 else logging.WARNING,
                "%s: %d bytes of the guest's are dropped: nobody takes them",
                self.name,
                excess,
            )
            del self._waiting[:excess]

    def _ease(self) -> None:
        """Whoever waits for room goes on, if there is some. The shortcut must not overtake what waits."""
        self.output.fd = -1 if self._waiting else self._fd
        self._eased.clear() if self.is_full else self._eased.set()

    def _go(self) -> None:
        """Writes what waits, if somebody is there."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Writes nothing for now."""
        raise NotImplementedError


class FdOutlet(Outlet):
    """Writes whenever the fd takes more."""

    _watches = False

    def _go(self) -> None:
        if self._fd >= 0 and self._waiting and not self._watches:
            self._watches = True
            asyncio.get_running_loop().add_writer(self._fd, self._write)
        self._ease()

    def _stop(self) -> None:
        if self._watches:
            self._watches = False
            asyncio.get_running_loop().remove_writer(self._fd)

    def _write(self) -> None:
        try:
            del self._waiting[: os.write(self._fd, self._waiting[:PIECE])]
        except BlockingIOError:
            return
        except OSError as error:  # they have gone, or do not read any more
            log.debug("%s: %s", self.name, error.strerror)
            self.shut()
            return
        if not self._waiting:
            self._stop()
        self._ease()


class FileOutlet(Outlet):
    """Has a thread write: a storage may take its time."""

    def __init__(self, name: str, *, keep: int, may_wait: bool) -> None:
        super().__init__(name, keep=keep, may_wait=may_wait)
        self._threads = Threads(name="file")
        self._writes = False
        self._drained = asyncio.Event()
        self._drained.set()

    @property
    def is_full(self) -> bool:
        return self._may_wait and len(self._waiting) >= PIECE

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self) -> None:
        """Writes nothing more, and waits a moment for what is being written."""
        self._threads.close()

    def _go(self) -> None:
        if self._fd >= 0 and self._waiting and not self._writes:
            piece = bytes(self._waiting[:MOST])
            del self._waiting[:MOST]
            self._writes = True
            self._drained.clear()
            self._threads.do(partial(_write_all, self._fd, piece), self._written)
        self._ease()

    def _stop(self) -> None:
        pass

    def _ease(self) -> None:
        super()._ease()
        self.output.fd = -1

    def _written(self, result: Exception | None) -> None:
        self._writes = False
        if isinstance(result, Exception):
            log.warning("%s: what the guest wrote is dropped: %s", self.name, result)
        self._drained.set()
        self._go()


def _write_all(fd: int, data: bytes) -> None:
    """Writes all of the bytes; raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
