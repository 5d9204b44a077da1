"""What one check does with a back-end: connections, memory and rings, all gone at its end."""

import asyncio
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from vhostd.conformance.exchange import Exchange
from vhostd.conformance.subject import Subject
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import DeviceError, GuestError, MalformedMessage, RefusedRequest
from vhostd.frontend import Frontend, GpuDisplay, Queue, SharedMemory, raw_message
from vhostd.frontend.pipe import read_all
from vhostd.vhost_user.messages import GET_FEATURES, ProtocolFeature
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd
from vhostd.wire.framing import VERSION, Message
from vhostd.wire.rows import Empty, Row

MEMORY_SIZE = 16 << 20
REACTION = 0.5  # seconds
CLOSED = (ConnectionError, MalformedMessage)


class _Closable(Protocol):
    def close(self) -> None: ...


Closable = TypeVar("Closable", bound=_Closable)


class Trial:
    """The dealings of one check with the `subject`; closes what it has opened when the block ends."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._cleanup = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._cleanup.aclose()

    # --- To be connected --------------------------------------------------------------------------------

    async def connect(self) -> Frontend:
        """A new connection, on which nothing was said yet."""
        return self.owns(await self.subject.connect())

    async def negotiate(
        self,
        features: int | None = None,
        protocol_features: int | None = None,
        *,
        packed: bool = False,
        resume: bool = False,
    ) -> Frontend:
        """A new connection with these features, as far as offered; see `Frontend.negotiate`."""
        frontend = await self.connect()
        await frontend.negotiate(features, protocol_features, packed=packed, resume=resume)
        return frontend

    def memory(self, size: int = MEMORY_SIZE, **places: int) -> SharedMemory:
        """Memory of a guest, not shared yet."""
        return self.owns(SharedMemory(size, **places))

    def fd(self, number: int) -> Fd:
        """Owns an fd until the end of the check."""
        return self.owns(Fd(number))

    # --- Messages, byte by byte -------------------------------------------------------------------------

    def message(
        self, row: Row[Any, Any], payload: Any, *, flags: int = VERSION, size: int | None = None
    ) -> bytes:
        """The bytes of a request, with these flags, for `Frontend.send_raw`."""
        return raw_message(row.request, payload.pack(), flags=flags, size=size)

    async def next_reply(self, frontend: Frontend) -> Message:
        """The next message of the back-end, whatever it is."""
        async with asyncio.timeout(self.subject.patience):
            message = await frontend.channel.receive()
        if message is None:
            raise ConnectionResetError("the back-end has closed the connection")
        message.close()
        return message

    async def reply_to(self, frontend: Frontend, row: Row[Any, Any], payload: Any) -> Message:
        """The first message after this request, which may be the reply to another one."""
        await frontend.send_raw(self.message(row, payload))
        return await self.next_reply(frontend)

    def owns(self, thing: Closable) -> Closable:
        """Closes it at the end of the check."""
        self._cleanup.callback(thing.close)
        return thing

    # --- Rings that work --------------------------------------------------------------------------------

    async def ring(
        self,
        frontend: Frontend | None = None,
        memory: SharedMemory | None = None,
        *,
        size: int = 64,
        packed: bool = False,
    ) -> "Ring":
        """A ring of the device on which its exchange works; with the other rings that it needs.

        Skips the check if no exchange is known, or packed rings are wanted and not offered.
        """
        exchange = self.subject.exchange or skip(
            f"no request is known here for a {self.subject.kind or 'device'}"
        )
        if packed and not self.subject.has(Feature.RING_PACKED):
            skip("packed rings are not offered")
        frontend = frontend or await self.negotiate(packed=packed)
        if memory is None:
            memory = self.memory()
            await frontend.share(memory)
        if self.subject.kind == "gpu":  # it asks its display what there is
            self.owns(await GpuDisplay.show(frontend))
        queues = [await self.start(frontend, memory, index, size=size) for index in range(exchange.queues)]
        return Ring(frontend, memory, queues, exchange)

    async def start(
        self, frontend: Frontend, memory: SharedMemory, index: int = 0, *, size: int = 64
    ) -> Queue:
        """Starts a ring of shared memory, which is closed at the end of the check."""
        return self.owns(await frontend.start(memory, index, size))

    # --- What must not go well --------------------------------------------------------------------------

    async def refused(
        self, frontend: Frontend, row: Row[Any, Any], payload: Any, *fds: Fd, reason: str
    ) -> None:
        """Expects a request to be refused: by its ack, or by the end of the connection.

        Without REPLY_ACK the back-end has only the second, or may ignore what it cannot do: then the
        check sees nothing, and ends.
        """
        if row.reply is None and not frontend.has(ProtocolFeature.REPLY_ACK):
            skip("without REPLY_ACK nobody sees whether a request was refused")
        try:
            await frontend.call(row, payload, *fds)
        except (RefusedRequest, *CLOSED):
            return
        raise Failed(reason)

    async def closed(self, frontend: Frontend) -> bool:
        """Whether the back-end has closed the connection, when it has taken all that was sent before."""
        try:
            await frontend.call(GET_FEATURES, Empty())
        except CLOSED:
            return True
        return False

    async def provoke(self, frontend: Frontend, queue: Queue) -> None:
        """Gives the device time to do with a hostile ring whatever it does, and then stops that ring.

        It may give chains back, stop the ring, close the connection, or do nothing at all.
        """
        with suppress(TimeoutError, GuestError, DeviceError, *CLOSED):
            async with asyncio.timeout(REACTION):
                await queue.used()
        with suppress(RefusedRequest, *CLOSED):
            await frontend.stop(queue)

    async def answers_or_closes(self, frontend: Frontend) -> None:
        """Waits until it has taken all that was sent, whatever it thinks of it."""
        await self.closed(frontend)

    async def ends(self, pipe: Fd, otherwise: str) -> None:
        """Expects that nobody holds the other end of a pipe any more."""
        try:
            async with asyncio.timeout(self.subject.patience):
                await read_all(pipe)
        except TimeoutError:
            raise Failed(otherwise) from None

    async def answers(self, frontend: Frontend, otherwise: str) -> None:
        """Expects it to go on serving this connection."""
        try:
            await frontend.call(GET_FEATURES, Empty())
        except CLOSED:
            raise Failed(otherwise) from None


class Ring:
    """A ring on which a valid request can be sent at any time."""

    def __init__(
        self, frontend: Frontend, memory: SharedMemory, queues: list[Queue], exchange: Exchange
    ) -> None:
        self.frontend = frontend
        self.memory = memory
        self.queues = queues
        self.exchange = exchange
        self.queue = queues[exchange.queue]

    def post(self) -> int:
        """Makes a valid request available, without a kick; returns its head."""
        return self.queue.add(self.exchange.request, self.exchange.room)

    async def answer(self) -> None:
        """Expects the next answer, and that it is a good one."""
        try:
            _, answer = await self.queue.used()
        except TimeoutError:
            raise Failed("a valid request was not answered") from None
        except (GuestError, *CLOSED) as error:
            raise Failed(f"a valid request was not answered: {error}") from None
        expect(
            self.exchange.good(answer), f"a valid request was answered by {answer[:32].hex(' ') or 'nothing'}"
        )

    async def work(self, times: int = 1) -> None:
        """Expects valid requests to be answered."""
        for _ in range(times):
            self.post()
            self.queue.kick()
            await self.answer()
