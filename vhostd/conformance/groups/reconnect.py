"""Front-ends that go and come again, back-ends that do, and what is kept meanwhile.

**Where a ring goes on.** A front-end that has lost its back-end knows a ring's used index, and says that to
the next one as the ring's base. What was made available after that is then done, and nothing that was used
before.

**The inflight area.** Its layout is the specification's, field by field, since a back-end may be succeeded
by another program. A program that dies in the middle of a request cannot be had at will; so the checks write
down in the area what such a program would have left, and start the rings with it. A ring that goes on has to
do each of these requests once, besides those that nobody had begun. Only split rings are looked at.

An area may have room for more than was asked for. Its regions are then as long as its size says, divided by
the number of queues.
"""

import os
import struct
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import CLOSED, REACTION, Ring, Trial
from vhostd.conformance.verdict import Failed, Skipped, expect, skip
from vhostd.errors import GuestError, RefusedRequest
from vhostd.frontend import Frontend, GpuDisplay
from vhostd.vhost_user.messages import GET_INFLIGHT_FD, Inflight, ProtocolFeature
from vhostd.wire.fds import Fd, close_all

RECONNECT = Group("CONN", "Reconnecting, and requests in flight")

WORKS = Needs(exchange=True)
STARTED = Needs(exchange=True, program=True)
WITH_AREA = Needs(protocol=(ProtocolFeature.INFLIGHT_SHMFD,))
AREA_WORKS = Needs(protocol=(ProtocolFeature.INFLIGHT_SHMFD,), exchange=True)
SIZE = 64  # descriptors of a ring
REGION = struct.Struct("<QHHHH")  # features, version, desc_num, last_batch_head, used_idx
STATE = struct.Struct("<B5xHQ")  # inflight, next, counter
USED = struct.Struct("<II")  # id and len (virtio 1.3, 2.7.8)
VERSION = 1


class Area:
    """An inflight area of the back-end's, as a front-end keeps it."""

    def __init__(self, area: Inflight, fd: Fd) -> None:
        self.area = area
        self.fd = fd

    @property
    def region_size(self) -> int:
        """Bytes from the region of one queue to the next."""
        return self.area.mmap_size // max(self.area.num_queues, 1)

    def region(self, queue: int) -> tuple[int, ...]:
        """The fields before a queue's descriptors."""
        return REGION.unpack(os.pread(self.fd.fileno(), REGION.size, self._place(queue)))

    def write(self, queue: int, used: int, last: int, states: dict[int, int]) -> None:
        """Has the area of a queue as a program left it, with these heads in flight, by their counters."""
        _, version, count, _, _ = self.region(queue)
        data = REGION.pack(0, VERSION, count if version else SIZE, last, used)
        data += b"".join(STATE.pack(head in states, 0, states.get(head, 0)) for head in range(SIZE))
        os.pwrite(self.fd.fileno(), data, self._place(queue))

    def in_flight(self, queue: int) -> list[int]:
        """The heads that the record has in flight."""
        place = self._place(queue) + REGION.size
        data = os.pread(self.fd.fileno(), SIZE * STATE.size, place)
        return [head for head, (flag, _, _) in enumerate(STATE.iter_unpack(data)) if flag]

    def _place(self, queue: int) -> int:
        return self.area.mmap_offset + queue * self.region_size


async def area_of(trial: Trial, frontend: Frontend) -> Area:
    """A new area for all the queues that the exchange takes."""
    queues = trial.subject.exchange.queues if trial.subject.exchange else 1
    area, fds = await frontend.call_for_fds(GET_INFLIGHT_FD, Inflight(0, 0, queues, SIZE))
    expect(len(fds) == 1, f"{len(fds)} fds came with the inflight area")
    return Area(area, trial.owns(fds[0]))


async def again(trial: Trial, ring: Ring, area: Area | None = None, *, killed: bool = False) -> Ring:
    """The same rings on a new connection, each from its used index on, and kicked.

    The program is started again before, if it was to be `killed`.
    """
    if killed and trial.subject.program is not None:
        await trial.subject.program.restart()
    ring.frontend.close()
    if trial.subject.is_one_shot and not killed:
        await trial.subject.settle()
    frontend = await trial.negotiate(ring.frontend.features, resume=True, in_flight=area is not None)
    await frontend.share(ring.memory)
    if trial.subject.kind == "gpu":  # it asks its display what there is
        trial.owns(await GpuDisplay.show(frontend))
    if area is not None:
        await frontend.set_inflight(area.area, area.fd)
    for queue in ring.queues:
        await frontend.start_again(queue, queue.driver.used_index)
        os.eventfd_write(queue.kick_fd.fileno(), 1)
    return Ring(frontend, ring.memory, ring.queues, ring.exchange)


async def tracked(trial: Trial) -> tuple[Ring, Area]:
    """Rings that work, with an inflight area."""
    frontend, memory = await trial.negotiate(in_flight=True), trial.memory()
    area = await area_of(trial, frontend)
    await frontend.share(memory)
    await frontend.set_inflight(area.area, area.fd)
    ring = await trial.ring(frontend, memory, size=SIZE)
    await ring.work(3)
    return ring, area


# --- The front-end's going ------------------------------------------------------------------------------


@RECONNECT.must(1, "Communication", "A front-end may go, and another come.", WORKS)
async def another_front_end(trial: Trial) -> None:
    """Connects three times, one after the other; each time a ring works from the start on."""
    for _ in range(1 if trial.subject.is_one_shot else 3):
        ring = await trial.ring()
        await ring.work()
        ring.frontend.close()


@RECONNECT.must(2, "Communication", "A front-end may go while requests are under way.", WORKS)
async def gone_at_work(trial: Trial) -> None:
    """Posts 16 requests, and goes at once; a new front-end's ring works."""
    ring = await trial.ring(size=SIZE)
    for _ in range(SIZE // 4):
        ring.post()
    ring.queue.kick()
    ring.frontend.close()
    if not trial.subject.is_one_shot:
        await (await trial.ring()).work()


@RECONNECT.must(3, "SET_VRING_BASE", "A ring goes on where a front-end says that it was.", WORKS)
async def goes_on(trial: Trial) -> None:
    """Has three requests answered, goes, and comes again with the used index as base: what is posted then is
    answered, and nothing of before.
    """
    ring = await trial.ring(size=SIZE)
    for _ in range(3):
        ring.post()  # each with a head of its own
    ring.queue.kick()
    for _ in range(3):
        await ring.answer()
    await (await again(trial, ring)).work(3)


@RECONNECT.must(4, "SET_VRING_BASE", "What was posted while nobody served it is done then.", WORKS)
async def posted_meanwhile(trial: Trial) -> None:
    """As before, but two requests are posted while no front-end is connected: both are answered."""
    ring = await trial.ring(size=SIZE)
    await ring.work()
    await trial.survived(ring.frontend, "a front-end that has gone")  # what is posted now nobody sees
    for _ in range(2):
        ring.post()
    ring = await again(trial, ring)
    for _ in range(2):
        await ring.answer()
    await ring.work()


# --- The back-end's going -------------------------------------------------------------------------------


@RECONNECT.must(6, "Inflight I/O tracking", "A program that was killed may be succeeded by another.", STARTED)
async def killed(trial: Trial) -> None:
    """Kills the program by SIGKILL while its rings run, starts it again, and goes on at the used index."""
    ring = await trial.ring(size=SIZE)
    await ring.work(3)
    await (await again(trial, ring, killed=True)).work(3)


@RECONNECT.must(
    7,
    "Inflight I/O tracking",
    "A successor goes on with the inflight area.",
    AREA_WORKS._replace(program=True),
)
async def killed_with_area(trial: Trial) -> None:
    """Kills a program that has an inflight area, gives that to the next, and goes on at the used index."""
    ring, area = await tracked(trial)
    await (await again(trial, ring, area, killed=True)).work(3)


# --- The inflight area ----------------------------------------------------------------------------------


@RECONNECT.must(8, "GET_INFLIGHT_FD", "An area comes with a file that is large enough.", WITH_AREA)
async def area_is_there(trial: Trial) -> None:
    """Asks for an area: one fd comes, and the file has room for the size and the offset that are told."""
    area = await area_of(trial, await trial.negotiate(in_flight=True))
    least = REGION.size + SIZE * STATE.size
    expect(area.region_size >= least, f"{area.region_size} bytes for each queue, of which {least} are needed")
    size, end = os.fstat(area.fd.fileno()).st_size, area.area.mmap_offset + area.area.mmap_size
    expect(size >= end, f"the file has {size} bytes, and the area ends at {end}")


@RECONNECT.must(9, "Inflight I/O tracking", "In a new area nothing is in flight.", WITH_AREA)
async def area_is_new(trial: Trial) -> None:
    """Asks for two areas: they are different files, and no descriptor is in flight in either."""
    frontend = await trial.negotiate(in_flight=True)
    first, second = await area_of(trial, frontend), await area_of(trial, frontend)
    for area in (first, second):
        expect(not area.in_flight(0), f"heads {area.in_flight(0)} are in flight in a new area")
    os.pwrite(first.fd.fileno(), b"\1", first.area.mmap_offset + REGION.size)
    expect(not second.in_flight(0), "the second area is the first one")


@RECONNECT.should(10, "Inflight I/O tracking", "The area has the layout of the specification.", AREA_WORKS)
async def area_layout(trial: Trial) -> None:
    """Has a ring with an area work: the version is 1, used_idx is the ring's, and nothing is in flight."""
    ring, area = await tracked(trial)
    await ring.frontend.stop(ring.queue)
    _, version, count, _, used = area.region(ring.queue.index)
    expect(version == VERSION, f"the version is {version}, not {VERSION}")
    expect(count >= SIZE, f"desc_num is {count}, for a ring of {SIZE}")
    index = ring.queue.driver.used_index
    expect(used == index, f"used_idx is {used}, and {index} in the ring")
    expect(not area.in_flight(ring.queue.index), "what was answered is still in flight there")


@RECONNECT.must(11, "Inflight I/O tracking", "What was in flight is done again, once.", AREA_WORKS)
async def resubmitted(trial: Trial) -> None:
    """Posts four requests while nobody serves them, has the second as used in the ring, and the first and the
    third as in flight in the area: these and the fourth are answered, each once.
    """
    ring, area = await _left(trial)
    heads = [ring.post() for _ in range(4)]
    _use_up(ring, heads[1])
    area.write(ring.queue.index, ring.queue.driver.used_index, heads[1], {heads[2]: 5, heads[0]: 6})
    ring = await again(trial, ring, area)
    for _ in range(3):
        await ring.answer()
    await ring.work(2)


@RECONNECT.must(12, "Inflight I/O tracking", "What was used in the last batch is not done again.", AREA_WORKS)
async def last_batch(trial: Trial) -> None:
    """As if a program had died between the used index and its note of that: the area has a head in flight
    that the ring has as used. A request that is posted then is answered, and that one is not.
    """
    ring, area = await _left(trial, last=True)
    ring = await again(trial, ring, area)
    await ring.work(2)


@RECONNECT.must(
    13, "SET_INFLIGHT_FD", "An area that is shorter than it is said to be ends nothing.", WITH_AREA
)
async def short_area(trial: Trial) -> None:
    """Sends SET_INFLIGHT_FD of a file of 0 bytes, said to be as long as needed, and starts rings with it."""
    frontend = await trial.negotiate(in_flight=True)
    area = await area_of(trial, frontend)
    await _use(trial, frontend, area.area, 0)


@RECONNECT.must(14, "SET_INFLIGHT_FD", "Sizes that make no sense end nothing.", WITH_AREA)
async def absurd_areas(trial: Trial) -> None:
    """Sends SET_INFLIGHT_FD with too many queues, too little room, an offset beyond the file, and a sum that
    overflows, each with rings after it.
    """
    most, size = 0xFFFF, 1 << 20
    for area in (
        Inflight(size, 0, most, most),
        Inflight(16, 0, 1, SIZE),
        Inflight(size, 1 << 40, 1, SIZE),
        Inflight((1 << 64) - 4096, 8192, 1, SIZE),
        Inflight(size, 0, 1, 0),
    ):
        frontend = await trial.negotiate(in_flight=True)
        await _use(trial, frontend, area, size)
        frontend.close()
        if trial.subject.is_one_shot:
            return


@RECONNECT.must(15, "GET_INFLIGHT_FD", "An area of no sense ends nothing.", WITH_AREA)
async def absurd_wishes(trial: Trial) -> None:
    """Asks for areas of 65535 queues of size 65535, of no queues, and of queues of size 0."""
    for queues, size in ((0xFFFF, 0xFFFF), (0, SIZE), (1, 0)):
        frontend = await trial.negotiate(in_flight=True)
        with suppress(RefusedRequest, *CLOSED):
            _, fds = await frontend.call_for_fds(GET_INFLIGHT_FD, Inflight(0, 0, queues, size))
            close_all(fds)
        frontend.close()
        if trial.subject.is_one_shot:
            return


async def _left(trial: Trial, *, last: bool = False) -> tuple[Ring, Area]:
    """Rings and their area that nobody serves; `last`: what was used last is in flight by the area."""
    ring, area = await tracked(trial)
    head = ring.post()
    ring.queue.kick()
    await ring.answer()
    await ring.frontend.stop(ring.queue)
    if area.region(ring.queue.index)[1] != VERSION:
        skip("its area has a layout of its own")
    ring.frontend.close()
    if last:
        area.write(ring.queue.index, ring.queue.driver.used_index - 1, head, {head: 3})
    return ring, area


def _use_up(ring: Ring, head: int) -> None:
    """Has a request as used, as if the device had answered it."""
    queue, memory = ring.queue, ring.memory.map
    index = queue.driver.used_index
    memory.write(queue.driver.used_addr + 4 + index % queue.size * USED.size, USED.pack(head, 0))
    memory.write(queue.driver.used_addr + 2, ((index + 1) % (1 << 16)).to_bytes(2, "little"))
    queue.poll()


async def _use(trial: Trial, frontend: Frontend, area: Inflight, size: int) -> None:
    """Passes a file of so many bytes as this area, and has rings work with it, if it is taken."""
    fd = trial.fd(os.memfd_create("inflight", os.MFD_CLOEXEC))
    os.ftruncate(fd.fileno(), size)
    with suppress(RefusedRequest, GuestError, TimeoutError, Failed, Skipped, *CLOSED):
        await frontend.set_inflight(area, fd)
        ring = await trial.ring(frontend)
        ring.queue.patience = REACTION
        await ring.work()
