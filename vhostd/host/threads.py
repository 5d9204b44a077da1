"""Threads for what may wait: system calls that a storage, a network or a person can keep from returning.

None of them belongs on the event loop, where everybody would wait with them.
"""

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

CLOSE_PATIENCE = 0.02  # seconds that what is under way is waited for at the end


class Threads:
    """Does one piece of work after the other beside the event loop, in up to `most` threads at a time.

    They start when they are needed. `under_way` counts what was begun and not told yet.
    """

    def __init__(self, most: int = 1, name: str = "work") -> None:
        self.under_way = 0
        self._most = most
        self._name = name
        self._threads: list[Thread] = []
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def do(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        """Has a thread do the work, and calls `then` on this event loop with its result, or its exception.

        That is an OSError, and the work is not done, where the host lets us have no thread at all.
        """
        loop = asyncio.get_running_loop()

        def done() -> None:
            result = _result(work)
            with suppress(RuntimeError):  # the event loop is closed
                loop.call_soon_threadsafe(self._tell, then, result)

        self.under_way += 1
        self._waiting.put(done)
        if len(self._threads) < min(self._most, self.under_way):
            self._start_one()
        if not self._threads:
            self._waiting.get_nowait()
            loop.call_soon(self._tell, then, OSError(errno.EAGAIN, "no thread could be started"))

    async def run(self, work: Callable[[], T]) -> T:
        """Has a thread do the work; returns its result, or raises its exception.

        Who is cancelled meanwhile waits no more; the work goes on.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def told(result: T | Exception) -> None:
            if future.cancelled():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.do(work, told)
        return await future

    def close(self) -> None:
        """Begins nothing more, and waits a moment for what is under way.

        What takes longer goes on until the process ends, and nobody is told of it.
        """
        with suppress(Empty):
            while True:
                self._waiting.get_nowait()
        for _ in self._threads:
            self._waiting.put(None)
        end = time.monotonic() + CLOSE_PATIENCE
        for thread in self._threads:
            thread.join(max(end - time.monotonic(), 0))

    def _start_one(self) -> None:
        """Starts a thread, if the host has one for us; the others do its work as well."""
        # Python waits at its end for all but daemons, and a thread may be in the kernel for ever.
        thread = Thread(target=self._serve, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            log.warning("%s: %s: %d are there", self._name, error, len(self._threads))
        else:
            self._threads.append(thread)

    def _tell(self, then: Callable[[T | Exception], None], result: T | Exception) -> None:
        self.under_way -= 1
        then(result)

    def _serve(self) -> None:
        while (work := self._waiting.get()) is not None:
            work()
            del work  # and with it what it holds, before the next one is waited for


def _result(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:
        return error
