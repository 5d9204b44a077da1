"""Passes each message to its handler, and its reply back. Decides what an error costs the connection.

    request                     answer
    its handler succeeded       its own reply; else ack 0, if an ack was asked for
    malformed                   the connection is closed
    refused                     the row's refusal; else a non-zero ack, if asked for; else closing
    unknown                     a non-zero ack, if asked for; else closing if the peer now waits for a
                                reply of its own; else nothing
    starts a ring without       a non-zero ack, if asked for; else nothing: libvirt starts domains in this
    any guest memory            way, and QEMU copes better with a ring that stands still than without a
                                connection
    writes a wrong value to     the same: the value is from the guest's driver, and some front-ends (crosvm,
    the config space            libkrun) ask for no ack

Once REPLY_ACK is negotiated, the flag need_reply asks for an ack. In SET_PROTOCOL_FEATURES it counts already
if the message sets REPLY_ACK. A message with a reply of its own gets no ack. If a reply has the same layout
as its request, it is at most as long as the request was.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterable
from typing import Any

from vhostd.errors import NoGuestMemory, RefusedDriver, RefusedRequest, UnknownRequest
from vhostd.vhost_user.messages import FRONT_END, REQUESTS, SET_PROTOCOL_FEATURES, ProtocolFeature
from vhostd.wire.calls import Call, Fds, Reply, by_number
from vhostd.wire.channel import Channel
from vhostd.wire.fds import close_all
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64, Payload, Row

log = logging.getLogger(__name__)

ACK = U64(0)
NACK = U64(1)


class Agreed:
    """The protocol features that both sides of a connection have agreed on."""

    def __init__(self, protocol_features: int = 0) -> None:
        self.protocol_features = protocol_features  # a mask of ProtocolFeature bits

    def has(self, feature: int) -> bool:
        """Whether SET_PROTOCOL_FEATURES set the bit."""
        return bool(self.protocol_features >> feature & 1)


class Dispatcher:
    """Answers the requests of one connection, one after the other."""

    def __init__(self, channel: Channel, calls: Iterable[Call], agreed: Agreed) -> None:
        """`calls` has the methods that answer. If two calls are for one request, the later counts."""
        self._channel = channel
        self._calls = by_number(calls)
        self._agreed = agreed

    async def answer_requests(self) -> None:
        """Answers requests until the peer goes.

        Raises FrontendError when the caller must close the connection.
        """
        while (message := await self._channel.receive()) is not None:
            try:
                reply = await self._answer(message)
            finally:
                message.close()
            if reply is not None and not await self._send(message, reply):
                return
            await asyncio.sleep(0)  # a front-end that never pauses must not keep signals and rings waiting

    async def _answer(self, message: Message) -> Reply[Any] | None:
        row = self._row(message)
        acked = message.needs_reply and (
            self._agreed.has(ProtocolFeature.REPLY_ACK) or _agrees_to_acks(message)
        )
        try:
            reply = await self._handle(message) or (ACK if acked else None)
        except RefusedRequest as error:
            reply = _refusal(error, row, acked=acked)
            log.warning("refused: %s", error)
        return reply if reply is None or isinstance(reply, Reply) else Reply(reply, [])

    async def _send(self, message: Message, reply: Reply[Any]) -> bool:
        """Sends a reply and closes its fds; False if the peer has gone."""
        payload, fds = reply
        log.debug("> %s %s%s", FRONT_END.name(message.request), payload, _count(fds))
        row = self._row(message)
        most = len(message.payload) if row is not None and row.reply is row.payload else None
        data = FRONT_END.encode(message.request, payload, reply=True, most=most)
        try:
            await self._channel.send(data, tuple(fd.fileno() for fd in fds))
        except ConnectionError:
            return False
        finally:
            close_all(fds)
        return True

    def _row(self, message: Message) -> Row[Any, Any] | None:
        call = self._calls.get(message.request)
        return REQUESTS.get(message.request) if call is None else call.row

    async def _handle(self, message: Message) -> Payload | Reply[Any] | None:
        call = self._calls.get(message.request)
        if call is None:
            raise UnknownRequest(f"{FRONT_END.name(message.request)} is not served here")
        row = call.row
        payload = row.admit(message.payload, len(message.fds), self._agreed.protocol_features)
        if any(map(self._channel.is_peer, message.fds)):  # such an fd would keep the connection open
            raise RefusedRequest(f"{row} with the front-end's own end of this connection")
        log.debug("< %s %s%s", row, payload, _count(message.fds))
        reply = call.answer(payload, message.fds)
        result: Payload | Reply[Any] | None = await reply if isinstance(reply, Awaitable) else reply
        return result


def _refusal(error: RefusedRequest, row: Row[Any, Any] | None, *, acked: bool) -> Payload | None:
    """The reply to a refused request, or None for no reply; raises `error` if the connection must end."""
    if row is not None and row.reply is not None:
        if row.refusal is None:
            raise error
        return row.refusal
    if acked:
        return NACK
    if isinstance(error, UnknownRequest | NoGuestMemory | RefusedDriver):
        return None
    raise error


def _agrees_to_acks(message: Message) -> bool:
    """Whether the message sets REPLY_ACK. Such a message is answered as if REPLY_ACK were negotiated."""
    if message.request != SET_PROTOCOL_FEATURES.request or len(message.payload) < U64.SIZE:
        return False
    return bool(U64.unpack(message.payload[: U64.SIZE]).value >> ProtocolFeature.REPLY_ACK & 1)


def _count(fds: Fds) -> str:
    return f" ({len(fds)} fds)" if fds else ""
