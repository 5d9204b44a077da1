"""Requests in both directions: who answers a request that came, and how one that is sent gets its reply."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeAlias

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64, Empty, P, R, Row

Fds = list[Fd]


class Reply(NamedTuple, Generic[R]):
    """A reply that takes fds along; who answers with it has them closed once it is sent."""

    payload: R
    fds: Fds


Answer: TypeAlias = R | Reply[R]


class Call(NamedTuple):
    """A row, and who answers such a request."""

    row: Row[Any, Any]
    answer: Callable[[Any, Fds], Any]


def answer(row: Row[P, R], method: Callable[[P], Answer[R] | Awaitable[Answer[R]]]) -> Call:
    """Has a method answer a request: it takes the payload and returns the row's reply, if there is one."""
    return Call(row, lambda payload, _fds: method(payload))


def answer_with_fds(row: Row[P, R], method: Callable[[P, Fds], Answer[R] | Awaitable[Answer[R]]]) -> Call:
    """As `answer`, for a method that takes the fds too; those that it leaves untaken are closed after it."""
    return Call(row, method)


def by_number(calls: Iterable[Call]) -> dict[int, Call]:
    """A table of calls, to be looked up by a request's number; of two for one number the later counts."""
    return {call.row.request: call for call in calls}


class Caller:
    """Sends requests over a channel, and hands each its reply: they come in the order of the requests.

    Somebody has to `hear`, or to `listen`, while replies are waited for. What is sent on the channel by
    others is sent within `turn`.
    """

    def __init__(self, channel: Channel) -> None:
        self.turn = asyncio.Lock()
        self._channel = channel
        self._expected: deque[_Expected] = deque()
        self._told: set[int] = set()  # the requests to which no reply is due
        self._failure: Exception | None = None

    async def tell(self, row: Row[P, Any], payload: P, fds: Sequence[Fd] = ()) -> None:
        """Sends a request to which no reply is due; ConnectionError once the peer has gone.

        The fds stay the caller's, here and in `ask`. Some peers ack everything: such an ack is ignored.
        """
        self._told.add(row.request)
        async with self.turn:
            await self._send(row, payload, fds)

    async def ask(
        self, row: Row[P, R], payload: P, fds: Sequence[Fd] = (), *, acked: bool = False
    ) -> "asyncio.Future[Reply[Any]]":
        """Sends a request; the future is to have its reply, whose fds are for who takes it.

        To a row that has no reply of its own the peer is asked for an ack, if it is to be `acked`. The future
        gets RefusedRequest for the row's refusal or an ack that is not 0, MalformedMessage for what cannot be
        the reply, and ConnectionError if there is none.
        """
        answered: asyncio.Future[Reply[Any]] = asyncio.get_running_loop().create_future()
        async with self.turn:
            if self._failure is not None:
                raise self._failure
            self._expected.append(_Expected(row, acked, answered))
            await self._send(row, payload, fds, need_reply=acked)
        return answered

    async def hear(self) -> None:
        """Takes the next reply.

        Raises ConnectionResetError once the peer has gone, and MalformedMessage for what is no reply, or one
        that was not due.
        """
        message = await self._channel.receive()
        if message is None:
            raise ConnectionResetError("the peer has closed the connection")
        try:
            self._take(message)
        finally:
            message.close()

    async def listen(self) -> None:
        """Takes replies until the peer goes; raises as `hear` does. Who waits hears of it, too."""
        try:
            while True:
                await self.hear()
        except (ConnectionError, MalformedMessage) as error:
            self._fail(error)
            raise
        except asyncio.CancelledError:
            self._fail(ConnectionResetError("no reply is waited for any more"))
            raise

    def _fail(self, error: Exception) -> None:
        self._failure = error
        for expected in self._expected:
            if not expected.answered.done():
                expected.answered.set_exception(error)

    def _take(self, message: Message) -> None:
        if not self._expected or message.request != self._expected[0].row.request:
            if message.request in self._told:
                return
            name = self._channel.dialect.name(message.request)
            raise MalformedMessage(f"a reply to {name}, where none was due")
        expected = self._expected.popleft()
        if expected.answered.done():  # nobody waits for it any more
            return
        try:
            reply = expected.understand(message)
        except (MalformedMessage, RefusedRequest) as error:
            expected.answered.set_exception(error)
        else:
            expected.answered.set_result(Reply(reply, [Fd(fd.take()) for fd in message.fds]))

    async def _send(
        self, row: Row[P, Any], payload: P, fds: Sequence[Fd], *, need_reply: bool = False
    ) -> None:
        data = self._channel.dialect.encode(row.request, payload, need_reply=need_reply)
        await self._channel.send(data, tuple(fd.fileno() for fd in fds))


class _Expected(NamedTuple):
    """A reply that is due."""

    row: Row[Any, Any]
    acked: bool
    answered: "asyncio.Future[Reply[Any]]"

    def understand(self, message: Message) -> Any:
        """The payload of the reply; RefusedRequest if it says no, MalformedMessage if it is none."""
        row = self.row
        if self.acked:
            ack = Row(row.request, Empty, reply=U64).admit_reply(message.payload, len(message.fds))
            if ack.value:
                raise RefusedRequest(f"{row} was acked with {ack.value}")
            return None
        if row.refusal is not None and message.payload == row.refusal.pack():
            raise RefusedRequest(f"{row} was refused")
        return row.admit_reply(message.payload, len(message.fds))
