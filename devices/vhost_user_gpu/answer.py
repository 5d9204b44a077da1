"""What a command is answered with, now or later."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

from vhost_user_gpu.commands import Response

Answer: TypeAlias = tuple[Response, bytes]  # a response's type, and the bytes after its header

DONE: Answer = (Response.OK_NODATA, b"")


class Pending:
    """An answer that comes later."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._waiting: list[Callable[[Answer], None]] = []

    @property
    def is_answered(self) -> bool:
        """Whether the answer is there."""
        return self._answer is not None

    def then(self, call: Callable[[Answer], None]) -> None:
        """Calls it with the answer, as soon as that is there."""
        if self._answer is None:
            self._waiting.append(call)
        else:
            call(self._answer)

    async def answered(self) -> None:
        """Waits until the answer is there."""
        there = asyncio.get_running_loop().create_future()
        self.then(lambda _: None if there.done() else there.set_result(None))
        await there

    def finish(self, answer: Answer) -> None:
        """The answer is there."""
        self._answer = answer
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call(answer)
