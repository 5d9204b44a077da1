"""Requests in both directions: which method answers a request, and how a sent request gets its reply."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, TypeAlias

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.wire.channel import Channel
from vhostd.wire.fds import Fd
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64, Empty, P, R, Row

Fds = list[Fd]


class Reply(NamedTuple, Generic[R]):
    """A reply with fds. The fds of an answer are closed once it is sent."""

    payload: R
    fds: Fds


Answer: TypeAlias = R | Reply[R]


class Call:
    """A row, and the method that answers its requests."""

    def __init__(self, row: Row[Any, Any], answer: Callable[[Any, Fds], Any]) -> None:
        self.row = row
        self.answer = answer


def answer(row: Row[P, R], method: Callable[[P], Answer[R] | Awaitable[Answer[R]]]) -> Call:
    """Lets a method answer a request. It takes the payload and returns the row's reply, if there is one."""
    return Call(row, lambda payload, _fds: method(payload))


def answer_with_fds(row: Row[P, R], method: Callable[[P, Fds], Answer[R] | Awaitable[Answer[R]]]) -> Call:
    """Like `answer`, for a method that gets the fds too. Fds that it does not take are closed after it."""
    return Call(row, method)


def by_number(calls: Iterable[Call]) -> dict[int, Call]:
    """A table of calls by the request's number. If two calls have one number, the later counts."""
    return {call.row.request: call for call in calls}


class Caller:
    """Sends requests over a channel, and gives each its reply. Replies come in the order of the requests.

    A reply arrives only while a task is in `hear` or `listen`. Other code that sends on the channel must hold
    `turn`.
    """

    def __init__(self, channel: Channel) -> None:
        self.turn = asyncio.Lock()
        self._channel = channel
        self._expected: deque[_Expected] = deque()
        self._told: set[int] = set()  # the requests that were sent without a reply being due
        self._failure: Exception | None = None

    async def tell(self, row: Row[P, Any], payload: P, fds: Sequence[Fd] = ()) -> None:
        """Sends a request without a reply; raises ConnectionError once the peer has gone.

        The fds stay the caller's, here and in `ask`. Some peers ack every request; such an ack is ignored.
        """
        self._told.add(row.request)
        async with self.turn:
            await self._send(row, payload, fds)

    async def ask(
        self, row: Row[P, R], payload: P, fds: Sequence[Fd] = (), *, acked: bool = False
    ) -> "asyncio.Future[Reply[Any]]":
        """Sends a request; returns a future for its reply. The caller owns the reply's fds.

        With `acked`, the peer is asked for an ack, for a row without a reply of its own. The future raises
        RefusedRequest for the row's refusal or an ack that is not 0, MalformedMessage for a message that
        cannot be the reply, and ConnectionError if no reply comes.
        """
        answered: asyncio.Future[Reply[Any]] = asyncio.get_running_loop().create_future()
        async with self.turn:
            if self._failure is not None:
                raise self._failure
            due = partial(self._expected.append, _Expected(row, answered, acked=acked))
            try:
                await self._send(row, payload, fds, need_reply=acked, begun=due)
            except asyncio.CancelledError:
                answered.cancel()  # the reply may come all the same
                raise
            if self._failure is not None:  # it came while this was sent
                raise self._failure
        return answered

    async def hear(self) -> None:
        """Takes the next reply.

        Raises ConnectionResetError once the peer has gone, and MalformedMessage for a message that is not a
        reply, or a reply that was not due.
        """
        message = await self._channel.receive()
        if message is None:
            raise ConnectionResetError("the peer has closed the connection")
        try:
            self._take(message)
        finally:
            message.close()

    async def listen(self) -> None:
        """Takes replies until the peer goes; raises as `hear` does. Waiting futures get the error too."""
        try:
            while True:
                await self.hear()
                await asyncio.sleep(0)  # a peer that never pauses must not keep all others waiting
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
                _refuse(expected.answered, error)

    def _take(self, message: Message) -> None:
        if not self._expected or message.request != self._expected[0].row.request:
            if message.request in self._told:
                return
            name = self._channel.dialect.name(message.request)
            raise MalformedMessage(f"a reply to {name}, where none was due")
        expected = self._expected.popleft()
        if expected.answered.done():  # the caller no longer waits
            return
        try:
            reply = expected.understand(message)
        except (MalformedMessage, RefusedRequest) as error:
            _refuse(expected.answered, error)
        else:
            expected.answered.set_result(Reply(reply, [Fd(fd.take()) for fd in message.fds]))

    async def _send(
        self,
        row: Row[P, Any],
        payload: P,
        fds: Sequence[Fd],
        *,
        need_reply: bool = False,
        begun: Callable[[], object] = int,
    ) -> None:
        data = self._channel.dialect.encode(row.request, payload, need_reply=need_reply)
        await self._channel.send(data, tuple(fd.fileno() for fd in fds), begun)


def _refuse(answered: "asyncio.Future[Reply[Any]]", error: Exception) -> None:
    """Has who waits get the error; it is no fault if nobody waits any more."""
    answered.set_exception(error)
    answered.exception()  # else asyncio would complain that nobody has asked for it


class _Expected:
    """A reply that is due."""

    def __init__(self, row: Row[Any, Any], answered: "asyncio.Future[Reply[Any]]", *, acked: bool) -> None:
        self.row = row
        self.answered = answered
        self.acked = acked

    def understand(self, message: Message) -> Any:
        """The payload of the reply; RefusedRequest for a refusal, MalformedMessage for anything else."""
        row = self.row
        if self.acked:
            ack = Row(row.request, Empty, reply=U64).admit_reply(message.payload, len(message.fds))
            if ack.value:
                raise RefusedRequest(f"{row} was acked with {ack.value}")
            return None
        if row.refusal is not None and message.payload == row.refusal.pack():
            raise RefusedRequest(f"{row} was refused")
        return row.admit_reply(message.payload, len(message.fds))
