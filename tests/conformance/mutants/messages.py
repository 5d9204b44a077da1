"""Faults of framing, and of messages that make no sense."""

import signal
import socket
import time
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import MalformedMessage, UnknownRequest
from vhostd.vhost_user.dispatch import Dispatcher
from vhostd.vhost_user.messages import GET_FEATURES, SET_OWNER, SET_VRING_KICK
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.session import Session
from vhostd.vhost_user.vring import Vring
from vhostd.wire import rows
from vhostd.wire.channel import Channel, Received
from vhostd.wire.framing import HEADER, VERSION, VERSION_MASK, Dialect, Message, MessageReader

FLAG = 0x20  # which no version of the protocol has
KEPT: list[object] = []  # what is never closed


@breaks("MSG-1", "the reply has more flags")
def flags_of_its_own() -> None:
    """The replies of the third connection, which is that of the check, have a flag more."""
    sessions: list[Session] = []

    def init(before: Any, self: Session, *arguments: Any) -> None:
        sessions.append(self)
        before(self, *arguments)

    def encode(before: Any, self: Dialect, *arguments: Any, **keywords: Any) -> bytes:
        data: bytes = before(self, *arguments, **keywords)
        request, flags, size = HEADER.unpack_from(data)
        flags |= FLAG if len(sessions) == 3 else 0
        return HEADER.pack(request, flags, size) + data[HEADER.size :]

    replace(Session, "__init__", init)
    replace(Dialect, "encode", encode)


@breaks("MSG-2", "closed the connection")
def whole_packets_only() -> None:
    """Each read must give all that was asked for."""

    def read(before: Any, self: Channel, size: int) -> Received:
        received: Received = before(self, size)
        return received if len(received.data) == size else Received(b"", received.fds)

    replace(Channel, "_read", read)


@breaks("MSG-3", "did not answer in time", patience=SILENCE)
def one_message_a_packet() -> None:
    """What comes with SET_OWNER is lost, right after GET_FEATURES."""
    last: dict[Channel, int] = {}

    async def receive(before: Any, self: Channel) -> Any:
        message = await before(self)
        if message is not None:
            pair = last.get(self), message.request
            if pair == (GET_FEATURES.request, SET_OWNER.request):
                self._socket.recv(4096, socket.MSG_DONTWAIT)
            last[self] = message.request
        return message

    replace(Channel, "receive", receive)


@breaks("MSG-4", "a request of version 2 was answered")
def any_version() -> None:
    """The version is not looked at."""

    def check_header(before: Any, self: MessageReader) -> Any:
        request, flags, size = HEADER.unpack(self._data)
        self._data = HEADER.pack(request, flags & ~VERSION_MASK | VERSION, size)
        return before(self)

    replace(MessageReader, "_check_header", check_header)


@breaks("MSG-5", "was ended by SIGKILL")
def payload_of_any_size() -> None:
    """Memory is allocated for whatever the header says."""

    def check_header(before: Any, self: MessageReader) -> Any:
        if HEADER.unpack(self._data)[2] > 1 << 30:
            signal.raise_signal(signal.SIGKILL)  # as the kernel does when there is no memory
        return before(self)

    replace(MessageReader, "_check_header", check_header)


@breaks("MSG-6", "afterwards it served no new front-end", patience=SILENCE)
def waits_for_the_rest() -> None:
    """The rest of a message is waited for, though its sender has gone."""

    def check_end(before: Any, self: Channel) -> None:
        if not self._reader.between_messages:
            time.sleep(3600)
        before(self)

    replace(Channel, "_check_end", check_end)


@breaks("MSG-7", "a payload of 4 bytes in place of 8 was acked as well done")
def short_payloads() -> None:
    """What is missing of a payload is taken for zeroes."""

    def fit(before: Any, payload: bytes, layout: Any, padding: int) -> Any:
        return before(payload.ljust(getattr(layout, "SIZE", 0), b"\0"), layout, padding)

    replace(rows, "_fit", fit)


@breaks("MSG-8", "an unknown request was acked as well done")
def unknown_is_fine() -> None:
    """A request that is not known is passed over."""

    async def handle(before: Any, self: Dispatcher, message: Message) -> Any:
        try:
            return await before(self, message)
        except UnknownRequest:
            return None

    replace(Dispatcher, "_handle", handle)


@breaks("MSG-9", "an unknown request closed the connection")
def unknown_is_malformed() -> None:
    """A request that is not known ends the connection."""

    async def handle(before: Any, self: Dispatcher, message: Message) -> Any:
        try:
            return await before(self, message)
        except UnknownRequest as error:
            raise MalformedMessage(str(error)) from None

    replace(Dispatcher, "_handle", handle)


@breaks("MSG-10", "of ring 200 was accepted")
def ring_of_the_remainder() -> None:
    """A ring that is not there is another one."""
    replace(Rings, "_vring", lambda vring, self, index: vring(self, index % len(self._vrings)))


@breaks("MSG-11", "ring 0xffffffff was accepted")
def signed_index() -> None:
    """A ring's index is a signed number that is never less than zero."""
    replace(Rings, "_vring", lambda vring, self, index: vring(self, index if index < 1 << 31 else 0))


@breaks("MSG-12", "an fd that came with SET_OWNER is still open", patience=SILENCE)
def surplus_fds() -> None:
    """The fds of SET_OWNER are forgotten."""
    replace(Message, "close", _unless(SET_OWNER.request))


@breaks("MSG-13", "a call fd that was replaced is still open", patience=SILENCE)
def replaced_fds() -> None:
    """An eventfd that is replaced is forgotten."""

    def replace_fd(_before: Any, self: Vring, name: str, fd: Any) -> None:
        KEPT.append(getattr(self, name))
        setattr(self, name, self._notification(fd))

    replace(Vring, "_replace_fd", replace_fd)


@breaks("MSG-14", "a kick fd is still open", patience=SILENCE)
def refused_fds() -> None:
    """The fds of SET_VRING_KICK are forgotten if it is refused."""
    replace(Message, "close", _unless(SET_VRING_KICK.request))


def _unless(request: int) -> Any:
    """A `Message.close` that forgets to close what came with this request."""

    def close(before: Any, self: Message) -> None:
        if self.request == request:
            KEPT.append(self.fds)
        else:
            before(self)

    return close
