"""A read or a write of which something is left: the engine does it, in as many steps as it takes."""

import asyncio
import errno
import os
from collections.abc import Callable
from typing import Protocol

from vhost_user_blk import bounce
from vhost_user_blk.engine import STEP, Engine, Result, hear
from vhost_user_blk.image import Image
from vhost_user_blk.shares import Shares
from vhostd import Chain, Virtqueue

# What the host says of guest memory that it cannot reach past its page cache; the second, of very many small
# pieces of it.
MISALIGNED = (-errno.EINVAL, -errno.EFAULT)


class Requests(Protocol):
    """What a move needs of them (requests.py)."""

    image: Image
    engine: Engine
    turns: Shares
    bounces: Shares

    @property
    def is_durable(self) -> bool: ...
    def end(self, queue: Virtqueue, chain: Chain, what: str, offset: int, result: int) -> None: ...
    def fail(self, queue: Virtqueue, error: Exception) -> None: ...


class Move:
    """What is left of a read or a write of `requests`, which hears of its end.

    It is itself what the engine calls back after each step.
    """

    __slots__ = (
        "_bounces",
        "_chain",
        "_fd",
        "_flags",
        "_left",
        "_offset",
        "_queue",
        "_requests",
        "_turns",
        "_writing",
    )

    def __init__(
        self,
        requests: Requests,
        queue: Virtqueue,
        chain: Chain,
        offset: int,
        left: int,
        *,
        writing: bool,
        turns: int = 0,
    ) -> None:
        """It has so many shares of `requests.turns`, which it gives back at its end."""
        self._requests = requests
        self._queue = queue
        self._chain = chain
        self._fd = requests.image.fd
        self._flags = os.RWF_DSYNC if writing and requests.is_durable else 0
        self._offset = offset
        self._left = left
        self._writing = writing
        self._turns = turns
        self._bounces = 0  # shares of `requests.bounces`

    def begin(self) -> None:
        """Does the next step, unless the chain was given up while it waited for its turn."""
        if self._chain.given_up:
            self._guard(self._end, -errno.ECANCELED)
        else:
            self._guard(self._step)

    def __call__(self, result: Result) -> None:
        """After a step."""
        self._guard(self._went, result)

    def _step(self, _: int) -> None:
        if self._chain.given_up:
            self._end(-errno.ECANCELED)
            return
        size = min(self._left, STEP)
        if (self._offset | size) % self._requests.image.unit:
            self._bounce()
            return
        engine = self._requests.engine
        move = engine.pwritev if self._writing else engine.preadv
        move(self._chain, self._fd, self._offset, size, self._flags, self)

    def _went(self, result: int) -> None:
        if result in MISALIGNED and self._requests.image.direct:
            self._bounce()
        else:
            self._advance(result)

    def _advance(self, result: int) -> None:
        # Only where there is nothing more: the file may be longer by now than is known of it. What is missing
        # of more than a block was there when the request came, and is no end to be filled up.
        image = self._requests.image
        is_rest = self._offset >= image.length and self._left < image.block_size
        at_end = not self._writing and result == 0 and is_rest
        if result < 0 or (result == 0 and not at_end):  # 0 if the image has become shorter than it was
            self._end(result or -errno.EIO)
            return
        self._offset += result
        self._left -= result
        if at_end:
            self._chain.write(bytes(self._left))
            self._left = 0
        if not self._left:
            self._end(0)
        else:  # an engine may call back at once, and there may be many steps
            asyncio.get_running_loop().call_soon(self.begin)

    def _end(self, result: int) -> None:
        self._give_back()
        what = "write" if self._writing else "read"
        self._requests.end(self._queue, self._chain, what, self._offset, result)

    def _give_back(self) -> None:
        turns, self._turns = self._turns, 0
        bounces, self._bounces = self._bounces, 0
        self._requests.turns.give(turns)
        self._requests.bounces.give(bounces)

    def _guard(self, then: Callable[[int], None], result: Result = 0) -> None:
        """Calls `then`, whose exceptions, and those that an engine hands on, are the queue's."""
        hear(result, then, self._fail)

    def _fail(self, error: Exception) -> None:
        self._give_back()
        self._requests.fail(self._queue, error)

    # --- By way of memory of ours -----------------------------------------------------------------------

    def _bounce(self) -> None:
        """Does the next step with memory, and a range, that suit the host, when there is room for that."""
        self._requests.bounces.take(1, self._begin_bounce)

    def _begin_bounce(self) -> None:
        self._bounces = 1
        self._guard(self._write_bounced if self._writing else self._read_bounced)

    def _write_bounced(self, _: int) -> None:
        image, offset, flags = self._requests.image, self._offset, self._flags
        data = self._chain.read(min(self._left, STEP))
        self._do(lambda: bounce.write(image.fd, image.unit, offset, data, flags), self._bounced)

    def _read_bounced(self, _: int) -> None:
        image, offset, size = self._requests.image, self._offset, min(self._left, STEP)
        found: list[bytes] = []

        def work() -> int:
            found.append(bounce.read(image.fd, image.unit, offset, size))
            return len(found[0])

        def then(result: int) -> None:
            if result > 0:
                self._chain.write(found[0])
            self._bounced(result)

        self._do(work, then)

    def _do(self, work: Callable[[], int], then: Callable[[int], None]) -> None:
        self._requests.engine.do(self._chain, work, lambda result: self._guard(then, result))

    def _bounced(self, result: int) -> None:
        self._bounces = 0
        self._requests.bounces.give(1)
        self._advance(result)
