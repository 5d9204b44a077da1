"""The front-end's part of the protocol, one request at a time."""

import asyncio
import fcntl
import os
import socket
import sys
import termios
from contextlib import suppress
from typing import Any

from vhostd.errors import RefusedRequest
from vhostd.frontend.connecting import PAUSE, connected
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.pipe import read_all, write_all
from vhostd.frontend.queue import Queue
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    BACK_END,
    CHECK_DEVICE_STATE,
    FRONT_END,
    GET_CONFIG,
    GET_FEATURES,
    GET_INFLIGHT_FD,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    GET_VRING_BASE,
    REM_MEM_REG,
    SET_BACKEND_REQ_FD,
    SET_CONFIG,
    SET_DEVICE_STATE_FD,
    SET_FEATURES,
    SET_INFLIGHT_FD,
    SET_MEM_TABLE,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_CALL,
    SET_VRING_ENABLE,
    SET_VRING_ERR,
    SET_VRING_KICK,
    SET_VRING_NUM,
    ConfigSpace,
    Inflight,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    StateTransfer,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import Caller
from vhostd.wire.channel import Channel, Received
from vhostd.wire.fds import Fd, close_all
from vhostd.wire.rows import U64, Bit, Empty, P, R, Row

# What `negotiate` accepts only if it is told to. With INBAND_NOTIFICATIONS nobody kicks by eventfd, with
# XEN_MMAP memory is described in another way. With INFLIGHT_SHMFD libvhost-user starts no ring without an
# area.
INFLIGHT = mask(ProtocolFeature.INFLIGHT_SHMFD, ProtocolFeature.GET_VRING_BASE_INFLIGHT)
UNWANTED_PROTOCOL = mask(ProtocolFeature.INBAND_NOTIFICATIONS, ProtocolFeature.XEN_MMAP)
KNOWN_PROTOCOL = mask(*(bit for bit in vars(ProtocolFeature).values() if isinstance(bit, Bit)))
NOTIFY_ON_EMPTY, ANY_LAYOUT = 24, 27  # of before virtio 1
UNWANTED = mask(NOTIFY_ON_EMPTY, Feature.LOG_ALL, ANY_LAYOUT, Feature.ACCESS_PLATFORM, Feature.IN_ORDER)
RAW_SIZE = 65536


class Frontend:
    """Drives a back-end over a connected socket, which it owns; asks for an ack wherever it may.

    Its methods raise RefusedRequest for a non-zero ack, ConnectionResetError when the back-end has closed,
    MalformedMessage for a reply that cannot be one, and TimeoutError when the back-end has not answered for
    `patience` seconds. Without a `patience` they wait for ever. They take turns in waiting for a reply,
    or for what comes raw.
    """

    def __init__(self, sock: socket.socket, *, patience: float | None = None) -> None:
        self.patience = patience
        self._socket = sock
        self.channel = Channel(sock, FRONT_END, replies=True)
        self._caller = Caller(self.channel)
        self._turn = asyncio.Lock()  # only one may hear replies
        self.features = 0
        self.protocol_features = 0

    @classmethod
    async def connect(cls, path: str | os.PathLike[str], *, patience: float | None = None) -> "Frontend":
        """Connects to a back-end that listens at `path`."""
        return cls(await connected(path, patience), patience=patience)

    async def call(self, row: Row[P, R], payload: P, *fds: Fd) -> R:
        """Sends a request and returns the reply that the row has; the fds stay the caller's."""
        reply, received = await self.call_for_fds(row, payload, *fds)
        close_all(received)
        return reply

    async def call_for_fds(self, row: Row[P, R], payload: P, *fds: Fd) -> tuple[R, list[Fd]]:
        """As `call`, but gives the fds of the reply too, which are the caller's."""
        acked = row.reply is None and self.has(ProtocolFeature.REPLY_ACK)
        if row.reply is None and not acked:
            await self.tell(row, payload, *fds)
            return None, []  # type: ignore[return-value]  # R is None here, which mypy cannot see
        async with asyncio.timeout(self.patience), self._turn:
            answered = await self._caller.ask(row, payload, fds, acked=acked)
            try:
                while not answered.done():
                    await self._caller.hear()
            finally:
                answered.cancel()  # if it comes later, nobody is there to take it
        return answered.result()

    async def tell(self, row: Row[P, Any], payload: P, *fds: Fd) -> None:
        """Sends a request and asks for no ack, and hears none, should there be one."""
        async with asyncio.timeout(self.patience):
            await self._caller.tell(row, payload, fds)

    async def send_raw(self, data: bytes, *fds: Fd) -> None:
        """Sends bytes as they are, whether they are a message or not; the fds go with the first."""
        async with asyncio.timeout(self.patience), self._caller.turn:
            await self.channel.send(data, tuple(fd.fileno() for fd in fds))

    async def receive_raw(self) -> Received:
        """What the back-end has sent, as it comes; no bytes at all if it has closed the connection."""
        async with asyncio.timeout(self.patience), self._turn:
            return await self.channel.receive_raw(RAW_SIZE)

    async def taken(self) -> None:
        """Waits until the back-end has read all that was sent, or has closed the connection."""
        async with asyncio.timeout(self.patience):
            while _unread(self._socket):  # nobody tells when it changes
                await asyncio.sleep(PAUSE)

    async def hang_up(self) -> None:
        """Waits until the back-end has closed the connection, whatever it has sent before."""
        async with asyncio.timeout(self.patience):
            await self.channel.hang_up()

    def say_no_more(self) -> None:
        """Shuts the connection down for sending: the back-end reads its end, and can still answer."""
        self._socket.shutdown(socket.SHUT_WR)

    def hear_no_more(self) -> None:
        """Shuts the connection down for receiving: the back-end can answer no request from now on."""
        self._socket.shutdown(socket.SHUT_RD)

    def has(self, feature: Bit) -> bool:
        """Whether this feature of the protocol was negotiated."""
        return bool(self.protocol_features >> feature & 1)

    async def negotiate(
        self,
        features: int | None = None,
        protocol_features: int | None = None,
        *,
        resume: bool = False,
        packed: bool = False,
        inflight: bool = False,
    ) -> None:
        """Accepts these features of those offered, and nothing else. Reads the config space, if there is one.

        By default it accepts all but LOG_ALL; ACCESS_PLATFORM, which takes an `Iommu`; IN_ORDER, which the
        drivers here do not keep to; what is older than virtio 1; RING_PACKED, unless the rings are to be
        `packed`; and of the protocol's all that are known here, but INBAND_NOTIFICATIONS and XEN_MMAP, and
        INFLIGHT_SHMFD only if there is to be an `inflight` area. To
        `resume` is not to read the config space, because the guest's driver has been set up before.
        """
        offered = (await self.call(GET_FEATURES, Empty())).value
        if offered >> Feature.PROTOCOL_FEATURES & 1:
            unwanted = UNWANTED_PROTOCOL | (0 if inflight else INFLIGHT)
            known = KNOWN_PROTOCOL & ~unwanted
            await self._negotiate_protocol(known if protocol_features is None else protocol_features)
        await self.call(SET_OWNER, Empty())
        unwanted = UNWANTED | (0 if packed else mask(Feature.RING_PACKED))
        self.features = offered & (~unwanted if features is None else features)
        await self.call(SET_FEATURES, U64(self.features))
        if self.has(ProtocolFeature.CONFIG) and not resume:
            await self.read_config(0, 1)

    async def _negotiate_protocol(self, wanted: int) -> None:
        chosen = (await self.call(GET_PROTOCOL_FEATURES, Empty())).value & wanted
        await self.call(SET_PROTOCOL_FEATURES, U64(chosen))
        self.protocol_features = chosen

    async def queue_num(self) -> int:
        """How many queues the back-end has at most; 1 if it does not say so, without MQ."""
        if not self.has(ProtocolFeature.MQ):
            return 1
        return (await self.call(GET_QUEUE_NUM, Empty())).value

    async def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of the device's config space. RefusedRequest if it has none, or not there."""
        self._must_have(ProtocolFeature.CONFIG)
        return (await self.call(GET_CONFIG, ConfigSpace(offset, bytes(size)))).data

    async def write_config(self, offset: int, data: bytes) -> None:
        """Writes to the config space, as the guest's driver; raises as `read_config`."""
        self._must_have(ProtocolFeature.CONFIG)
        await self.call(SET_CONFIG, ConfigSpace(offset, data))

    async def take_requests(self) -> Channel:
        """Gives the back-end a socket for its requests, which come on the channel. The caller closes it."""
        self._must_have(ProtocolFeature.BACKEND_REQ)
        ours, theirs = socket.socketpair()
        channel = Channel(ours, BACK_END)
        try:
            with Fd(theirs.detach()) as fd:
                await self.call(SET_BACKEND_REQ_FD, Empty(), fd)
        except BaseException:
            channel.close()
            raise
        return channel

    async def share(self, *memories: SharedMemory) -> None:
        """Makes these memories the guest's, in place of any before."""
        table = MemoryTable(tuple(MemoryRegion(*self._place(memory)) for memory in memories))
        await self.call(SET_MEM_TABLE, table, *(memory.fd for memory in memories))

    async def add(self, memory: SharedMemory) -> None:
        """Adds a memory to the guest's."""
        await self.call(ADD_MEM_REG, SingleRegion(0, *self._place(memory)), memory.fd)

    async def remove(self, memory: SharedMemory) -> None:
        """Takes a memory away from the guest."""
        await self.call(REM_MEM_REG, SingleRegion(0, *self._place(memory)))

    async def start(self, memory: SharedMemory, index: int = 0, size: int = 64) -> Queue:
        """Makes a queue in `memory`, and starts and enables its ring as QEMU does."""
        queue = self.queue(memory, index, size)
        try:
            await self.start_again(queue)
        except BaseException:
            queue.close()
            raise
        return queue

    def queue(self, memory: SharedMemory, index: int, size: int, base: int | None = None) -> Queue:
        """Makes a queue in `memory`, whose ring begins at `base`, and says nothing of it yet."""
        queue = Queue(memory, index, size, self.features, self._socket, base)
        queue.patience = self.patience
        return queue

    async def start_again(self, queue: Queue, base: int | None = None) -> None:
        """Starts a queue's ring at `base`; by default at its start."""
        queue.watch(self._socket)
        await self.set_up(queue, base)
        await self.call(SET_VRING_CALL, VringFd(queue.index), queue.call_fd)
        await self.call(SET_VRING_ERR, VringFd(queue.index), queue.err_fd)
        await self.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
        if self.features >> Feature.PROTOCOL_FEATURES & 1:  # else it is enabled from the start
            await self.call(SET_VRING_ENABLE, VringState(queue.index, 1))

    async def set_up(self, queue: Queue, base: int | None = None) -> None:
        """Tells the back-end all of a queue but its eventfds; by default it is at its start."""
        await self.call(SET_VRING_NUM, VringState(queue.index, queue.size))
        await self.call(SET_VRING_BASE, VringState(queue.index, queue.driver.base if base is None else base))
        await self.call(SET_VRING_ADDR, self.address(queue))

    def address(self, queue: Queue) -> VringAddr:
        """Where a queue's ring lies, in words that the back-end understands."""
        memory, driver = queue.memory, queue.driver
        return VringAddr(
            queue.index,
            flags=0,
            desc=self._ring_addr(memory, driver.desc_addr),
            used=self._ring_addr(memory, driver.used_addr),
            avail=self._ring_addr(memory, driver.avail_addr),
            log=0,
        )

    async def get_inflight(self, num_queues: int, queue_size: int) -> tuple[Inflight, Fd]:
        """Has the back-end make an inflight area; it, and its file, which is the caller's."""
        area, (fd,) = await self.call_for_fds(GET_INFLIGHT_FD, Inflight(0, 0, num_queues, queue_size))
        return area, fd

    async def set_inflight(self, area: Inflight, fd: Fd) -> None:
        """Gives an inflight area to the back-end, for the rings that start from now on."""
        await self.call(SET_INFLIGHT_FD, area, fd)

    async def stop(self, queue: Queue) -> int:
        """Stops a queue's ring and returns the index at which it may go on."""
        return (await self.call(GET_VRING_BASE, VringState(queue.index, 0))).num

    async def save(self) -> bytes:
        """The device's state, for `load` in another back-end. All rings must be stopped."""
        ours, theirs = map(Fd, os.pipe())
        with ours:
            await self._begin_transfer(StateTransfer.SAVE, theirs)
            async with asyncio.timeout(self.patience):
                state = await read_all(ours)
        await self._check_state()
        return state

    async def load(self, state: bytes) -> None:
        """Gives the device what `save` gave elsewhere. No ring may have started."""
        theirs, ours = map(Fd, os.pipe())
        with ours, suppress(BrokenPipeError):  # refused before its end
            await self._begin_transfer(StateTransfer.LOAD, theirs)
            async with asyncio.timeout(self.patience):
                await write_all(ours, state)
        await self._check_state()

    async def _begin_transfer(self, direction: int, theirs: Fd) -> None:
        with theirs:
            await self.call(SET_DEVICE_STATE_FD, StateTransfer(direction, StateTransfer.STOPPED), theirs)

    async def _check_state(self) -> None:
        if (await self.call(CHECK_DEVICE_STATE, Empty())).value:
            raise RefusedRequest("the back-end says that the transfer of its state has failed")

    def close(self) -> None:
        """Closes the connection; idempotent."""
        self.channel.close()

    def _must_have(self, feature: Bit) -> None:
        """Asks for nothing that was not agreed on: some back-ends close the connection for that."""
        if not self.has(feature):
            raise RefusedRequest(f"{feature.name} was not negotiated")

    def _place(self, memory: SharedMemory) -> tuple[int, int, int, int]:
        """The fields of a region: guest address, size, user address, offset."""
        return memory.guest_addr, memory.size, self._user_addr(memory, memory.guest_addr), memory.offset

    def _user_addr(self, memory: SharedMemory, guest_addr: int) -> int:
        """An address as the back-end is told it: it hears no user addresses with GPA_ADDRESSES."""
        return guest_addr if self.has(ProtocolFeature.GPA_ADDRESSES) else memory.user(guest_addr)

    def _ring_addr(self, memory: SharedMemory, guest_addr: int) -> int:
        """The address of a ring's area: with an IOMMU the driver's, which is an I/O virtual address."""
        has_iommu = self.features >> Feature.ACCESS_PLATFORM & 1
        return guest_addr if has_iommu else self._user_addr(memory, guest_addr)


def _unread(sock: socket.socket) -> int:
    """How much of what was sent lies there unread, as the kernel counts it."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
