"""What one check does with a back-end: connections, memory and rings, all gone at its end."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from vhostd.conformance.process import Process
from vhostd.conformance.ring import CLOSED, Ring
from vhostd.conformance.subject import Subject
from vhostd.conformance.verdict import Failed, skip
from vhostd.errors import DeviceError, GuestError, MalformedMessage, RefusedRequest
from vhostd.frontend import BackendRequests, Frontend, GpuDisplay, Queue, SharedMemory, raw_message
from vhostd.frontend.frontend import INFLIGHT, KNOWN_PROTOCOL, UNWANTED, UNWANTED_PROTOCOL
from vhostd.frontend.pipe import read_all
from vhostd.vhost_user.messages import GET_FEATURES, ProtocolFeature
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import Call
from vhostd.wire.fds import Fd
from vhostd.wire.framing import VERSION, Message
from vhostd.wire.rows import Bit, Empty, Row

__all__ = ["CLOSED", "Ring", "Trial"]

MEMORY_SIZE = 16 << 20
STATUS = mask(ProtocolFeature.STATUS)
PAUSE = 0.005  # seconds until it looks again
REACTION = 0.5  # seconds


class _Closable(Protocol):
    def close(self) -> None: ...


Closable = TypeVar("Closable", bound=_Closable)


class Trial:
    """The dealings of one check with the `subject`; closes what it has opened when the block ends."""

    def __init__(self, subject: Subject, *, packed: bool = False) -> None:
        """Its rings are `packed` unless something else is said."""
        self.subject = subject
        self.packed = packed
        self._cleanup = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes what was opened until now."""
        await self._cleanup.aclose()

    # --- To be connected --------------------------------------------------------------------------------

    async def connect(self) -> Frontend:
        """A new connection, on which nothing was said yet."""
        return self.owns(await self.subject.connect())

    async def knock(self) -> Frontend | None:
        """A connection beside another one; None if there can be none."""
        if (frontend := await self.subject.knock()) is not None:
            self._cleanup.callback(frontend.close)
        return frontend

    async def negotiate(
        self,
        features: int | None = None,
        protocol_features: int | None = None,
        *,
        packed: bool | None = None,
        resume: bool = False,
        without: Sequence[Bit] = (),
        in_flight: bool = False,
        status: bool = False,
    ) -> Frontend:
        """A new connection with these features, as far as offered; see `Frontend.negotiate`.

        It does so `without` some of those that are negotiated by default. What is `in_flight` is not
        tracked by default: with libvhost-user no ring works then before it has got an area. And by default
        there is no `status`: with DPDK no ring works then before DRIVER_OK.
        """
        frontend = await self.connect()
        packed = self.packed if packed is None else packed
        if without:
            features = ~(UNWANTED | mask(*without) | (0 if packed else mask(Feature.RING_PACKED)))
        if protocol_features is None:
            unwanted = UNWANTED_PROTOCOL | (0 if in_flight else INFLIGHT) | (0 if status else STATUS)
            protocol_features = KNOWN_PROTOCOL & ~unwanted
        await frontend.negotiate(features, protocol_features, packed=packed, resume=resume)
        return frontend

    def memory(self, size: int = MEMORY_SIZE, **places: int) -> SharedMemory:
        """Memory of a guest, not shared yet."""
        return self.owns(SharedMemory(size, **places))

    @property
    def process(self) -> Process:
        """The program's process; skips the check if the back-end runs elsewhere."""
        program = self.subject.program or skip("this needs a command that starts the program")
        return Process(program.pid)

    def fd(self, number: int) -> Fd:
        """Owns an fd until the end of the check."""
        return self.owns(Fd(number))

    def eventfd(self) -> Fd:
        """A fresh eventfd."""
        return self.fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    async def requests(self, frontend: Frontend, *calls: Call) -> BackendRequests:
        """What the back-end asks, from now on; answered by these calls."""
        requests = BackendRequests(frontend, calls)
        await requests.connect()
        self._cleanup.push_async_callback(requests.close)
        return requests

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

    def on_end(self, call: Callable[[], Awaitable[None]]) -> None:
        """Has it called at the end of the check."""
        self._cleanup.push_async_callback(call)

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
        packed: bool | None = None,
        base: int | None = None,
        started: bool = True,
    ) -> Ring:
        """A ring of the device on which its exchange works; with the other rings that it needs.

        It begins at `base`. If it is not `started`, the back-end has not heard of it yet. Skips the check if
        no exchange is known, or packed rings are wanted and not offered.
        """
        exchange = self.subject.exchange or skip(
            f"no request is known here for a {self.subject.kind or 'device'}"
        )
        packed = self.packed if packed is None else packed
        if packed and not self.subject.has(Feature.RING_PACKED):
            skip("packed rings are not offered")
        frontend = frontend or await self.negotiate(packed=packed)
        if memory is None:
            memory = self.memory()
            await frontend.share(memory)
        if self.subject.kind == "gpu":  # it asks its display what there is
            self.owns(await GpuDisplay.show(frontend))
        queues = [
            frontend.queue(memory, index, size, base if index == exchange.queue else None)
            for index in range(exchange.queues)
        ]
        ring = self.owns(Ring(frontend, memory, queues, exchange))
        for queue in queues:
            if started or queue is not ring.queue:
                await ring.start(queue)
        return ring

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

    async def until(self, holds: Callable[[], bool], otherwise: str) -> None:
        """Expects what nothing tells of, as of a process: looks again and again."""
        try:
            async with asyncio.timeout(self.subject.patience):
                while not holds():
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise Failed(otherwise) from None

    async def ends(self, pipe: Fd, otherwise: str) -> None:
        """Expects that nobody holds the other end of a pipe any more."""
        try:
            async with asyncio.timeout(self.subject.patience):
                await read_all(pipe)
        except TimeoutError:
            raise Failed(otherwise) from None

    async def survived(self, frontend: Frontend, what: str) -> None:
        """Ends a connection, and expects a new front-end to be served: for a check that makes several."""
        frontend.close()
        try:
            await self.subject.settle()
        except Failed as failed:
            raise Failed(f"{what}: {failed}") from None

    async def answers(self, frontend: Frontend, otherwise: str) -> None:
        """Expects it to go on serving this connection; `otherwise` it has closed that."""
        try:
            await frontend.call(GET_FEATURES, Empty())
        except ConnectionError:
            raise Failed(otherwise) from None
        except MalformedMessage as error:
            raise Failed(f"what came was no reply to GET_FEATURES: {error}") from None
