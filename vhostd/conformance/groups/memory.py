"""Guest memory: that all of it can be reached, that what is taken back is let go, and nonsense about it.

**A region longer than its file.** The front-end is trusted with the guest, and it is no guest that makes a
file too short. But a front-end that is wrong must not take a back-end down by SIGBUS that serves others too:
a request costs its connection at most. So to survive that is a must. To survive a file that is cut while it
is mapped takes a handler of SIGBUS: that is a should.

**A buffer in two regions** is legal: a driver knows of no regions. They adjoin where a guest has memory of
two kinds, and then a kernel hardly ever puts a buffer across: a should.

**What is wrong with a table** is refused, best at once, by an ack. Who maps lazily may find out later.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import CLOSED, MEMORY_SIZE, Ring, Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.frontend import SharedMemory
from vhostd.ring import GuestMemory
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    GET_MAX_MEM_SLOTS,
    REM_MEM_REG,
    SET_MEM_TABLE,
    SET_VRING_ADDR,
    SET_VRING_KICK,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddr,
    VringFd,
)
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

MEMORY = Group("MEM", "Guest memory")

EXCHANGE = Needs(exchange=True)
WITH_ACKS = Needs(features=(Feature.PROTOCOL_FEATURES,), protocol=(ProtocolFeature.REPLY_ACK,))
SLOTS = Needs(protocol=(ProtocolFeature.CONFIGURE_MEM_SLOTS,))
SLOTS_WITH_ACKS = WITH_ACKS._replace(protocol=(*SLOTS.protocol, *WITH_ACKS.protocol))
SLOTS_AND_EXCHANGE = SLOTS._replace(exchange=True)
PROGRAM_AND_EXCHANGE = Needs(program=True, exchange=True)

SIZE = 1 << 20
PAGE = 4096
GUEST, USER = 0x1000_0000, 0x7F00_0000_0000  # where the memory of a trial is
MOST_SLOTS = 512  # that are tried
ADJOINING = ((GUEST, USER), (GUEST + SIZE, USER - 7 * SIZE), (GUEST + 2 * SIZE, USER + 7 * SIZE))


def second(trial: Trial, size: int = SIZE) -> SharedMemory:
    """Memory beside that which a trial has by default."""
    return trial.memory(size, guest_addr=GUEST + 4 * MEMORY_SIZE, user_addr=USER + 8 * MEMORY_SIZE)


def single(memory: SharedMemory, offset: int = 0) -> SingleRegion:
    """What REM_MEM_REG has of a memory."""
    return SingleRegion(0, memory.guest_addr, memory.size, memory.user_addr, offset)


# --- To be reached --------------------------------------------------------------------------------------


@MEMORY.must(
    1,
    "Memory region description",
    "Rings lie at user addresses and buffers at guest addresses, which differ.",
    EXCHANGE,
)
async def two_kinds_of_addresses(trial: Trial) -> None:
    """Shares one region, whose user address is far from its guest address; a valid request is answered."""
    await (await trial.ring()).work()


@MEMORY.must(2, "Memory region description", "A region may begin anywhere in its file.", EXCHANGE)
async def offset(trial: Trial) -> None:
    """Shares a region that begins three pages into its file; a valid request is answered."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE, offset=3 * PAGE)
    await frontend.share(memory)
    await (await trial.ring(frontend, memory)).work()


@MEMORY.must(3, "SET_MEM_TABLE", "Rings and buffers may lie in several regions.", EXCHANGE)
async def several_regions(trial: Trial) -> None:
    """Shares eight regions, with the ring in one of them, and puts the buffers of valid requests into each
    other.
    """
    frontend = await trial.negotiate()
    memories = [
        trial.memory(SIZE, guest_addr=GUEST + 16 * SIZE * at, user_addr=USER - 32 * SIZE * at)
        for at in range(8)
    ]
    await frontend.share(*memories)
    ring = await trial.ring(frontend, memories[3])
    ring.memory.map = GuestMemory([region for memory in memories for region in memory.map.regions])
    for memory in memories:
        ring.queue.offer(ring.buffers_at(memory.allocate(PAGE), memory.allocate(PAGE)))
        ring.queue.kick()
        await ring.answer()


@MEMORY.should(4, "virtio 2.7.5", "A buffer may begin in one region and end in the next.", EXCHANGE)
async def buffer_across(trial: Trial) -> None:
    """Shares three regions whose guest addresses adjoin, with user addresses far apart, and puts the buffers
    of a valid request across the two borders.
    """
    frontend = await trial.negotiate()
    memories = [trial.memory(SIZE, guest_addr=guest, user_addr=user) for guest, user in ADJOINING]
    await frontend.share(*memories)
    ring = await trial.ring(frontend, memories[0])
    ring.memory.map = GuestMemory([region for memory in memories for region in memory.map.regions])
    ring.queue.offer(ring.buffers_at(GUEST + SIZE - 1, GUEST + 2 * SIZE - 1))
    ring.queue.kick()
    try:
        await ring.answer()
    except Failed as failed:
        raise Failed(f"with buffers across two regions {failed}") from None


@MEMORY.must(5, "Ring states", "The table may be replaced while a ring runs.", EXCHANGE)
async def replaced_while_running(trial: Trial) -> None:
    """Sends SET_MEM_TABLE with one region more, and then without it, while a ring runs: it goes on, and has
    buffers in the new region.
    """
    ring = await trial.ring()
    await ring.work()
    other = second(trial)
    await ring.frontend.share(ring.memory, other)
    await works_in(ring, other)
    await ring.frontend.share(ring.memory)
    await ring.work()


async def works_in(ring: Ring, memory: SharedMemory) -> None:
    """Expects a valid request to be answered whose buffers lie in a memory beside the ring's."""
    own = ring.memory.map
    ring.memory.map = GuestMemory([*own.regions, *memory.map.regions])
    ring.queue.offer(ring.buffers_at(memory.guest_addr + PAGE, memory.guest_addr + 2 * PAGE))
    ring.queue.kick()
    await ring.answer()
    ring.memory.map = own


# --- Region by region -----------------------------------------------------------------------------------


@MEMORY.must(
    6, "ADD_MEM_REG", "A region may be added, and taken away again, while a ring runs.", SLOTS_AND_EXCHANGE
)
async def slots_while_running(trial: Trial) -> None:
    """Starts a ring in a region that came by ADD_MEM_REG, adds another one, puts the buffers of a valid
    request there, and removes it: the ring goes on.
    """
    frontend = await trial.negotiate()
    memory, other = trial.memory(), second(trial)
    await frontend.add(memory)
    ring = await trial.ring(frontend, memory)
    await frontend.add(other)
    await works_in(ring, other)
    await frontend.remove(other)
    await ring.work()


@MEMORY.must(7, "GET_MAX_MEM_SLOTS", "There are as many slots as it says.", SLOTS)
async def as_many_slots(trial: Trial) -> None:
    """Adds as many regions as GET_MAX_MEM_SLOTS says, at most 512, each a page of the same file."""
    frontend = await trial.negotiate()
    slots = (await frontend.call(GET_MAX_MEM_SLOTS, Empty())).value
    expect(slots, "it says that it has no slots")
    count = min(slots, MOST_SLOTS)
    memory = trial.memory(count * PAGE)
    for at in range(count):
        where = 2 * at * PAGE  # apart, so that nothing is merged
        region = SingleRegion(0, memory.guest_addr + where, PAGE, memory.user_addr + where, at * PAGE)
        try:
            await frontend.call(ADD_MEM_REG, region, memory.fd)
        except (RefusedRequest, *CLOSED):
            raise Failed(f"it says {slots} slots, and has refused region {at + 1}") from None
    await trial.answers(frontend, f"it says {slots} slots, and has closed the connection")


@MEMORY.must(
    8,
    "REM_MEM_REG",
    "A region is removed by its addresses and its size: the offset does not matter.",
    SLOTS_WITH_ACKS,
)
async def removed_whatever_the_offset(trial: Trial) -> None:
    """Adds a region, sends REM_MEM_REG of it with another offset, and adds it once more."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.add(memory)
    try:
        await frontend.call(REM_MEM_REG, single(memory, offset=7 * PAGE))
        await frontend.add(memory)
    except (RefusedRequest, *CLOSED):
        raise Failed("a region was not removed by its addresses and its size alone") from None


@MEMORY.should(9, "REM_MEM_REG", "A region that is not there is not removed.", SLOTS_WITH_ACKS)
async def removed_without_being_there(trial: Trial) -> None:
    """Sends REM_MEM_REG of a region whose guest address nobody knows."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.add(memory)
    wrong = SingleRegion(0, memory.guest_addr + SIZE, SIZE, memory.user_addr, 0)
    await trial.refused(frontend, REM_MEM_REG, wrong, reason="a region that was never added was removed")


@MEMORY.must(10, "REM_MEM_REG", "An fd that comes with REM_MEM_REG is closed.", SLOTS)
async def fd_of_a_removal(trial: Trial) -> None:
    """Removes a region, and sends the end of a pipe with that: the pipe ends."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.add(memory)
    ours, theirs = (trial.fd(end) for end in os.pipe())
    message = trial.message(REM_MEM_REG, single(memory))
    await frontend.send_raw(message, theirs)
    theirs.close()
    await trial.answers_or_closes(frontend)
    await trial.ends(ours, "an fd that came with REM_MEM_REG is still open in the back-end")


# --- To be let go ---------------------------------------------------------------------------------------


@MEMORY.must(11, "REM_MEM_REG", "Memory that was removed is written no more.", SLOTS_AND_EXCHANGE)
async def removed_is_not_written(trial: Trial) -> None:
    """Removes a region, and then asks for an answer there: what we see of it has not changed."""
    ring = await trial.ring()
    if not ring.exchange.room:
        skip("its answers have no bytes")
    other = second(trial)
    await ring.frontend.add(other)
    await works_in(ring, other)
    await ring.frontend.remove(other)
    before = other.map.read(other.guest_addr, other.size)
    *request, (_, room, _) = ring.buffers()
    ring.queue.offer([*request, (other.guest_addr + 16 * PAGE, room, True)])
    await ring.hurt("a buffer in memory that was removed")
    expect(
        other.map.read(other.guest_addr, other.size) == before,
        "it has written into memory that the front-end had removed",
    )


@MEMORY.must(
    12,
    "REM_MEM_REG",
    "Memory that was removed is unmapped.",
    SLOTS_AND_EXCHANGE._replace(program=True),
)
async def removed_is_unmapped(trial: Trial) -> None:
    """Adds a region, removes it, and looks for its file in /proc/PID/maps and /proc/PID/fd."""
    ring = await trial.ring()
    other = second(trial)
    await ring.frontend.add(other)
    await works_in(ring, other)
    if not trial.process.maps(other.fd):
        skip("the process does not map the memory itself")
    await ring.frontend.remove(other)
    await let_go(trial, ring, other.fd)


@MEMORY.should(13, "SET_MEM_TABLE", "Memory that is in the table no more is unmapped.", PROGRAM_AND_EXCHANGE)
async def replaced_is_unmapped(trial: Trial) -> None:
    """Replaces the table, and looks for the old region's file in /proc/PID/maps and /proc/PID/fd."""
    ring = await trial.ring()
    other = second(trial)
    await ring.frontend.share(ring.memory, other)
    await works_in(ring, other)
    if not trial.process.maps(other.fd):
        skip("the process does not map the memory itself")
    await ring.frontend.share(ring.memory)
    await let_go(trial, ring, other.fd)


async def let_go(trial: Trial, ring: Ring, file: Fd) -> None:
    """Expects the process to have this file no more, after some work."""
    await ring.work(2)
    await trial.until(lambda: not trial.process.maps(file), "the memory is still mapped, see /proc/PID/maps")
    await trial.until(
        lambda: not trial.process.holds(file), "the memory's fd is still open, see /proc/PID/fd"
    )


@MEMORY.must(
    14, "Front-end disconnect", "All memory is let go when the front-end has gone.", PROGRAM_AND_EXCHANGE
)
async def gone_with_the_connection(trial: Trial) -> None:
    """Lets a ring work, goes, and looks for the memory's file in /proc/PID/maps and /proc/PID/fd."""
    if trial.subject.is_one_shot:
        skip("it ends with its front-end")
    ring = await trial.ring()
    await ring.work()
    if not trial.process.maps(ring.memory.fd):
        skip("the process does not map the memory itself")
    ring.frontend.close()
    file = ring.memory.fd
    await trial.until(lambda: not trial.process.maps(file), "the memory of a guest that has gone is mapped")
    await trial.until(lambda: not trial.process.holds(file), "the fd of a guest's memory is still open")


# --- Nonsense -------------------------------------------------------------------------------------------

Table = tuple[str, Sequence[MemoryRegion]]
MAX = 0xFFFF_FFFF_FFFF_FFFF
WRONG_TABLES: tuple[Table, ...] = (
    ("a region of 0 bytes", [MemoryRegion(GUEST, 0, USER, 0)]),
    ("a guest address beyond 2^64", [MemoryRegion(MAX - PAGE + 1, SIZE, USER, 0)]),
    ("a user address beyond 2^64", [MemoryRegion(GUEST, SIZE, MAX - PAGE + 1, 0)]),
    ("a size of 2^64 less a page", [MemoryRegion(GUEST, MAX - PAGE + 1, USER, 0)]),
    ("an offset beyond 2^64", [MemoryRegion(GUEST, SIZE, USER, MAX - PAGE + 1)]),
    ("an offset past the file's end", [MemoryRegion(GUEST, SIZE, USER, 64 * SIZE)]),
    ("a region longer than its file", [MemoryRegion(GUEST, 64 * SIZE, USER, 0)]),
    (
        "two regions at one guest address",
        [MemoryRegion(GUEST, SIZE, USER, 0), MemoryRegion(GUEST, SIZE, USER + SIZE, 0)],
    ),
)


@MEMORY.must(15, "SET_MEM_TABLE", "A table that cannot be right costs its connection at most.")
async def wrong_tables(trial: Trial) -> None:
    """Sends tables with a region of no bytes, addresses, sizes and offsets that overflow, and two regions in
    one place, each on a connection of its own; a new front-end is served after each.
    """
    memory = trial.memory(SIZE)
    for what, regions in WRONG_TABLES:
        await survives_table(trial, what, regions, memory.fd)


async def survives_table(
    trial: Trial, what: str, regions: Sequence[MemoryRegion], fd: Fd, fds: int = -1
) -> None:
    """Sends a table, with so many fds, by default one for each region."""
    frontend = await trial.negotiate()
    count = len(regions) if fds < 0 else fds
    with suppress(RefusedRequest, *CLOSED):
        await frontend.call(SET_MEM_TABLE, MemoryTable(tuple(regions)), *[fd] * count)
        await trial.answers_or_closes(frontend)
    await trial.survived(frontend, what)


@MEMORY.should(16, "Memory region description", "A table that cannot be right is refused.", WITH_ACKS)
async def wrong_tables_are_refused(trial: Trial) -> None:
    """As MEM-15, and asks for an ack."""
    memory = trial.memory(SIZE)
    for what, regions in WRONG_TABLES:
        frontend = await trial.negotiate()
        table = MemoryTable(tuple(regions))
        fds = [memory.fd] * len(regions)
        await trial.refused(frontend, SET_MEM_TABLE, table, *fds, reason=f"{what} was accepted")
        await trial.survived(frontend, what)


@MEMORY.must(17, "SET_MEM_TABLE", "A table that does not match its fds costs its connection at most.")
async def wrong_number_of_fds(trial: Trial) -> None:
    """Sends tables with no fd, fewer and more fds than regions, and of no region at all, each on a connection
    of its own; a new front-end is served after each.
    """
    memory = trial.memory(SIZE)
    apart = [MemoryRegion(GUEST + 4 * SIZE * at, SIZE, USER + 4 * SIZE * at, 0) for at in range(2)]
    for regions, fds in ((1, 0), (2, 1), (1, 2), (1, 9), (0, 0), (0, 1)):
        what = f"a table of {regions} regions with {fds} fds"
        await survives_table(trial, what, apart[:regions], memory.fd, fds)


@MEMORY.should(18, "SET_MEM_TABLE", "A table with too few fds is refused.", WITH_ACKS)
async def too_few_fds(trial: Trial) -> None:
    """Sends a table of two regions with one fd, and asks for an ack."""
    frontend = await trial.negotiate()
    memory, other = trial.memory(SIZE), second(trial)
    table = MemoryTable((memory.region, other.region))
    await trial.refused(
        frontend, SET_MEM_TABLE, table, memory.fd, reason="two regions with one fd were accepted"
    )


@MEMORY.must(19, "SET_MEM_TABLE", "A table that says more regions than it has costs its connection at most.")
async def too_many_regions(trial: Trial) -> None:
    """Sends tables of one region that count 9, 33 and 2^32-1; a new front-end is served after each."""
    memory = trial.memory(SIZE)
    for count in (9, 33, 0xFFFF_FFFF):
        frontend = await trial.negotiate()
        whole = trial.message(SET_MEM_TABLE, MemoryTable((memory.region,)))
        counted = whole[:12] + count.to_bytes(4, "little") + whole[16:]
        with suppress(*CLOSED):
            await frontend.send_raw(counted, memory.fd)
            await trial.answers_or_closes(frontend)
        await trial.survived(frontend, f"a table of {count} regions in 40 bytes")


@MEMORY.must(20, "SET_MEM_TABLE", "An fd that cannot be mapped costs its connection at most.")
async def wrong_fds(trial: Trial) -> None:
    """Sends a table with an fd that can only be read, with a pipe, a folder and an eventfd, each on
    a connection of its own; a new front-end is served after each.
    """
    region = MemoryRegion(GUEST, SIZE, USER, 0)
    for what, fd in wrong_kinds(trial):
        await survives_table(trial, f"a region of {what}", [region], fd)


def wrong_kinds(trial: Trial) -> list[tuple[str, Fd]]:
    """Fds that are no guest's memory."""
    with tempfile.TemporaryFile() as file:
        os.ftruncate(file.fileno(), SIZE)
        read_only = trial.fd(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY))
    pipe = [trial.fd(end) for end in os.pipe()]
    return [
        ("a file that can only be read", read_only),
        ("a pipe", pipe[0]),
        ("a folder", trial.fd(os.open("/", os.O_RDONLY | os.O_DIRECTORY))),
        ("an eventfd", trial.fd(os.eventfd(0))),
        ("a device without memory", trial.fd(os.open("/dev/null", os.O_RDWR))),
    ]


# --- A file that is too short ---------------------------------------------------------------------------


@MEMORY.must(
    21, "SET_MEM_TABLE", "A region that is longer than its file costs its connection at most.", EXCHANGE
)
async def longer_than_its_file(trial: Trial) -> None:
    """Shares a region twice as long as its file, and asks for an answer in the half that is not there."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    long = MemoryRegion(memory.guest_addr, 2 * SIZE, memory.user_addr, 0)
    try:
        await frontend.call(SET_MEM_TABLE, MemoryTable((long,)), memory.fd)
        ring = await trial.ring(frontend, memory)
    except (RefusedRequest, *CLOSED):
        return
    await missing(ring, memory.guest_addr + SIZE + PAGE)


@MEMORY.should(22, "SET_MEM_TABLE", "A file that is cut costs its connection at most.", EXCHANGE)
async def cut_while_mapped(trial: Trial) -> None:
    """Cuts the file of a guest's memory in half, and asks for an answer in the half that is not there."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.share(memory)
    ring = await trial.ring(frontend, memory)
    await ring.work()
    os.ftruncate(memory.fd.fileno(), SIZE // 2)
    await missing(ring, memory.guest_addr + SIZE // 2 + PAGE)


async def missing(ring: Ring, where: int) -> None:
    """Has the device use memory that is not there."""
    *request, (_, size, writes) = ring.buffers()
    ring.queue.offer([*request, (where, size, writes)])
    await ring.hurt("a buffer past the end of the memory's file")


# --- Rings that are nowhere -----------------------------------------------------------------------------


def _places(memory: SharedMemory) -> list[tuple[str, tuple[int, int, int]]]:
    """Addresses of the three parts of a ring that cannot be right."""
    inside, end = memory.user_addr, memory.user_addr + memory.size
    return [
        ("at address 0", (0, 0, 0)),
        ("in no region", (end + SIZE, end + SIZE, end + SIZE)),
        ("at guest addresses", (memory.guest_addr, memory.guest_addr + PAGE, memory.guest_addr + 2 * PAGE)),
        ("at the last 16 bytes of memory", (end - 16, end - 16, end - 16)),
        ("with its used part at the end of memory", (inside, end - 4, inside + PAGE)),
        ("with its available part at the end of memory", (inside, inside + PAGE, end - 2)),
        ("at the end of all addresses", (MAX - 15, MAX - 15, MAX - 15)),
        ("at odd addresses", (inside + 1, inside + PAGE + 1, inside + 2 * PAGE + 1)),
    ]


@MEMORY.must(23, "SET_VRING_ADDR", "A ring outside of memory costs its connection at most.", EXCHANGE)
async def ring_nowhere(trial: Trial) -> None:
    """Starts rings at addresses in no region, at the very end of one, at guest addresses, and at odd ones; a
    new front-end is served after each.
    """
    memory = trial.memory(SIZE)
    for what, (desc, used, avail) in _places(memory):
        frontend = await trial.negotiate()
        await frontend.share(memory)
        ring = await trial.ring(frontend, memory)
        index = ring.queue.index
        await frontend.stop(ring.queue)
        with suppress(RefusedRequest, *CLOSED):
            await frontend.call(SET_VRING_ADDR, VringAddr(index, 0, desc, used, avail, 0))
            await frontend.call(SET_VRING_KICK, VringFd(index), ring.queue.kick_fd)
            await ring.hurt(f"a ring {what}")
        await trial.survived(frontend, f"a ring {what}")
