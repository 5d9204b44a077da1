"""A queue on which many requests are under way, each with a future for its answer."""

import asyncio
from collections.abc import Sequence

from vhostd.errors import DeviceError, GuestError
from vhostd.frontend.queue import Queue


class Pipeline:
    """Sends requests on a queue, which it owns, and hands out the answers, in whatever order they come.

    When the ring breaks, or the connection ends, whoever waits gets that error: see `Queue.used`. Those of a
    `lasting` one wait on, since another ring, or another back-end, may have their answers.
    """

    def __init__(self, queue: Queue, *, descriptors: int = 2, lasting: bool = False) -> None:
        """`descriptors` is how many each `request` takes of the ring, at most."""
        self.queue = queue
        self._room = asyncio.Semaphore(max(queue.size // descriptors, 1))
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._kicking = False
        self._failure: BaseException | None = None
        self._watched = queue.call_fd.fileno() if lasting else queue.fileno()
        self._loop.add_reader(self._watched, self._called)

    async def request(self, data: bytes | Sequence[bytes] = b"", room: int | Sequence[int] = 0) -> bytes:
        """What the device writes into `room` bytes when it gets these. Waits for room in the ring.

        The device is told once of all that is sent in one turn of the event loop. Raises as `answer`.
        """
        async with self._room:
            answer = self.post(data, room)
            self._kick_soon()
            return await self.answer(answer)

    async def answer(self, posted: "asyncio.Future[bytes]") -> bytes:
        """Waits for the answer of what was posted; TimeoutError when the queue's `patience` is over."""
        async with asyncio.timeout(self.queue.patience):
            return await posted

    def post(
        self, data: bytes | Sequence[bytes] = b"", room: int | Sequence[int] = 0
    ) -> "asyncio.Future[bytes]":
        """Makes a request available without a word to the device; the future is of its answer.

        Raises IndexError if the ring is full.
        """
        if self._failure is not None:
            raise self._failure
        head = self.queue.add(data, room)
        self._waiting[head] = answer = self._loop.create_future()
        return answer

    def kick(self) -> None:
        """Tells the device of what was posted, if it wants to be told."""
        self.queue.kick()

    def collect(self) -> None:
        """Hands out all that the device has used, also what it gave no interrupt for."""
        while used := self.queue.poll():
            head, data = used
            answer = self._waiting.pop(head, None)
            if answer is not None and not answer.done():
                answer.set_result(data)

    def close(self) -> None:
        """Closes the queue; who still waits is cancelled. Idempotent."""
        if self._failure is None:
            self._end(asyncio.CancelledError())
        for answer in self._waiting.values():
            answer.cancel()
        self.queue.close()

    def _kick_soon(self) -> None:
        if not self._kicking:
            self._kicking = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kicking = False
        if self.queue.kick_fd:
            self.kick()

    def _called(self) -> None:
        try:
            self._heed()
        except (DeviceError, GuestError, ConnectionError) as error:
            self._fail(error)

    def _heed(self) -> None:
        try:
            self.queue.heed()
        finally:
            self.collect()  # the last answers may have come without an interrupt
        while self.queue.driver.arm():
            self.collect()

    def _fail(self, failure: Exception) -> None:
        """Has whoever waits get the error; it is no fault if nobody does."""
        self._end(failure)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(failure)
                answer.exception()  # else asyncio would complain that nobody has asked for it
        self._waiting.clear()

    def _end(self, failure: BaseException) -> None:
        self._failure = failure
        self._loop.remove_reader(self._watched)
