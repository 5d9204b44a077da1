"""A guest in a few lines: memory, some rings, and requests to a disk, asked and answered without a socket.

Requests are packed by hand from virtio 1.3, 5.2.6 (driver.py has the numbers). Each is put into a chain that
may be cut anywhere into descriptors, and what the device had no business to write is checked to be as it was.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvloop

from tests.ring.machine import INDIRECT_DESC, device_half, memfd
from tests.storage.images import PATIENCE, engine_of, open_image
from vhost_user_blk.requests import Requests
from vhostd import Chain, Grants
from vhostd.frontend.drivers.block import HEADER, SECTOR
from vhostd.ring import GuestMemory, Region
from vhostd.ring.driver import SplitDriver
from vhostd.storage.engine import Engine, Then, Work
from vhostd.storage.image import Image
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.wire.fds import Fd

GUEST = 0x1000_0000
RING_ROOM = 0x2_0000  # for the ring of a queue
BUFFERS = GUEST + 0x10_0000
SEAM = GUEST + 0x40_0000  # two regions meet here: neighbours for the guest, far apart for anybody else
END = GUEST + 0x80_0000

SERIAL = "0123456789abcdefghij"
SIZE = 256 << 10
GAP = 16  # bytes behind each piece of a chain that nobody may touch
CANARY = b"\xa5"
SECURE_ERASE = 14

CACHES = ("writeback", "writethrough", "direct")

T = TypeVar("T")
Range = tuple[int, int]


class Answer(NamedTuple):
    """The status, None if there was no room for one; what the room holds before it; the used length."""

    status: int | None
    data: bytes
    used: int


class Buffer(NamedTuple):
    """A request under way: its head, and the pieces that the device may write."""

    queue: int
    head: int
    writable: list[Range]


def make_memory(size: int = END - GUEST) -> GuestMemory:
    """Guest memory of two files: up to the SEAM, and from there on."""
    with Fd(memfd(SEAM - GUEST, "blk")) as low, Fd(memfd(size - (SEAM - GUEST), "blk")) as high:
        return GuestMemory(
            [
                Region(
                    high.fileno(), guest_addr=SEAM, user_addr=0x7F00_0000_0000, size=size - (SEAM - GUEST)
                ),
                Region(low.fileno(), guest_addr=GUEST, user_addr=0x7E00_0000_0000, size=SEAM - GUEST),
            ]
        )


MEMORY = make_memory()  # one for all guests that need no other


@contextmanager
def memory_to_cut(size: int) -> Iterator[tuple[GuestMemory, Callable[[int], None]]]:
    """Guest memory from 0 on, with `size` bytes at SEAM in a file of their own, and how to shorten that."""
    with Fd(memfd(SEAM)) as low, Fd(memfd(size)) as high:
        regions = [
            Region(low.fileno(), guest_addr=0, user_addr=0, size=SEAM),
            Region(high.fileno(), guest_addr=SEAM, user_addr=SEAM, size=size),
        ]
        yield GuestMemory(regions), partial(os.ftruncate, high.fileno())


class Guest:
    """A guest's queues to a disk. What goes wrong unseen on the event loop is raised to who waits."""

    def __init__(
        self, requests: Requests, *, queues: int = 1, size: int = 256, memory: GuestMemory = MEMORY
    ) -> None:
        self.requests = requests
        self.memory = memory
        self.failed: list[Exception] = []  # what the queues were told
        self.unseen: list[Any] = []  # what nobody was told
        self.order: list[int] = []  # the heads in the order in which they were used
        self.holds = False  # whether the device is told of what is begun only by `start_all`
        self.left: list[int] = []  # the heads that the shortcut left, if handlers serve the queues
        self._handlers: list[asyncio.Task[None]] = []
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._answers: dict[tuple[int, int], int] = {}
        self._under_way = 0
        self._next = BUFFERS
        self._drivers = [
            SplitDriver(memory, GUEST + i * RING_ROOM, size, features=INDIRECT_DESC) for i in range(queues)
        ]
        self._runner.run(self._set_up())

    async def _set_up(self) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(
            lambda _, context: self._hear(self.unseen, context.get("exception", context))
        )
        self._interrupted = asyncio.Event()
        self.queues = [
            Virtqueue(
                i,
                device_half(driver, self.memory, features=INDIRECT_DESC),
                self._interrupted.set,
                partial(self._hear, self.failed),
            )
            for i, driver in enumerate(self._drivers)
        ]
        for queue in self.queues:
            queue.enable(on=True)

    def _hear(self, where: list[Any], what: object) -> None:
        where.append(what)
        self._interrupted.set()

    def close(self) -> None:
        """Ends the event loop; nothing may be left to be told."""
        self._runner.close()
        assert not self.unseen, self.unseen

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Runs a coroutine function on the guest's event loop."""

        async def bounded() -> T:
            async with asyncio.timeout(PATIENCE):
                return await main()

        return self._runner.run(bounded())

    def serve(self, poll: float = 0.0) -> None:
        """Has handlers serve the queues from now on, as the device does: what is begun is kicked for."""

        async def main() -> None:
            self._handlers += [asyncio.create_task(self._handle(queue, poll)) for queue in self.queues]
            await asyncio.sleep(0)

        self.run(main)

    async def _handle(self, queue: Virtqueue, poll: float) -> None:
        queue.poll(poll)
        queue.use_shortcut(self.requests.shortcut)
        try:
            async for chain in queue:
                self.left.append(chain.head)
                self.requests.start(queue, chain)
        except Exception as error:  # as for vhostd's vring
            self._hear(self.failed, error)

    # --- Requests ---------------------------------------------------------------------------------------

    def ask(
        self,
        kind: int,
        sector: int = 0,
        data: bytes = b"",
        room: int = 0,
        *,
        queue: int = 0,
        shift: int = 0,
    ) -> Answer:
        """The answer to a request in as many descriptors as Linux needs for it.

        Its data lie `shift` bytes behind an address that suits any disk.
        """
        return self.finish(self.begin(kind, sector, data, room, queue=queue, shift=shift))[0]

    def do(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, **how: int) -> bytes:
        """Asks for what must succeed; returns what was read."""
        answer = self.ask(kind, sector, data, room, **how)
        assert (answer.status, answer.used) == (0, room + 1)
        return answer.data

    def begin(
        self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, *, queue: int = 0, shift: int = 0
    ) -> Buffer:
        """Begins a request, which may be done when this returns, or not."""
        cuts = (HEADER.size,) if data else ()
        room_cuts = (room,) if room else ()
        return self.offer(HEADER.pack(kind, 0, sector) + data, room + 1, cuts, room_cuts, queue, shift)

    def exchange(
        self, data: bytes, room: int, cuts: Sequence[int] = (), room_cuts: Sequence[int] = ()
    ) -> Answer:
        """The answer to these bytes in `room` bytes; both are cut at these offsets."""
        return self.finish(self.offer(data, room, cuts, room_cuts))[0]

    def offer(
        self,
        data: bytes,
        room: int,
        cuts: Sequence[int] = (),
        room_cuts: Sequence[int] = (),
        queue: int = 0,
        shift: int = 0,
    ) -> Buffer:
        """Begins what may be a request."""
        ends = (*cuts, len(data))
        readable = list(self._pieces(len(data), cuts, shift)) if data else []
        texts = [data[end - size : end] for (_, size), end in zip(readable, ends, strict=False)]
        writable = list(self._pieces(room, room_cuts, shift)) if room else []
        for addr, size in writable:
            self.memory.write(addr, CANARY * (size + GAP))
        written = [(addr, text) for (addr, _), text in zip(readable, texts, strict=True)]
        return self.offer_at(written, writable, queue)

    def offer_at(
        self, readable: Sequence[tuple[int, bytes]], writable: Sequence[Range], queue: int = 0
    ) -> Buffer:
        """As `offer`, with the pieces at these addresses."""
        for addr, data in readable:
            self.memory.write(addr, data)
        return self.offer_memory([(addr, len(data)) for addr, data in readable], writable, queue)

    def offer_memory(
        self, readable: Sequence[Range], writable: Sequence[Range], queue: int = 0, *, start: bool = True
    ) -> Buffer:
        """As `offer_at`, with what is in these places already; the device may not be told of it yet."""
        head = self._drivers[queue].add(
            [(*piece, False) for piece in readable] + [(*piece, True) for piece in writable]
        )
        self._under_way += 1
        if start and not self.holds:
            self.run(partial(self._start, queue))
        return Buffer(queue, head, [*writable])

    def start_all(self) -> None:
        """Has the device begin all that it was not told of yet, of all queues, in one turn of the loop."""

        async def main() -> None:
            for queue in self.queues:
                self._start_queue(queue)

        self.run(main)

    def wait(self, *buffers: Buffer) -> list[int]:
        """Waits for requests; returns their used lengths."""
        keys = [(buffer.queue, buffer.head) for buffer in buffers]
        self.run(partial(self._wait, set(keys)))
        self._under_way -= len(keys)
        return [self._answers.pop(key) for key in keys]

    def fails(self) -> Exception:
        """Waits until a queue was told that it is broken."""
        self.run(self._wait_for_failure)
        return self.failed[0]

    def finish(self, *buffers: Buffer) -> list[Answer]:
        """Waits for requests; returns their answers."""
        self.run(partial(self._wait, {(buffer.queue, buffer.head) for buffer in buffers}))
        return [self._answer(buffer) for buffer in buffers]

    async def _start(self, queue: int) -> None:
        self._start_queue(self.queues[queue])

    def _start_queue(self, queue: Virtqueue) -> None:
        if self._handlers:
            queue.kicked()
            return
        try:
            while (chain := queue.pop()) is not None:
                if not self.requests.shortcut.take(queue, chain):
                    self.requests.start(queue, chain)
            self.requests.shortcut.submit()
        except Exception as error:
            self._hear(self.failed, error)

    async def _wait_for_failure(self) -> None:
        while not self.failed:
            assert not self.unseen, self.unseen
            self._interrupted.clear()
            await self._interrupted.wait()

    async def _wait(self, wanted: set[tuple[int, int]]) -> None:
        self._collect()
        while not wanted <= self._answers.keys():
            assert not self.failed, self.failed
            assert not self.unseen, self.unseen
            self._interrupted.clear()
            await self._interrupted.wait()
            self._collect()

    def _collect(self) -> None:
        for i, driver in enumerate(self._drivers):
            while (used := driver.used()) is not None:
                self._answers[(i, used[0])] = used[1]
                self.order.append(used[0])

    def _answer(self, buffer: Buffer) -> Answer:
        used = self._answers.pop((buffer.queue, buffer.head))
        pieces = [self.memory.read(addr, size + GAP) for addr, size in buffer.writable]
        assert all(piece.endswith(CANARY * GAP) for piece in pieces), "bytes that were nobody's"
        room = b"".join(piece[:-GAP] for piece in pieces)
        self._under_way -= 1
        if not self._under_way:
            self._next = BUFFERS
        return Answer(room[-1] if room else None, room[:-1], used)

    def _pieces(self, size: int, cuts: Iterable[int], shift: int) -> Iterator[Range]:
        """`size` bytes cut at these offsets, each piece at an address of its own."""
        for first, last in pairwise((0, *cuts, size)):
            addr = self._next + shift
            self._next = -(-(addr + last - first + GAP) // SECTOR) * SECTOR
            assert self._next <= END, "no room in guest memory"
            yield addr, last - first

    # --- The disk ---------------------------------------------------------------------------------------

    @property
    def image(self) -> Image:
        """What the requests are served from."""
        return self.requests.image

    def contents(self) -> bytes:
        """What is on the disk, not by the device's hands."""
        with open(f"/proc/self/fd/{self.image.fd}", "rb") as file:
            return file.read()

    def blocks(self) -> int:
        """The bytes that the host keeps of it."""
        return os.fstat(self.image.fd).st_blocks * SECTOR


class Recording:
    """An engine that notes with which flags it is told to write, and leaves the work to another."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.flags: list[int] = []

    def grants(self) -> Grants:
        return self._engine.grants()

    def preadv(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self._engine.preadv(chain, fd, offset, size, flags, then)

    def pwritev(self, chain: Chain, fd: int, offset: int, size: int, flags: int, then: Then) -> None:
        self.flags.append(flags)
        self._engine.pwritev(chain, fd, offset, size, flags, then)

    def fdatasync(self, chain: Chain, fd: int, then: Then) -> None:
        self._engine.fdatasync(chain, fd, then)

    def watch(self) -> None:
        """All are to come here."""

    def do(self, chain: Chain, work: Work, then: Then) -> None:
        self._engine.do(chain, work, then)

    def close(self) -> None:
        self._engine.close()


@contextmanager
def disk(
    path: Path | None,
    engine: str | Engine = "sync",
    cache: str = "writeback",
    *,
    read_only: bool = False,
    size: int = SIZE,
    serial: str = SERIAL,
    queues: int = 1,
    queue_size: int = 256,
    memory: GuestMemory = MEMORY,
    handled: bool = False,
) -> Iterator[Guest]:
    """A guest with a disk of noise: a file in the folder `path`, or memory if that is None.

    Handlers serve its queues if `handled`. The test is skipped where this host cannot have such a disk.
    """
    made = engine if not isinstance(engine, str) else engine_of(engine)
    try:
        image = open_image(path, size, read_only=read_only, direct=cache == "direct")
    except BaseException:
        made.close()
        raise
    requests = Requests(image, made, serial, writeback=cache != "writethrough")
    guest = Guest(requests, queues=queues, size=queue_size, memory=memory)
    try:
        if handled:
            guest.serve()
        yield guest
    finally:
        made.close()
        image.close()
        guest.close()


class Clock:
    """A clock that goes on at each look at it, and has things done at some of them."""

    def __init__(self, step: float, **at: Callable[[], object]) -> None:
        self._step = step
        self._at = {int(look.removeprefix("at_")): what for look, what in at.items()}
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        self._at.get(self.looks, lambda: None)()
        return self.looks * self._step
