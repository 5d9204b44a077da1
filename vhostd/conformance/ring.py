"""A ring on which a device's exchange works, and what a driver can see of it."""

import asyncio
import os
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from vhostd.conformance.exchange import Exchange
from vhostd.conformance.verdict import Failed, expect
from vhostd.errors import GuestError, MalformedMessage, RefusedRequest
from vhostd.frontend import Frontend, Queue, SharedMemory, signalled
from vhostd.frontend.pipe import writable
from vhostd.ring.driver import NEXT, WRITE
from vhostd.ring.driver_packed import PackedDriver
from vhostd.vhost_user.messages import GET_FEATURES, SET_VRING_ENABLE, VringState
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

CLOSED = (ConnectionError, MalformedMessage)
PAUSE = 0.001  # seconds between looks at what nobody tells of
OCCASIONS = 16
MOST_KICKS = (1 << 64) - 2  # that an eventfd counts
GLANCE = 0.5  # seconds in which a device that polls has looked at its rings
WHOLE = 1 << 31  # bytes: in one piece
DESCRIPTOR = struct.Struct("<QIHH")

Buffer = tuple[int, int, bool]  # guest address, size, whether the device writes it
T = TypeVar("T")


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

    # --- Valid requests ---------------------------------------------------------------------------------

    def post(self) -> int:
        """Makes a valid request available, without a kick; returns its head."""
        room, status = self.exchange.room, self.exchange.status
        return self.queue.add(self.exchange.request, (room - status, status))

    def kick(self) -> None:
        """Kicks, whether the device wants that or not."""
        os.eventfd_write(self.queue.kick_fd.fileno(), 1)

    async def answer(self) -> None:
        """Expects the next answer, and that it is a good one."""
        try:
            _, answer = await self.queue.used()
        except TimeoutError:
            raise Failed("a valid request was not answered") from None
        except (GuestError, *CLOSED) as error:
            raise Failed(f"a valid request was not answered: {error}") from None
        self._judge(answer)

    async def work(self, times: int = 1) -> None:
        """Expects valid requests to be answered."""
        for _ in range(times):
            self.post()
            self.queue.kick()
            await self.answer()

    async def work_by_interrupts(self, times: int) -> None:
        """As `work`, but looks at the ring when the device has interrupted, and only then."""
        for _ in range(times):
            self.post()
            self.queue.kick()
            try:
                async with asyncio.timeout(self.frontend.patience):
                    await signalled(self.queue.call_fd)
                    while (answer := self.queue.poll()) is None:  # the interrupt was for something else
                        await signalled(self.queue.call_fd)
            except TimeoutError:
                raise Failed("the device did not interrupt for a valid request") from None
            self._judge(answer[1])

    async def work_unheard(self, times: int = 1) -> None:
        """As `work`, without interrupts: looks at the ring until the answers are there."""
        for _ in range(times):
            self.post()
            self.queue.kick()
            await self.seen()

    async def seen(self) -> bytes:
        """As `answer`, without an interrupt; what was answered."""
        _, answer = await self.until(self.queue.poll)
        self._judge(answer)
        return answer

    # --- Requests in an unusual layout --------------------------------------------------------------------

    def buffers(self, readable: int = WHOLE, writable: int = WHOLE) -> list[Buffer]:
        """The buffers of a valid request, all of them apart: as a driver has them, or in pieces.

        These are of so many bytes at most, and the status has no buffer of its own then.
        """
        request, room, status = self.exchange.request, self.exchange.room, self.exchange.status
        sizes = [room - status, status] if writable == WHOLE else _pieces(room, writable)
        made = [(self._place(size), size, False) for size in _pieces(len(request), readable)]
        for at, (addr, size, _) in enumerate(made):
            self.memory.map.write(addr, request[at * readable :][:size])
        return made + [(self._place(size), size, True) for size in sizes if size]

    def in_pieces(self, count: int) -> list[Buffer]:
        """The buffers of a valid request, its readable and its writable part cut in so many pieces each."""
        request, room = len(self.exchange.request), self.exchange.room
        return self.buffers(*(max(-(-size // count), 1) for size in (request, room)))

    def buffers_at(self, *places: int) -> list[Buffer]:
        """The buffers of a valid request, at these guest addresses."""
        request, room = self.exchange.request, self.exchange.room
        if request:
            self.memory.map.write(places[0], request)
        sizes = [(size, writes) for size, writes in ((len(request), False), (room, True)) if size]
        return [(addr, *size) for addr, size in zip(places, sizes, strict=False)]

    def table(self, buffers: Sequence[Buffer]) -> tuple[int, int]:
        """Puts buffers into an indirect table; its address and size."""
        entries = [
            (addr, size, (WRITE if writes else 0) | (NEXT if at < len(buffers) else 0), at % len(buffers))
            for at, (addr, size, writes) in enumerate(buffers, 1)
        ]
        if self.is_packed:
            entries = [(addr, size, 0, flags & WRITE) for addr, size, flags, _ in entries]
        return self.put_table(entries)

    def put_table(self, entries: Sequence[tuple[int, int, int, int]]) -> tuple[int, int]:
        """Puts descriptors, of the ring's format, into an indirect table; its address and size."""
        data = b"".join(DESCRIPTOR.pack(*entry) for entry in entries)
        addr = self._place(len(data))
        self.memory.map.write(addr, data)
        return addr, len(data)

    def offer_one(self, addr: int, size: int, flags: int) -> None:
        """Makes a single descriptor available, which is the chain 0, and kicks."""
        if self.is_packed:
            self.queue.driver.offer([(addr, size, 0, flags)])
        else:
            self.queue.driver.descriptor(0, addr, size, flags, 0)
            self.queue.driver.offer(0)
            self.queue.driver.publish()
        self.queue.kick()

    async def until(self, look: Callable[[], T | None]) -> T:
        """Looks at memory until there is something; Failed if there is nothing for too long."""
        try:
            async with asyncio.timeout(self.frontend.patience):
                while (found := look()) is None:
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise Failed("a request that was made available was not used") from None
        return found

    async def used(self) -> tuple[int, int]:
        """What the device has used next, of chains that were not made by `Queue`: head, and bytes written."""
        found: tuple[int, int] = await self.until(self.queue.driver.used)
        return found

    async def expect_used(self, head: int, buffers: Sequence[Buffer]) -> None:
        """Expects this chain to be the next that is used, with a good answer."""
        found, written = await self.used()
        expect(found == head, f"the device has used {found}, and the driver had made {head} available")
        room = sum(size for _, size, writes in buffers if writes)
        expect(written <= room or self.is_packed, f"it says that it wrote {written} bytes into {room}")
        self._judge(b"".join(self.memory.map.read(addr, size) for addr, size, w in buffers if w)[:written])

    def slot(self, index: int) -> tuple[int, int, int, int]:
        """A descriptor of the ring, as it is in memory now."""
        where = self.queue.driver.desc_addr + DESCRIPTOR.size * index
        addr, size, third, fourth = DESCRIPTOR.unpack(self.memory.map.read(where, DESCRIPTOR.size))
        return addr, size, third, fourth

    # --- The ring as a whole ------------------------------------------------------------------------------

    @property
    def descriptors(self) -> int:
        """How many of them a valid request takes."""
        return self.exchange.descriptors

    @property
    def is_packed(self) -> bool:
        """Whether its format is the packed one."""
        return isinstance(self.queue.driver, PackedDriver)

    @property
    def reached(self) -> int:
        """What the device has used, as a base; of a packed ring what `queue` has seen of that."""
        driver = self.queue.driver
        reached: int = driver.used_at * 0x1_0001 if self.is_packed else driver.used_index
        return reached

    @property
    def device_areas(self) -> list[tuple[int, int]]:
        """The parts of its rings, address and size, where a device may write when it uses the next chain."""
        if not self.is_packed:
            return [(queue.driver.used_addr, 6 + 8 * queue.size) for queue in self.queues]
        driver = self.queue.driver
        slot = driver.desc_addr + DESCRIPTOR.size * (driver.avail_at & 0x7FFF)
        return [(slot, DESCRIPTOR.size), *((queue.driver.used_addr, 4) for queue in self.queues)]

    def name_of(self, addr: int) -> str:
        """What is at an address, for a person."""
        driver = self.queue.driver
        if driver.desc_addr <= addr < driver.desc_addr + DESCRIPTOR.size * driver.size:
            return f"descriptor {(addr - driver.desc_addr) // DESCRIPTOR.size}"
        if driver.avail_addr <= addr < driver.used_addr:
            return "the driver's event suppression" if self.is_packed else "the available ring"
        return f"memory that no writable buffer has, at guest address {addr:#x}"

    def spell(self, base: int) -> str:
        """A base as a person reads it."""
        if not self.is_packed:
            return str(base)
        avail, used = (f"{each & 0x7FFF} (wrap counter {each >> 15})" for each in (base & 0xFFFF, base >> 16))
        return f"available {avail}, used {used}"

    async def start(self, queue: Queue | None = None, *, base: int | None = None) -> None:
        """Starts and enables it, or another of its queues, by default where it once began; and kicks.

        A back-end may have learnt from older specifications to wait for a kick, and front-ends give one.
        """
        queue = queue or self.queue
        await self.frontend.start_again(queue, base)
        os.eventfd_write(queue.kick_fd.fileno(), 1)

    async def stop(self) -> int:
        """Stops it; where it may go on."""
        return await self.frontend.stop(self.queue)

    async def move(self, size: int) -> None:
        """Stops it, and starts another in its place, elsewhere in memory and of another size."""
        await self.stop()
        self.queue.close()
        self.queue = self.frontend.queue(self.memory, self.queue.index, size)
        self.queues[self.queue.index] = self.queue
        await self.start()

    async def enable(self, *, on: bool) -> None:
        """Enables or disables it; without bit 30 it is enabled anyway."""
        if self.frontend.features >> Feature.PROTOCOL_FEATURES & 1:
            await self.frontend.call(SET_VRING_ENABLE, VringState(self.queue.index, int(on)))

    async def tempt(self) -> None:
        """Gives the device every occasion to serve the ring, though it must not: kicks, and other work."""
        for _ in range(OCCASIONS):
            self.kick()
            await self.frontend.call(GET_FEATURES, Empty())

    def close(self) -> None:
        """Closes its queues."""
        for queue in self.queues:
            queue.close()

    # --- A ring that is broken ----------------------------------------------------------------------------

    async def hurt(self, what: str) -> None:
        """Has the device look at a ring that is broken, and expects that the front-end can stop it then.

        It may refuse that, or close the connection.
        """
        try:
            await self.noticed()
            await self.stop()
        except (RefusedRequest, *CLOSED):
            return
        except TimeoutError:
            raise Failed(f"{what}: GET_VRING_BASE was not answered afterwards") from None

    async def noticed(self) -> None:
        """Kicks, and waits until the device has taken the kick.

        One that polls takes none, nor does one that has closed the connection: this gives up soon.
        """
        kick = self.queue.kick_fd
        with suppress(BlockingIOError):
            os.eventfd_read(kick.fileno())
        os.eventfd_write(kick.fileno(), MOST_KICKS)  # nobody can write more until it is read
        with suppress(TimeoutError):
            async with asyncio.timeout(GLANCE):
                await writable(kick.fileno())

    # --- Interrupts ---------------------------------------------------------------------------------------

    async def quiet(self) -> None:
        """Forgets the interrupts that came with a start, before there is anything to be told of."""
        await self.frontend.call(GET_FEATURES, Empty())
        self.interrupts()

    def interrupts(self, fd: Fd | None = None) -> int:
        """How often the call fd, or another, was signalled since this was last asked."""
        try:
            return os.eventfd_read((fd or self.queue.call_fd).fileno())
        except BlockingIOError:
            return 0

    async def interrupted(self, otherwise: str, fd: Fd | None = None) -> None:
        """Waits for an interrupt."""
        try:
            await self.until(lambda: self.interrupts(fd) or None)
        except Failed:
            raise Failed(otherwise) from None

    # --- Inside -------------------------------------------------------------------------------------------

    def _place(self, size: int) -> int:
        """The address of memory that touches no other."""
        return self.memory.allocate(size + 16)

    def _judge(self, answer: bytes) -> None:
        expect(
            self.exchange.good(answer), f"a valid request was answered by {answer[:32].hex(' ') or 'nothing'}"
        )


def _pieces(size: int, most: int) -> list[int]:
    """The sizes of the pieces of so many bytes."""
    return [min(most, size - at) for at in range(0, size, most)]
