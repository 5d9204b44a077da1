"""To move a guest to another host: the log of what the device has written, and the device's state.

**What is logged.** With LOG_ALL each page that the device writes is marked, buffers and used ring; a page
that is missed is memory that the destination has not got. Front-ends that log set LOG_ALL first, and then
VHOST_VRING_F_LOG with the used ring's own guest address, while the rings run: so do these checks. A page that
is marked though it was not written is only sent once more: a should.

**SET_LOG_BASE has a reply** of its own with LOG_SHMFD, by the list in "Communication" and by what front-ends
wait for; the table says N/A. Its value is not said: libvhost-user sends a u64, and DPDK an empty payload.

**A log that is too short** is a front-end's fault, as a region that is longer than its file is. To refuse it
is best: without a log a migration must not go on.
"""

import os
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.each_format import EachFormat
from vhostd.conformance.ring import CLOSED, Ring
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, SharedMemory
from vhostd.vhost_user.messages import (
    CHECK_DEVICE_STATE,
    SET_DEVICE_STATE_FD,
    SET_FEATURES,
    SET_LOG_BASE,
    SET_LOG_FD,
    SET_VRING_ADDR,
    Log,
    ProtocolFeature,
    StateTransfer,
    VringAddr,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.rows import U64, Empty

MIGRATION = Group("MIG", "Migration")

SHARES_LOG = Needs(features=(Feature.LOG_ALL,), protocol=(ProtocolFeature.LOG_SHMFD,))
LOGS = SHARES_LOG._replace(exchange=True)
STATE = Needs(protocol=(ProtocolFeature.DEVICE_STATE,))
STATE_AND_EXCHANGE = STATE._replace(exchange=True)

SIZE = 1 << 20
PAGE = 4096
VRING_F_LOG = 1
LOG_ALL = mask(Feature.LOG_ALL)
STOPPED = StateTransfer.STOPPED


class SharedLog:
    """A dirty log for a memory, in a file of the check's; `offset` bytes of the file lie before it."""

    def __init__(self, trial: Trial, memory: SharedMemory, offset: int = 0) -> None:
        self._trial = trial
        self.fd = trial.fd(os.memfd_create("log", os.MFD_CLOEXEC))
        self.place = Log((memory.guest_addr + memory.size - 1) // PAGE // 8 + 1, offset)
        os.ftruncate(self.fd.fileno(), offset + self.place.mmap_size)

    def pages(self) -> set[int]:
        """The guest addresses of the pages that are marked."""
        content = os.pread(self.fd.fileno(), self.place.mmap_size, self.place.mmap_offset)
        return {
            (at * 8 + bit) * PAGE
            for at, bits in enumerate(content)
            if bits
            for bit in range(8)
            if bits >> bit & 1
        }

    def clear(self) -> None:
        """Takes all marks away."""
        os.pwrite(self.fd.fileno(), bytes(self.place.mmap_size), self.place.mmap_offset)

    async def share(self, frontend: Frontend) -> None:
        """Gives it to the back-end."""
        await frontend.send_raw(self._trial.message(SET_LOG_BASE, self.place), self.fd)
        try:
            reply = await self._trial.next_reply(frontend)
        except TimeoutError:
            raise Failed("SET_LOG_BASE got no reply") from None
        except CLOSED:
            raise Failed("SET_LOG_BASE closed the connection") from None
        expect(reply.request == SET_LOG_BASE.request, f"the reply is one to request {reply.request}")


async def switch(ring: Ring, *, on: bool) -> None:
    """Switches logging on or off, as QEMU does, while rings run."""
    frontend = ring.frontend
    await frontend.call(SET_FEATURES, U64(frontend.features | (LOG_ALL if on else 0)))
    for queue in ring.queues:
        addr = frontend.address(queue)
        flags, log = (VRING_F_LOG, queue.driver.used_addr) if on else (0, 0)
        logged = VringAddr(queue.index, flags, addr.desc, addr.used, addr.avail, log)
        await frontend.call(SET_VRING_ADDR, logged)


async def working(trial: Trial) -> Ring:
    """A ring that has worked, in memory that is soon compared."""
    frontend, memory = await trial.negotiate(), trial.memory(SIZE)
    await frontend.share(memory)
    ring = await trial.ring(frontend, memory)
    await ring.work()
    return ring


async def logged(trial: Trial, offset: int = 0) -> tuple[Ring, SharedLog]:
    """A ring that has worked, and then begun to log."""
    ring = await working(trial)
    log = SharedLog(trial, ring.memory, offset)
    await log.share(ring.frontend)
    await switch(ring, on=True)
    return ring, log


async def written_by(ring: Ring, *places: int) -> set[int]:
    """Has a valid request answered, with its buffers there; the pages that have changed since before."""
    memory = ring.memory
    places = places or tuple(memory.allocate(3 * PAGE, PAGE) + PAGE - 8 for _ in range(2))
    for place in places:
        memory.map.write(place, b"\xa5" * PAGE)  # what the device writes is hardly ever that
    ring.queue.offer(ring.buffers_at(*places))
    before = memory.map.read(memory.guest_addr, memory.size)
    ring.queue.kick()
    await ring.answer()
    now = memory.map.read(memory.guest_addr, memory.size)
    # What the driver has written meanwhile is not the device's: the wish for an interrupt.
    driver = ring.queue.driver.avail_addr // PAGE * PAGE
    return {
        memory.guest_addr + at
        for at in range(0, memory.size, PAGE)
        if now[at : at + PAGE] != before[at : at + PAGE]
    } - ({driver} if driver != ring.queue.driver.used_addr // PAGE * PAGE else set())


def spelled(pages: set[int]) -> str:
    """Pages for a person."""
    return ", ".join(map(hex, sorted(pages)[:4]))


async def expect_marks(ring: Ring, log: SharedLog) -> None:
    """Expects what a valid request has changed to be marked."""
    written = await written_by(ring)
    if missed := written - log.pages():
        used = ring.queue.driver.used_addr // PAGE * PAGE
        what = " (of the used ring)" if used in missed else ""
        raise Failed(f"the device has written the page at {spelled(missed)}{what}, and has not marked it")


# --- The log --------------------------------------------------------------------------------------------


@MIGRATION.must(1, "SET_LOG_BASE", "With LOG_SHMFD SET_LOG_BASE is answered.", SHARES_LOG)
async def log_base_is_answered(trial: Trial) -> None:
    """Shares memory, and a log for it: SET_LOG_BASE gets a reply."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.share(memory)
    await SharedLog(trial, memory).share(frontend)


@MIGRATION.must(2, "Migration", "All pages that the device writes are marked.", LOGS)
@EachFormat
async def marks(trial: Trial) -> None:
    """Switches logging on while a ring runs, compares the memory before and after valid requests, and looks
    for each page that has changed in the log.
    """
    ring, log = await logged(trial)
    for _ in range(4):
        await expect_marks(ring, log)
        log.clear()


@MIGRATION.should(3, "Migration", "No other pages are marked.", LOGS)
@EachFormat
async def marks_no_more(trial: Trial) -> None:
    """As MIG-2, and looks for marks of pages that are neither the ring's nor of a buffer to be written."""
    ring, log = await logged(trial)
    await ring.work()
    log.clear()
    place = ring.memory.allocate(3 * PAGE, PAGE)
    await written_by(ring, place, place + PAGE)
    driver = ring.queue.driver
    ring_pages = set(range(driver.desc_addr // PAGE * PAGE, driver.used_addr + PAGE, PAGE))
    room = ring.exchange.room
    answer = {place + PAGE if ring.exchange.request else place} if room else set()
    if more := log.pages() - ring_pages - answer:
        raise Failed(f"the page at {spelled(more)} is marked, and the device had nothing to write there")


@MIGRATION.must(4, "Log description", "The log may begin anywhere in its file.", LOGS)
async def offset(trial: Trial) -> None:
    """Shares a log that begins three pages into its file: marks appear there."""
    ring, log = await logged(trial, 3 * PAGE)
    await expect_marks(ring, log)
    expect(not any(os.pread(log.fd.fileno(), 3 * PAGE, 0)), "it has written before the log's begin")


@MIGRATION.must(5, "Migration", "Marks that are there stay.", LOGS)
async def marks_stay(trial: Trial) -> None:
    """Marks all pages before a valid request is answered: all are marked after it."""
    ring, log = await logged(trial)
    size = log.place.mmap_size
    os.pwrite(log.fd.fileno(), b"\xff" * size, 0)
    await written_by(ring)
    expect(os.pread(log.fd.fileno(), size, 0) == b"\xff" * size, "it has taken marks away that were there")


@MIGRATION.must(6, "SET_LOG_BASE", "A new log takes the place of the one before.", LOGS)
async def new_log(trial: Trial) -> None:
    """Shares another log while a ring runs: marks appear there, and no more in the first."""
    ring, first = await logged(trial)
    await expect_marks(ring, first)
    second = SharedLog(trial, ring.memory)
    await second.share(ring.frontend)
    first.clear()
    await expect_marks(ring, second)
    expect(not first.pages(), "it marks pages in a log that was replaced")


@MIGRATION.should(7, "Migration", "Logging ends when LOG_ALL is taken back.", LOGS)
async def switched_off(trial: Trial) -> None:
    """Switches logging off again while a ring runs: no more marks appear."""
    ring, log = await logged(trial)
    await expect_marks(ring, log)
    await switch(ring, on=False)
    log.clear()
    await written_by(ring)
    expect(not log.pages(), "it marks pages though LOG_ALL was taken back")


@MIGRATION.must(8, "Migration", "A ring that is started later is logged, too.", LOGS)
async def started_later(trial: Trial) -> None:
    """Switches logging on before the first ring starts."""
    frontend = await trial.negotiate()
    memory = trial.memory(SIZE)
    await frontend.share(memory)
    log = SharedLog(trial, memory)
    await log.share(frontend)
    await frontend.call(SET_FEATURES, U64(frontend.features | LOG_ALL))
    ring = await trial.ring(frontend, memory)
    await switch(ring, on=True)
    await expect_marks(ring, log)


@MIGRATION.must(9, "Log description", "A log that is too short costs the connection at most.", LOGS)
async def short_logs(trial: Trial) -> None:
    """Shares logs of one byte, of none, of more bytes than their file has, and at offsets that overflow, and
    has a ring work; each on a connection of its own. A new front-end is served after each.
    """
    places = {
        "a log of 1 byte": Log(1, 0),
        "a log of 0 bytes": Log(0, 0),
        "a log longer than its file": Log(1 << 30, 0),
        "a log past the end of its file": Log(1 << 20, 1 << 30),
        "a log of 2^64-1 bytes": Log((1 << 64) - 1, 0),
        "a log at offset 2^64-4096": Log(1 << 20, (1 << 64) - PAGE),
    }
    for what, place in places.items():
        ring = await working(trial)
        log = SharedLog(trial, ring.memory)
        with suppress(RefusedRequest, *CLOSED):
            await ring.frontend.call(SET_LOG_BASE, place, log.fd)
            await switch(ring, on=True)
            ring.post()
            await ring.hurt(what)
        await trial.survived(ring.frontend, what)


@MIGRATION.must(10, "Log description", "A log whose file is empty costs the connection at most.", LOGS)
async def empty_log(trial: Trial) -> None:
    """Shares a log of the right size whose file has no byte, and has a ring work."""
    ring = await working(trial)
    log = SharedLog(trial, ring.memory)
    os.ftruncate(log.fd.fileno(), 0)
    with suppress(RefusedRequest, *CLOSED):
        await ring.frontend.call(SET_LOG_BASE, log.place, log.fd)
        await switch(ring, on=True)
        ring.post()
        await ring.hurt("a log whose file is empty")


@MIGRATION.should(11, "SET_LOG_FD", "SET_LOG_FD does no harm.", SHARES_LOG)
async def log_fd(trial: Trial) -> None:
    """Sends SET_LOG_FD with an eventfd, and then GET_FEATURES."""
    frontend = await trial.negotiate()
    with suppress(RefusedRequest, *CLOSED):
        await frontend.call(SET_LOG_FD, Empty(), trial.eventfd())
    await trial.answers(frontend, "SET_LOG_FD closed the connection")


# --- The device's state -----------------------------------------------------------------------------------


async def saved(trial: Trial) -> tuple[bytes, Frontend]:
    """The state of a device that has worked, if it is known how, and was stopped; and its front-end."""
    frontend = await trial.negotiate()
    if trial.subject.exchange is not None:
        memory = trial.memory(SIZE)
        await frontend.share(memory)
        ring = await trial.ring(frontend, memory)
        await ring.work()
        for queue in ring.queues:
            await frontend.stop(queue)
    try:
        return await frontend.save(), frontend
    except RefusedRequest as error:
        raise Failed(f"its state was not saved: {error}") from None


async def fresh(trial: Trial, old: Frontend) -> Frontend:
    """A connection to a back-end that knows nothing; to another process, if it can be started."""
    await trial.survived(old, "after its state was saved")
    if trial.subject.program is not None and not trial.subject.is_one_shot:
        await trial.subject.program.restart()
    frontend = await trial.connect()
    await frontend.negotiate(resume=True)
    return frontend


@MIGRATION.must(12, "Migrating back-end state", "The state of a stopped device can be saved.", STATE)
async def state_is_saved(trial: Trial) -> None:
    """Stops all rings and has the state written to a pipe, to its end: CHECK_DEVICE_STATE says 0."""
    await saved(trial)


@MIGRATION.must(
    13, "Migrating back-end state", "A state that was saved can be loaded elsewhere.", STATE_AND_EXCHANGE
)
async def state_is_loaded(trial: Trial) -> None:
    """Has a state saved, starts the program anew, and loads the state there: CHECK_DEVICE_STATE says 0, and a
    valid request is answered.
    """
    state, old = await saved(trial)
    frontend = await fresh(trial, old)
    try:
        await frontend.load(state)
    except (RefusedRequest, *CLOSED) as error:
        raise Failed(f"a state that it has saved itself was refused: {error}") from None
    await (await trial.ring(frontend)).work()


async def refused_state(trial: Trial, state: bytes, what: str) -> None:
    """Expects a state to be refused: by the end of the transfer, or of the connection."""
    frontend = await trial.connect()
    await frontend.negotiate(resume=True)
    try:
        await frontend.load(state)
    except (RefusedRequest, *CLOSED):
        await trial.survived(frontend, what)
        return
    raise Failed(f"{what} was loaded, and CHECK_DEVICE_STATE says that all is well")


@MIGRATION.must(14, "CHECK_DEVICE_STATE", "A state that is none is refused.", STATE)
async def garbage_is_refused(trial: Trial) -> None:
    """Loads 4096 bytes of 0xa5: CHECK_DEVICE_STATE says that it has failed, or the connection ends. Skipped
    if the device has no state at all.
    """
    state, old = await saved(trial)
    if not state:
        skip("it has no state")
    await trial.survived(old, "after its state was saved")
    await refused_state(trial, b"\xa5" * PAGE, "a state of 4096 bytes 0xa5")


@MIGRATION.must(15, "CHECK_DEVICE_STATE", "A state that was cut is refused.", STATE)
async def cut_is_refused(trial: Trial) -> None:
    """Has a state saved, and loads half of it, and all but its last byte."""
    state, old = await saved(trial)
    if len(state) < 2:
        skip(f"its state has {len(state)} bytes")
    await trial.survived(old, "after its state was saved")
    await refused_state(trial, state[: len(state) // 2], "half of a state")
    await refused_state(trial, state[:-1], "a state without its last byte")


@MIGRATION.should(16, "SET_DEVICE_STATE_FD", "No state is saved while a ring runs.", STATE_AND_EXCHANGE)
async def running_is_refused(trial: Trial) -> None:
    """Asks for the state while a ring runs: it is refused."""
    ring = await trial.ring()
    await ring.work()
    try:
        await ring.frontend.save()
    except (RefusedRequest, *CLOSED):
        return
    raise Failed("the state was saved while a ring ran")


@MIGRATION.should(17, "SET_DEVICE_STATE_FD", "An unknown direction or phase is refused.", STATE)
async def unknown_transfers(trial: Trial) -> None:
    """Sends SET_DEVICE_STATE_FD with direction 2, and with phase 1."""
    for direction, phase in ((2, 0), (0, 1)):
        frontend = await trial.negotiate()
        _, theirs = (trial.fd(end) for end in os.pipe())
        what = f"direction {direction}, phase {phase}"
        try:
            reply = await frontend.call(SET_DEVICE_STATE_FD, StateTransfer(direction, phase), theirs)
            expect(reply.value & 0xFF, f"{what} was accepted")
        except (RefusedRequest, *CLOSED):
            pass
        await trial.survived(frontend, what)


@MIGRATION.must(18, "SET_DEVICE_STATE_FD", "A front-end may go while a state is transferred.", STATE)
async def goes_with_a_transfer(trial: Trial) -> None:
    """Begins to load a state, and to save one that nobody reads, and goes."""
    for direction in (StateTransfer.LOAD, StateTransfer.SAVE):
        frontend = await trial.negotiate()
        ours, theirs = (trial.fd(end) for end in os.pipe())
        given = theirs if direction == StateTransfer.SAVE else ours
        with suppress(RefusedRequest, *CLOSED):
            await frontend.call(SET_DEVICE_STATE_FD, StateTransfer(direction, STOPPED), given)
        await trial.survived(frontend, "a front-end that goes in the middle of a transfer")


@MIGRATION.must(19, "CHECK_DEVICE_STATE", "It is answered without a transfer, too.", STATE)
async def check_without_transfer(trial: Trial) -> None:
    """Sends CHECK_DEVICE_STATE alone, and then GET_FEATURES."""
    frontend = await trial.negotiate()
    with suppress(RefusedRequest, *CLOSED):
        await frontend.call(CHECK_DEVICE_STATE, Empty())
    await trial.answers_or_closes(frontend)
