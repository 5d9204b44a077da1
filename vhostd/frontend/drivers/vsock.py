"""A guest's virtio-vsock driver to script: connections with credit both ways (virtio 1.3, 5.10).

The numbers are written down here once more, so that a device of ours and this driver check each other.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Self

from vhostd.errors import DeviceError, GuestError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipeline import Pipeline
from vhostd.frontend.queue import Queue
from vhostd.wire.layout import Layout, u16, u32, u64

HOST = 2
STREAM, SEQPACKET = 1, 2  # types
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)  # operations
SHUTDOWN_RECEIVE, SHUTDOWN_SEND = 1, 2  # flags of SHUTDOWN
SEQ_EOM, SEQ_EOR = 1, 2  # flags of RW
BUF_ALLOC = 1 << 18  # bytes that a connection keeps at most, as Linux's
FIRST_PORT = 49152
MOST_PACKET = 1 << 16  # bytes of data that the driver sends at once
WORD = 1 << 32


class Packet(Layout):
    """struct virtio_vsock_hdr."""

    src_cid: u64
    dst_cid: u64
    src_port: u32
    dst_port: u32
    len: u32
    type: u16
    op: u16
    flags: u32
    buf_alloc: u32
    fwd_cnt: u32


class VsockConnection:
    """A connected socket of the guest's. `receive` reads its bytes, `receive_message` whole messages."""

    def __init__(self, driver: "VsockDriver", local_port: int, peer: tuple[int, int], kind: int) -> None:
        self.local_port, self.peer, self.kind = local_port, peer, kind
        self.buf_alloc = BUF_ALLOC
        self.closed = False  # RST has come, or was sent
        self.peer_shutdown = 0
        self._driver = driver
        self._arrived: deque[tuple[bytes, int]] = deque()  # data and flags of packets
        self._held = self._forwarded = self._announced = 0
        self._sent = self._peer_buf_alloc = self._peer_fwd_cnt = 0
        self._changed = asyncio.Event()

    @property
    def credit(self) -> int:
        """How many bytes the device keeps still; Linux sends no more than its own end keeps, either."""
        return min(self._peer_buf_alloc, self.buf_alloc) - (self._sent - self._peer_fwd_cnt) % WORD

    async def send(self, data: bytes, flags: int = 0) -> None:
        """Sends bytes, or a message; raises BrokenPipeError when the other end takes no more."""
        view = memoryview(data)
        while view:
            await self.until(lambda: self.credit > 0 or self.closed or bool(self.peer_shutdown & 1))
            if self.closed or self.peer_shutdown & SHUTDOWN_RECEIVE:
                raise BrokenPipeError
            part = view[: min(self.credit, MOST_PACKET)]
            view = view[len(part) :]
            ends = SEQ_EOM | flags if self.kind == SEQPACKET and not view else 0
            self._sent += len(part)
            await self.tell(RW, ends, bytes(part))

    async def receive(self, most: int = BUF_ALLOC) -> bytes:
        """The next bytes, so many at most; none when the other end sends no more."""
        await self.until(self._has_something)
        if not self._arrived:
            return b""
        data, flags = self._arrived.popleft()
        if len(data) > most:
            self._arrived.appendleft((data[most:], flags))
        await self._forward(len(data[:most]))
        return data[:most]

    async def receive_exactly(self, size: int) -> bytes:
        """So many bytes; EOFError if the other end sends fewer."""
        parts = []
        while size:
            if not (part := await self.receive(size)):
                raise EOFError
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    async def receive_message(self) -> tuple[bytes, int]:
        """The next message, and the flags at its end; no bytes when the other end sends no more."""
        parts, flags = [], 0
        while not flags & SEQ_EOM:
            await self.until(self._has_something)
            if not self._arrived:
                return b"", 0
            data, flags = self._arrived.popleft()
            parts.append(data)
            await self._forward(len(data))
        return b"".join(parts), flags

    async def shutdown(self, flags: int) -> None:
        """Says that this end sends no more, takes no more, or both."""
        await self.tell(SHUTDOWN, flags)

    async def close(self) -> None:
        """Says that this end is closed, and waits until the device has answered."""
        if not self.closed:
            await self.shutdown(SHUTDOWN_RECEIVE | SHUTDOWN_SEND)
            await self.until(lambda: self.closed)

    async def until_closed(self) -> None:
        """Waits for RST."""
        await self.until(lambda: self.closed)

    async def tell(self, op: int, flags: int = 0, data: bytes = b"") -> None:
        """Sends a packet of this connection, with its credit."""
        self._announced = self._forwarded
        packet = Packet(
            src_cid=self._driver.cid,
            dst_cid=self.peer[0],
            src_port=self.local_port,
            dst_port=self.peer[1],
            len=len(data),
            type=self.kind,
            op=op,
            flags=flags,
            buf_alloc=self.buf_alloc,
            fwd_cnt=self._forwarded % WORD,
        )
        await self._driver.send(packet, data)

    def take(self, packet: Packet, data: bytes) -> None:
        """A packet of this connection has come."""
        self._peer_buf_alloc, self._peer_fwd_cnt = packet.buf_alloc, packet.fwd_cnt
        if packet.op == RW:
            self._held += len(data)
            if self._held > self.buf_alloc:
                raise DeviceError(f"{self._held} bytes came, where {self.buf_alloc} are kept")
            self._arrived.append((data, packet.flags))
        elif packet.op == SHUTDOWN:
            self.peer_shutdown |= packet.flags
        elif packet.op == RST:
            self.closed = True
        elif packet.op == CREDIT_REQUEST:
            self._driver.later(self.tell(CREDIT_UPDATE))
        self._changed.set()

    def _has_something(self) -> bool:
        return bool(self._arrived) or self.closed or bool(self.peer_shutdown & SHUTDOWN_SEND)

    async def _forward(self, size: int) -> None:
        """So many bytes were taken by the reader: the device hears of it when much of the room was used."""
        self._held -= size
        self._forwarded += size
        if self._forwarded - self._announced > self.buf_alloc // 4 and not self.closed:
            await self.tell(CREDIT_UPDATE)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for a packet after which this is so; raises what has ended the driver."""
        while not condition():
            self._driver.check()
            self._changed.clear()
            await self._changed.wait()

    def wake(self) -> None:
        """The driver has ended."""
        self._changed.set()


class VsockDriver:
    """Drives a socket device over its rx and tx queues, which it owns.

    Raises DeviceError for what no device may say, and what a `Pipeline` raises.
    """

    def __init__(self, rx: Queue, tx: Queue, cid: int, *, room: int = 4096) -> None:
        """Gives the device as many receive buffers of `room` bytes as the ring takes."""
        self.cid = cid
        self.strays: deque[Packet] = deque()  # packets of no connection
        self._rx, self._tx = rx, Pipeline(tx)
        self._room = room
        self._connections: dict[tuple[int, int, int], VsockConnection] = {}
        self._listening: dict[int, asyncio.Queue[VsockConnection]] = {}
        self._next_port = FIRST_PORT
        self._failure: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        for _ in range(rx.size):
            rx.add(room=room)
        rx.kick()
        self._loop = asyncio.get_running_loop()
        self._watched = rx.fileno()
        self._loop.add_reader(self._watched, self._called)

    @classmethod
    async def start(
        cls, frontend: Frontend, memory: SharedMemory, *, size: int = 128, room: int = 4096
    ) -> Self:
        """Starts both queues; the CID is from the config space."""
        cid = int.from_bytes(await frontend.read_config(0, 8), "little")
        rx, tx = [await frontend.start(memory, index, size) for index in range(2)]
        return cls(rx, tx, cid, room=room)

    async def connect(
        self, port: int, *, kind: int = STREAM, cid: int = HOST, local_port: int | None = None
    ) -> VsockConnection:
        """A connection to a port of the host, or of another guest; or ConnectionRefusedError."""
        if local_port is None:
            local_port = self._next_port
            self._next_port += 1
        connection = self._open(local_port, (cid, port), kind)
        await connection.tell(REQUEST)
        await connection.until(lambda: connection.closed or connection._peer_buf_alloc > 0)
        if connection.closed:
            raise ConnectionRefusedError
        return connection

    def listen(self, port: int) -> None:
        """Has connections to this port wait for `accept`; to other ports the answer is RST."""
        self._listening[port] = asyncio.Queue()

    async def accept(self, port: int) -> VsockConnection:
        """The next connection to this port."""
        return await self._listening[port].get()

    async def send(self, packet: Packet, data: bytes = b"") -> None:
        """Sends a packet as it is, and waits until the device has taken it."""
        await self._tx.request((packet.pack(), data))

    def later(self, sending: Coroutine[Any, Any, None]) -> None:
        """Has something sent soon."""
        task = self._loop.create_task(sending)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def check(self) -> None:
        """Raises what has ended the driver, if it has ended."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Closes the queues; what still waits is cancelled. Idempotent."""
        self._fail(asyncio.CancelledError())
        for task in self._tasks:
            task.cancel()
        self._tx.close()
        self._rx.close()

    def _open(self, port: int, peer: tuple[int, int], kind: int) -> VsockConnection:
        connection = self._connections[(port, *peer)] = VsockConnection(self, port, peer, kind)
        return connection

    def _called(self) -> None:
        try:
            self._rx.heed()
            self._collect()
            while self._rx.driver.arm():
                self._collect()
        except (DeviceError, GuestError, ConnectionError) as error:
            self._fail(error)

    def _collect(self) -> None:
        while (used := self._rx.poll()) is not None:
            self._take(used[1])
            self._rx.add(room=self._room)
        self._rx.kick()

    def _take(self, data: bytes) -> None:
        packet, payload = Packet.unpack(data[: Packet.SIZE]), data[Packet.SIZE :]
        if packet.len != len(payload) or packet.dst_cid != self.cid:
            raise DeviceError(f"{packet} with {len(payload)} bytes of data")
        key = packet.dst_port, packet.src_cid, packet.src_port
        connection = self._connections.get(key)
        if connection is None and packet.op == REQUEST:
            self._called_by(packet)
        elif connection is None:
            self.strays.append(packet)
        else:
            connection.take(packet, payload)
            if connection.closed:
                del self._connections[key]

    def _called_by(self, packet: Packet) -> None:
        """A request: it is taken, or answered by RST."""
        connection = self._open(packet.dst_port, (packet.src_cid, packet.src_port), packet.type)
        connection.take(packet, b"")
        if packet.dst_port in self._listening:
            self.later(connection.tell(RESPONSE))
            self._listening[packet.dst_port].put_nowait(connection)
        else:
            del self._connections[(packet.dst_port, packet.src_cid, packet.src_port)]
            self.later(connection.tell(RST))

    def _fail(self, failure: BaseException) -> None:
        if self._failure is None:
            self._failure = failure
            self._loop.remove_reader(self._watched)
            for connection in self._connections.values():
                connection.wake()
