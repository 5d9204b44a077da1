"""Engines: ways to do what would keep the event loop waiting. Each calls back with bytes, or -errno.

An engine is asked on the event loop, and calls back there. It may do so before it returns. What it calls must
not raise; an exception that is no OSError is handed to it. What waits for its turn and was given up
meanwhile is not begun: it ends with -ECANCELED.
"""

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from vhostd import Chain, SetupError, Threads
from vhostd.ring.uring import Uring

log = logging.getLogger(__name__)

Result = int | Exception
Then = Callable[[Result], None]
Work = Callable[[], int]
Steps = Iterator[object]

THREADS = 16  # as many requests as a file system takes at a time without io_uring
URING_ENTRIES = 1024  # requests at a time; more wait
STEP = 1 << 20  # bytes that an engine is given at a time: a guest may ask for 4 GiB in one request
CLOSE_PATIENCE = 0.02  # seconds that the kernel gets at the end for what is under way


class Engine(Protocol):
    """What all engines do."""

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        """Reads into the chain's writable stream, at least 1 byte unless the file ends there."""

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        """Writes from the chain's readable stream, at least 1 byte; `flags` are those of pwritev2(2)."""

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        """Puts all that was written before on stable storage, at the chain's request."""

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        """Does anything else that a chain asks for: `then` gets what it returns, or -errno of its OSError."""

    def watch(self) -> Uring | None:
        """Watches the io_uring behind it, if there is one, for requests that others begin there.

        Their tokens are what is called back.
        """

    def close(self) -> None:
        """Ends the engine: begins nothing else, and tells nobody of what is under way.

        That gets a moment to end. What hangs in the kernel ends with the process, or after it.
        """


class SyncEngine:
    """Does everything at once, and keeps all others waiting meanwhile."""

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        then(_result(lambda: chain.preadv(fd, offset, size, flags)))

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        then(_result(lambda: chain.pwritev(fd, offset, size, flags)))

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        then(_result(lambda: _fdatasync(fd)))

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        then(_result(work))

    def watch(self) -> None:
        pass

    def close(self) -> None:
        pass


class ThreadEngine:
    """Does everything in threads, of which each waits for itself."""

    def __init__(self) -> None:
        self._threads = Threads(THREADS, "io")

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.do(chain, lambda: chain.preadv(fd, offset, size, flags), then)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.do(chain, lambda: chain.pwritev(fd, offset, size, flags), then)

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        self.do(chain, lambda: _fdatasync(fd), then)

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        self._threads.do(lambda: -errno.ECANCELED if chain.given_up else _result(work), then)

    def watch(self) -> None:
        pass

    def close(self) -> None:
        self._threads.close()


class UringEngine:
    """Leaves everything to the kernel, a batch at a time (io_uring), and what that cannot do to threads."""

    def __init__(self, *, may_wait: bool) -> None:
        """Raises OSError if the host forbids or lacks io_uring. `may_wait`: see `make_engine`."""
        self._uring = Uring(URING_ENTRIES, in_threads=may_wait)
        self._threads = ThreadEngine()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submitting = False
        self._waiting: list[tuple[Chain, Callable[[], None], Then]] = []  # for which there was no room

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self._queue(chain, partial(self._uring.preadv, chain, fd, offset, size, then, flags), then)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self._queue(chain, partial(self._uring.pwritev, chain, fd, offset, size, then, flags), then)

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        self._queue(chain, partial(self._uring.fsync, fd, then), then)

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        self._threads.do(chain, work, then)

    def watch(self) -> Uring:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._uring.fileno(), self._complete)
        return self._uring

    def close(self) -> None:
        self._threads.close()
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._uring.fileno())
        with suppress(TimeoutError):
            self._uring.close(CLOSE_PATIENCE)

    def _queue(self, chain: Chain, request: Callable[[], None], then: Then) -> None:
        """Queues a request; all of one turn of the event loop are submitted together."""
        if self._waiting or self._uring.in_flight == URING_ENTRIES:
            self._waiting.append((chain, request, then))
            return
        request()
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
        waiting, self._waiting = self._waiting, []
        for chain, request, then in waiting:
            if chain.given_up:
                then(-errno.ECANCELED)
            else:
                self._queue(chain, request, then)


def make_engine(name: str | None, *, may_wait: bool = False) -> Engine:
    """The engine of this name; without one the best that the host has. Raises SetupError if it has it not.

    `may_wait` says that what promises not to wait for the image waits all the same.
    """
    if name == "sync":
        return SyncEngine()
    if name == "threads":
        return ThreadEngine()
    try:
        return UringEngine(may_wait=may_wait)
    except OSError as error:
        if name is not None:
            raise SetupError(f"--aio=io_uring: {error.strerror}") from None
        log.info("no io_uring here (%s): I/O is done by threads", error.strerror)
        return ThreadEngine()


def in_steps(chain: Chain, steps: Steps) -> int:
    """Does one step after the other, until the chain is given up: 0, or -ECANCELED. For `Engine.do`."""
    for _ in steps:
        if chain.given_up:
            return -errno.ECANCELED
    return 0


def hear(result: Result, then: Callable[[int], None], failed: Callable[[Exception], None]) -> None:
    """Calls `then` with what an engine has told; `failed` with an exception of that, or of the engine's."""
    try:
        if isinstance(result, Exception):
            raise result
        then(result)
    except Exception as error:
        failed(error)


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
