"""Engines: ways to do what would keep the event loop waiting. Each calls back with bytes, or -errno.

An engine is asked on the event loop, and calls back there. It may do so before it returns. What it calls must
not raise; an exception that is no OSError is handed to it.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from vhostd import Chain, SetupError, Uring

log = logging.getLogger(__name__)

Result = int | Exception
Then = Callable[[Result], None]
Work = Callable[[], int]

THREADS = 16  # as many requests as a file system takes at a time without io_uring
URING_ENTRIES = 1024  # requests at a time; more wait
STEP = 1 << 20  # bytes that an engine is given at a time: a guest may ask for 4 GiB in one request


class Engine(Protocol):
    """What all engines do."""

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        """Reads into the chain's writable stream, at least 1 byte unless the file ends there."""

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        """Writes from the chain's readable stream, at least 1 byte; `flags` are those of pwritev2(2)."""

    def fdatasync(self, fd: int, then: Then) -> None:
        """Puts all that was written before on stable storage."""

    def watch(self) -> Uring | None:
        """Watches the io_uring behind it, if there is one, for requests that others begin there.

        Their tokens are what is called back.
        """

    def do(self, work: Work, then: Then) -> None:
        """Does anything else: `then` gets what it returns, or -errno of the OSError that it raises."""

    def close(self) -> None:
        """Ends the engine: completes what is under way, and tells nobody; begins nothing else."""


class SyncEngine:
    """Does everything at once, and keeps all others waiting meanwhile."""

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        then(_result(lambda: chain.preadv(fd, offset, size, flags)))

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        then(_result(lambda: chain.pwritev(fd, offset, size, flags)))

    def fdatasync(self, fd: int, then: Then) -> None:
        then(_result(lambda: _fdatasync(fd)))

    def do(self, work: Work, then: Then) -> None:
        then(_result(work))

    def watch(self) -> None:
        pass

    def close(self) -> None:
        pass


class ThreadEngine:
    """Does everything in threads, of which each waits for itself."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "io")

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.do(lambda: chain.preadv(fd, offset, size, flags), then)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.do(lambda: chain.pwritev(fd, offset, size, flags), then)

    def fdatasync(self, fd: int, then: Then) -> None:
        self.do(lambda: _fdatasync(fd), then)

    def do(self, work: Work, then: Then) -> None:
        loop = asyncio.get_running_loop()

        def tell(done: "Future[Result]") -> None:
            if not done.cancelled():
                with suppress(RuntimeError):  # the event loop is closed
                    loop.call_soon_threadsafe(then, done.result())

        self._threads.submit(_result, work).add_done_callback(tell)

    def watch(self) -> None:
        pass

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class UringEngine:
    """Leaves everything to the kernel, a batch at a time (io_uring), and what that cannot do to threads."""

    def __init__(self) -> None:
        """Raises OSError if the host forbids or lacks io_uring."""
        self._uring = Uring(URING_ENTRIES)
        self._threads: ThreadEngine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitting = False
        self._waiting: list[Callable[[], None]] = []  # for which there was no room

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self._queue(self._uring.preadv, chain, fd, offset, size, then, flags)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self._queue(self._uring.pwritev, chain, fd, offset, size, then, flags)

    def fdatasync(self, fd: int, then: Then) -> None:
        self._queue(self._uring.fsync, fd, then)

    def do(self, work: Work, then: Then) -> None:
        self._threads = self._threads or ThreadEngine()
        self._threads.do(work, then)

    def watch(self) -> Uring:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._uring.fileno(), self._complete)
        return self._uring

    def close(self) -> None:
        if self._threads is not None:
            self._threads.close()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._uring.fileno())
        self._uring.close()

    def _queue(self, request: Callable[..., None], *arguments: Any) -> None:
        """Queues a request; all of one turn of the event loop are submitted together."""
        if self._waiting or self._uring.in_flight == URING_ENTRIES:
            self._waiting.append(partial(request, *arguments))
            return
        request(*arguments)
        if self.watch().in_flight == 1:
            self._uring.submit()  # a disk that has nothing to do need not wait for the rest of the batch
        elif not self._submitting:
            self._submitting = True
            asyncio.get_running_loop().call_soon(self._submit)

    def _submit(self) -> None:
        self._submitting = False
        self._uring.submit()
        self._complete()  # what was in the page cache is done already

    def _complete(self) -> None:
        done: list[tuple[Any, int]] = self._uring.completions()
        for then, result in done:
            then(result)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                self._queue(request)


def make_engine(name: str | None) -> Engine:
    """The engine of this name; without one the best that the host has. Raises SetupError if it has it not."""
    if name == "sync":
        return SyncEngine()
    if name == "threads":
        return ThreadEngine()
    try:
        return UringEngine()
    except OSError as error:
        if name is not None:
            raise SetupError(f"--aio=io_uring: {error.strerror}") from None
        log.info("no io_uring here (%s): I/O is done by threads", error.strerror)
        return ThreadEngine()


def _result(work: Work) -> Result:
    try:
        return work()
    except OSError as error:
        return -(error.errno or errno.EIO)
    except Exception as error:
        return error


def _fdatasync(fd: int) -> int:
    os.fdatasync(fd)
    return 0
