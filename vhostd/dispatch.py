"""From a message to its handler and back to a reply: the error policy of a connection.

    a request ...               is answered by
    that its handler served     its own reply; else ack 0, if an ack was asked for
    that is malformed           closing the connection
    that is refused             the row's refusal; else a non-zero ack, if asked for; else closing
    that is unknown             a non-zero ack, if asked for; else closing if the peer now waits for a
                                reply of its own; else nothing
    to start a ring without     a non-zero ack, if asked for; else nothing: libvirt starts domains like
    any guest memory            that, and QEMU bears a ring that stands still better than one that is gone
    to write to the config      the same: the guest's driver wants it, and some front-ends (crosvm,
    space what cannot be        libkrun) ask for no ack

An ack is asked for by need_reply once REPLY_ACK is negotiated, also by the very message that negotiates it,
or would; a message with a reply of its own gets none. A reply that has the layout of its request is no longer
than that was.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeAlias, TypeVar

from vhostd.channel import Channel
from vhostd.errors import NoGuestMemory, RefusedDriver, RefusedRequest, UnknownRequest
from vhostd.fds import Fd, close_all
from vhostd.framing import Message, describe, encode
from vhostd.messages import (
    REQUESTS,
    SET_PROTOCOL_FEATURES,
    U64,
    P,
    Payload,
    ProtocolFeature,
    R,
    Request,
    Row,
)

log = logging.getLogger(__name__)

S = TypeVar("S")
Fds = list[Fd]


class Reply(NamedTuple, Generic[R]):
    """What a handler returns for a reply that takes fds along, which are closed once it is sent."""

    payload: R
    fds: Fds


Answer: TypeAlias = R | Reply[R]
Plain = Callable[[S, P], Answer[R] | Awaitable[Answer[R]]]
WithFds = Callable[[S, P, Fds], Answer[R] | Awaitable[Answer[R]]]

ACK = U64(0)
NACK = U64(1)


def handles(row: Row[P, R]) -> Callable[[Plain[S, P, R]], Plain[S, P, R]]:
    """Makes a method the row's handler: it takes the payload and returns the row's reply, if there is one."""

    def register(method: Plain[S, P, R]) -> Plain[S, P, R]:
        vars(method)["serves"] = (row, lambda session, payload, _fds: method(session, payload))
        return method

    return register


def handles_fds(row: Row[P, R]) -> Callable[[WithFds[S, P, R]], WithFds[S, P, R]]:
    """As `handles`, for a method that takes the fds too; those that it leaves untaken are closed after it."""

    def register(method: WithFds[S, P, R]) -> WithFds[S, P, R]:
        vars(method)["serves"] = (row, method)
        return method

    return register


class Dispatcher:
    """Serves the requests of one connection, one after the other, with the handlers of a subclass."""

    handlers: ClassVar[dict[int, Callable[..., Any]]] = {}

    def __init_subclass__(cls) -> None:
        methods = [member for member in vars(cls).values() if inspect.isfunction(member)]
        served = [vars(method)["serves"] for method in methods if "serves" in vars(method)]
        cls.handlers = cls.handlers | {row.request: handler for row, handler in served}

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.protocol_features = 0  # negotiated ones, a mask of ProtocolFeature bits

    async def serve(self) -> None:
        """Answers requests until the peer goes.

        Raises FrontendError where the policy is to close the connection, which is left to the caller.
        """
        while (message := await self.channel.receive()) is not None:
            try:
                reply = await self._answer(message)
            finally:
                message.close()
            if reply is not None and not await self._send(message, reply):
                return
            await asyncio.sleep(0)  # a front-end that never pauses must not keep signals and rings waiting

    def negotiated(self, feature: ProtocolFeature) -> bool:
        """Whether SET_PROTOCOL_FEATURES set the bit."""
        return bool(self.protocol_features >> feature & 1)

    async def _answer(self, message: Message) -> Reply[Any] | None:
        row = REQUESTS.get(message.request)
        acked = message.needs_reply and (self.negotiated(ProtocolFeature.REPLY_ACK) or _negotiates(message))
        try:
            reply = await self._handle(row, message) or (ACK if acked else None)
        except RefusedRequest as error:
            reply = _refusal(error, row, acked=acked)
            log.warning("refused: %s", error)
        return reply if reply is None or isinstance(reply, Reply) else Reply(reply, [])

    async def _send(self, message: Message, reply: Reply[Any]) -> bool:
        """Sends a reply and closes its fds; False if the peer has gone."""
        payload, fds = reply
        log.debug("> %s %s%s", describe(Request, message.request), payload, _count(fds))
        row = REQUESTS.get(message.request)
        most = len(message.payload) if row is not None and row.reply is row.payload else None
        data = encode(message.request, payload, reply=True, most=most)
        try:
            await self.channel.send(data, tuple(fd.fileno() for fd in fds))
        except ConnectionError:
            return False
        finally:
            close_all(fds)
        return True

    async def _handle(self, row: Row[Any, Any] | None, message: Message) -> Payload | Reply[Any] | None:
        if row is None or row.request not in self.handlers:
            raise UnknownRequest(f"{describe(Request, message.request)} is not served here")
        payload = row.admit(message.payload, len(message.fds), self.protocol_features)
        if any(map(self.channel.is_peer, message.fds)):  # with it we would keep this connection open for ever
            raise RefusedRequest(f"{row} with the front-end's own end of this connection")
        log.debug("< %s %s%s", row, payload, _count(message.fds))
        reply = self.handlers[row.request](self, payload, message.fds)
        result: Payload | Reply[Any] | None = await reply if inspect.isawaitable(reply) else reply
        return result


def _refusal(error: RefusedRequest, row: Row[Any, Any] | None, *, acked: bool) -> Payload | None:
    """The reply that says no, None to say nothing; raises `error` where the connection must end instead."""
    if row is not None and row.reply is not None:
        if row.refusal is None:
            raise error
        return row.refusal
    if acked:
        return NACK
    if isinstance(error, UnknownRequest | NoGuestMemory | RefusedDriver):
        return None
    raise error


def _negotiates(message: Message) -> bool:
    """Whether it is the one that negotiates REPLY_ACK, to be answered as if that were done."""
    if message.request != SET_PROTOCOL_FEATURES.request or len(message.payload) < U64.SIZE:
        return False
    return bool(U64.unpack(message.payload[: U64.SIZE]).value >> ProtocolFeature.REPLY_ACK & 1)


def _count(fds: Fds) -> str:
    return f" ({len(fds)} fds)" if fds else ""
