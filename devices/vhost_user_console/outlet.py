"""What the guest has written to a port and the line has not taken yet."""

import asyncio
import logging
import os
import select
from functools import partial

from vhost_user_console.transfers import Backlog, Output
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
        self._keep = keep
        self._may_wait = may_wait
        self._backlog = Backlog(keep)
        self.output = Output(self._backlog)  # the shortcut, which writes what need not wait
        self._fd = -1  # of who is there
        self._told = 0  # of the bytes that were dropped
        self._eased = asyncio.Event()  # it is not full
        self._ease()

    @property
    def is_full(self) -> bool:
        """Whether the driver has to wait."""
        return self._may_wait and self._fd >= 0 and len(self._backlog) > 0

    async def room(self) -> None:
        """Waits until it is not full."""
        await self._eased.wait()

    async def drained(self) -> None:
        """Waits until all is written that cannot wait for the next program."""

    def take(self, data: bytes) -> None:
        """Has at most MOST bytes written, soon or later; never waits."""
        self._backlog.add(data)
        self._go()

    def open(self, fd: int) -> None:
        """Somebody is there: gets what was kept, and then all else."""
        self._fd = fd
        self._backlog.most = max(self._keep, 2 * MOST if self._may_wait else MOST)
        self._tell_of_loss()
        self._go()

    def shut(self) -> None:
        """Nobody is there any more. What they have not got is for the next, as far as it is kept."""
        self._stop()
        self._fd = -1
        self._backlog.most = self._keep
        self._ease()

    def close(self) -> None:
        """Writes nothing more; the event loop has ended."""

    def _ease(self) -> None:
        """Whoever waits for room goes on, if there is some. The shortcut must not overtake what waits."""
        self.output.fd = -1 if self._backlog else self._fd
        self.output.has_room = not self.is_full
        self._eased.clear() if self.is_full else self._eased.set()

    def _tell_of_loss(self) -> None:
        """Logs how much was dropped since that was last told."""
        if loss := self._backlog.dropped - self._told:
            log.info("%s: %d bytes of the guest's were dropped, since nobody took them", self.name, loss)
            self._told += loss

    def _go(self) -> None:
        """Writes what waits, if somebody is there."""
        raise NotImplementedError

    def _stop(self) -> None:
        """Writes nothing for now."""
        raise NotImplementedError


class FdOutlet(Outlet):
    """Writes whenever the fd takes more.

    That is looked at by an epoll of its own: to add an fd to the event loop takes several system calls, and a
    guest that is faster than who is there has it added again and again.
    """

    def __init__(self, name: str, *, keep: int, may_wait: bool) -> None:
        self._writable = select.epoll()
        self._loop: asyncio.AbstractEventLoop | None = None  # which looks at that
        self._watches = False
        super().__init__(name, keep=keep, may_wait=may_wait)

    def close(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._writable.fileno())
        self._writable.close()

    def _go(self) -> None:
        if self._fd >= 0 and self._backlog and not self._watches:
            self._watches = True
            self._writable.register(self._fd, select.EPOLLOUT)
            if self._loop is None:
                self._loop = asyncio.get_running_loop()
                self._loop.add_reader(self._writable.fileno(), self._write)
        self._ease()

    def _stop(self) -> None:
        if self._watches:
            self._watches = False
            self._writable.unregister(self._fd)

    def _write(self) -> None:
        try:
            self._backlog.remove(os.write(self._fd, self._backlog.head(PIECE)))
        except BlockingIOError:
            return
        except OSError as error:  # they have gone, or do not read any more
            log.debug("%s: %s", self.name, error.strerror)
            self.shut()
            return
        if not self._backlog:
            self._stop()
            self._tell_of_loss()
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
        return self._may_wait and len(self._backlog) >= PIECE

    async def drained(self) -> None:
        await self._drained.wait()

    def close(self) -> None:
        """Writes nothing more, and waits a moment for what is being written."""
        self._threads.close()

    def _go(self) -> None:
        if self._fd >= 0 and self._backlog and not self._writes:
            piece = self._backlog.head(MOST)
            self._backlog.remove(len(piece))
            self._writes = True
            self._drained.clear()
            self._threads.do(partial(_write_all, self._fd, piece), self._written)
        self._ease()

    def _stop(self) -> None:
        pass

    def _ease(self) -> None:
        super()._ease()
        self.output.fd, self.output.has_room = -1, False  # each byte is for the thread

    def _written(self, result: Exception | None) -> None:
        self._writes = False
        if isinstance(result, Exception):
            log.warning("%s: what the guest wrote is dropped: %s", self.name, result)
        self._go()
        if not self._writes:
            self._drained.set()


def _write_all(fd: int, data: bytes) -> None:
    """Writes all of the bytes; raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
