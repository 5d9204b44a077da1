"""A driver that is not honest: what it writes into its rings costs it these rings, or its connection.

A guest is in the hands of whoever rents it. What its driver writes must neither end the back-end's process,
which may serve others, nor keep it busy for ever: after each of these checks a new front-end is served, and
the front-end can stop the ring, unless the connection was closed. Whether the ring is stopped, or the chain
given back or skipped, is not said; nor is it looked at here.

That the rest of the device, and the rings after a reset, go on is a should: virtio asks for the status
DEVICE_NEEDS_RESET, after which a driver may begin anew, but a guest hurts nobody else if its device is lost.

No chain here has a whole request other than one that changes nothing.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.each_format import EachFormat
from vhostd.conformance.ring import CLOSED, DESCRIPTOR, Ring
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, skip
from vhostd.errors import RefusedRequest
from vhostd.ring.driver import INDIRECT, NEXT, WRITE
from vhostd.virtio.vocabulary import Feature

HOSTILE = Group("DRV", "Hostile drivers", "virtio")

WORKS = Needs(exchange=True)
TABLES = Needs(exchange=True, features=(Feature.INDIRECT_DESC,))
PACKED = Needs(exchange=True, features=(Feature.RING_PACKED,))

PAGE = 4096
MAX = 0xFFFF_FFFF_FFFF_FFFF
SEEDS = range(8)

Mischief = Callable[[Ring], None]
Forms = Sequence[tuple[str, Mischief]]


async def suffer(trial: Trial, forms: Forms, *, packed: bool | None = None) -> None:
    """Does each mischief to a ring that has worked, on a connection of its own, and expects to survive it."""
    for what, mischief in forms:
        frontend = await trial.negotiate(packed=packed)
        ring = await trial.ring(frontend, packed=packed)
        await ring.work()
        mischief(ring)
        await ring.hurt(what)
        await trial.survived(frontend, what)


# --- Descriptors and indices of a split ring --------------------------------------------------------------


def chained(*descriptors: tuple[int, int]) -> Mischief:
    """Makes the chain of descriptor 0 available; each has these flags and this next."""

    def write(ring: Ring) -> None:
        driver, addr = ring.queue.driver, ring.memory.allocate(PAGE)
        for at, (flags, following) in enumerate(descriptors):
            driver.descriptor(at, addr, 16, flags, following)
        driver.offer(0)
        driver.publish()

    return write


def headed(head: int) -> Mischief:
    """Makes a head available that may not be there."""

    def write(ring: Ring) -> None:
        ring.queue.driver.offer(head)
        ring.queue.driver.publish()

    return write


def jumping(step: int) -> Mischief:
    """Moves the available index by this much, with nothing behind it."""

    def write(ring: Ring) -> None:
        driver = ring.queue.driver
        driver.set_avail_index((driver.avail_index + step) % 65536)

    return write


@HOSTILE.must(1, "2.7.5.2", "Chains that never end cost the ring at most.", WORKS)
async def loops(trial: Trial) -> None:
    """Makes a chain available whose descriptor is its own next; and loops of two, of either direction."""
    forms = [
        ("a descriptor that is its own next", chained((NEXT, 0))),
        ("a loop of two descriptors", chained((NEXT, 1), (NEXT, 0))),
        ("a loop of two descriptors for the device to write", chained((NEXT | WRITE, 1), (NEXT | WRITE, 0))),
    ]
    await suffer(trial, forms, packed=False)


@HOSTILE.must(2, "2.7.5", "A next outside of the table costs the ring at most.", WORKS)
async def next_outside(trial: Trial) -> None:
    """Makes a chain available whose next is the queue size, and one with next 65535."""
    forms = [
        ("a next of the queue size", chained((NEXT, 64))),
        ("a next of 65535", chained((NEXT, 0xFFFF))),
    ]
    await suffer(trial, forms, packed=False)


@HOSTILE.must(3, "2.7.6", "A head outside of the table costs the ring at most.", WORKS)
async def head_outside(trial: Trial) -> None:
    """Makes the heads 64, of a ring with 64 descriptors, and 65535 available."""
    forms = [("a head of the queue size", headed(64)), ("a head of 65535", headed(0xFFFF))]
    await suffer(trial, forms, packed=False)


@HOSTILE.must(4, "2.7.6", "An available index that jumps costs the ring at most.", WORKS)
async def index_jumps(trial: Trial) -> None:
    """Moves the available index by the queue size and one more, by half of all, and back by one."""
    forms = [(f"an available index that moves by {step}", jumping(step)) for step in (65, 0x8000, -1)]
    await suffer(trial, forms, packed=False)


@HOSTILE.must(5, "2.7.6", "A head that is available twice costs the ring at most.", WORKS)
async def twice(trial: Trial) -> None:
    """Makes the same valid chain available as often as the ring has room, at once."""

    def repeat(ring: Ring) -> None:
        head = ring.post()
        for _ in range(ring.queue.size - 1):
            ring.queue.driver.offer(head)
        ring.queue.driver.publish(ring.queue.size - 1)

    await suffer(trial, [("one head in all places of the ring", repeat)], packed=False)


# --- Buffers --------------------------------------------------------------------------------------------


def buffer_at(addr: int | None, size: int | None = None) -> Mischief:
    """Puts the last buffer of a valid request elsewhere, or says that it has another size."""

    def offer(ring: Ring) -> None:
        *others, (place, length, writes) = ring.buffers()
        last = (place if addr is None else addr, length if size is None else size, writes)
        ring.queue.offer([*others, last])

    return offer


@HOSTILE.must(6, "2.7.5", "Buffers outside of the guest's memory cost the ring at most.", WORKS)
@EachFormat
async def buffers_nowhere(trial: Trial) -> None:
    """Puts a buffer of a valid request at address 0, where no memory is, at the end of all addresses, across
    the end of memory, and gives it 4 GiB less one byte.
    """
    end = 0x1000_0000 + (16 << 20)  # of the memory of a trial
    forms = [
        ("a buffer at address 0", buffer_at(0)),
        ("a buffer where no memory is", buffer_at(0x7000_0000_0000)),
        ("a buffer at the end of all addresses", buffer_at(MAX - 15, 32)),
        ("a buffer across the end of memory", buffer_at(end - 1, 64)),
        ("a buffer of 4 GiB", buffer_at(None, 0xFFFF_FFFF)),
    ]
    await suffer(trial, forms)


@HOSTILE.must(7, "2.7.5", "Buffers of no bytes cost the ring at most.", WORKS)
@EachFormat
async def empty_buffers(trial: Trial) -> None:
    """Makes chains available whose buffers have no bytes: one, all of a request, and a ring full."""

    def empty(*writes: bool) -> Mischief:
        def offer(ring: Ring) -> None:
            ring.queue.offer([(ring.memory.guest_addr, 0, each) for each in writes])

        return offer

    forms = [
        ("a buffer of no bytes to read", empty(False)),
        ("a buffer of no bytes to write", empty(True)),
        ("two buffers of no bytes", empty(False, True)),
        ("64 buffers of no bytes", empty(*[False] * 32, *[True] * 32)),
    ]
    await suffer(trial, forms)


@HOSTILE.must(8, "2.7.4.2", "Buffers to read behind buffers to write cost the ring at most.", WORKS)
@EachFormat
async def order_of_buffers(trial: Trial) -> None:
    """Makes a chain available whose first buffer is for the device to write, and whose second to read."""

    def turned(ring: Ring) -> None:
        place = ring.memory.allocate(PAGE)
        ring.queue.offer([(place, 16, True), (place + 64, 16, False), (place + 128, 16, True)])

    await suffer(trial, [("a buffer to read behind one to write", turned)])


@HOSTILE.must(9, "2.7.4.1", "A request that is cut anywhere costs the ring at most.", WORKS)
@EachFormat
async def cut_requests(trial: Trial) -> None:
    """Makes the beginnings of a valid request available, without room for an answer, with a byte of room, and
    room without a request.
    """
    exchange = trial.subject.exchange
    size = len(exchange.request) if exchange else 0

    def cut(length: int, room: int) -> Mischief:
        def offer(ring: Ring) -> None:
            place = ring.memory.allocate(PAGE)
            ring.memory.map.write(place, ring.exchange.request)
            parts = [(place, length, False), (place + PAGE // 2, room, True)]
            ring.queue.offer([part for part in parts if part[1]])

        return offer

    lengths = sorted({length for length in (1, size // 2, size - 1, size) if length > 0})
    forms = [
        (f"{length} bytes of a request with room for {room}", cut(length, room))
        for length in lengths
        for room in (0, 1)
    ]
    await suffer(trial, [*forms, ("a byte of room without a request", cut(0, 1))])


# --- Indirect tables ------------------------------------------------------------------------------------


def table_at(addr: int | None, size: int, flags: int = INDIRECT) -> Mischief:
    """Makes a table available, that of a valid request unless there is an address, of this size."""

    def offer(ring: Ring) -> None:
        where, _ = ring.table(ring.buffers())
        ring.offer_one(where if addr is None else addr, size, flags)

    return offer


def table_of(count: int, flags: int) -> Mischief:
    """Makes a table of so many descriptors available, each with these flags, and the first as next."""

    def offer(ring: Ring) -> None:
        place = ring.memory.allocate(PAGE)
        where = ring.memory.allocate(DESCRIPTOR.size * count)
        entry = (place, 16, 0, flags) if ring.is_packed else (place, 16, flags, 0)
        ring.memory.map.write(where, DESCRIPTOR.pack(*entry) * count)
        ring.offer_one(where, DESCRIPTOR.size * count, INDIRECT)

    return offer


@HOSTILE.must(10, "2.7.5.3.1", "An indirect table that cannot be right costs the ring at most.", TABLES)
@EachFormat
async def wrong_tables(trial: Trial) -> None:
    """Makes indirect tables available of no bytes, of sizes that are no multiple of 16, of 4 GiB, outside of
    memory, across its end, in a descriptor that has a next, within tables, and with loops.
    """
    end = 0x1000_0000 + (16 << 20)
    forms = [
        ("a table of no bytes", table_at(None, 0)),
        ("a table of 15 bytes", table_at(None, 15)),
        ("a table of 33 bytes", table_at(None, 33)),
        ("a table of 4 GiB", table_at(None, 0xFFFF_FFF0)),
        ("a table at address 0", table_at(0, 32)),
        ("a table where no memory is", table_at(0x7000_0000_0000, 32)),
        ("a table across the end of memory", table_at(end - 16, 32)),
        ("a table at the end of all addresses", table_at(MAX - 15, 32)),
        ("a table with a next", table_at(None, 32, INDIRECT | NEXT)),
        ("a table in a table", table_of(1, INDIRECT)),
        ("a table that loops", table_of(2, NEXT)),
        ("a table of 32768 descriptors", table_of(32768, WRITE)),
    ]
    await suffer(trial, forms)


# --- Packed rings ---------------------------------------------------------------------------------------


@HOSTILE.must(11, "2.8.6", "A packed chain that never ends costs the ring at most.", PACKED)
async def packed_without_end(trial: Trial) -> None:
    """Makes all descriptors of a packed ring available, each of which says that there is a next."""

    def endless(ring: Ring) -> None:
        place = ring.memory.allocate(PAGE)
        ring.queue.driver.offer([(place, 16, 0, NEXT)] * ring.queue.size)

    await suffer(trial, [("a packed ring full of descriptors with a next", endless)], packed=True)


@HOSTILE.must(12, "2.8.6", "An id that no chain may have costs the ring at most.", PACKED)
async def packed_ids(trial: Trial) -> None:
    """Makes valid chains available whose ids are the queue size and 65535, and two with the same id."""

    def named(*ids: int) -> Mischief:
        def offer(ring: Ring) -> None:
            for id in ids:
                buffers = ring.buffers()
                ring.queue.driver.offer(
                    [
                        (addr, size, id, (WRITE if writes else 0) | (NEXT if at < len(buffers) else 0))
                        for at, (addr, size, writes) in enumerate(buffers, 1)
                    ]
                )

        return offer

    forms = [("an id of the queue size", named(64)), ("an id of 65535", named(0xFFFF))]
    await suffer(trial, [*forms, ("two chains with the same id", named(7, 7))], packed=True)


# --- Noise ----------------------------------------------------------------------------------------------


def noise(seed: int) -> Mischief:
    """Fills all of the ring with what looks like descriptors of zeroed memory, in any order, and indices."""

    def write(ring: Ring) -> None:
        dice, driver = random.Random(seed), ring.queue.driver
        place = ring.memory.allocate(16 * PAGE, PAGE)
        for at in range(ring.queue.size):
            addr, size = place + dice.randrange(8 * PAGE), dice.choice((0, 1, 16, 64, PAGE, 0xFFFF_FFFF))
            flags, link = dice.randrange(8) | dice.choice((0, 0x80, 0x8000)), dice.randrange(80)
            fields = (link, flags) if ring.is_packed else (flags, link)
            driver.descriptor(at, addr, size, *fields)
        if not ring.is_packed:
            for _ in range(ring.queue.size):
                driver.offer(dice.randrange(80))
            driver.publish(ring.queue.size)

    return write


@HOSTILE.must(13, "2.7", "Noise in a ring costs the ring at most.", WORKS)
@EachFormat
async def noisy(trial: Trial) -> None:
    """Fills a ring with descriptors of any size, flags and next, the same at each run, and makes all of them
    available: eight times, each on a connection of its own.
    """
    await suffer(trial, [(f"noise number {seed} in a ring", noise(seed)) for seed in SEEDS])


# --- The rest of the device goes on -----------------------------------------------------------------------


def spoil(ring: Ring) -> None:
    """Breaks a ring beyond doubt: of a chain of the driver's, nothing lies in memory."""
    ring.queue.offer([(0x7000_0000_0000, 16, False), (0x7000_0000_0000, 16, True)])


@HOSTILE.should(14, "2.1.2", "A ring that was broken works again once it was set up anew.", WORKS)
@EachFormat
async def works_again(trial: Trial) -> None:
    """Makes a chain available that is nowhere, stops the ring, and starts another one in its place, as when a
    driver resets its device: a valid request is answered.
    """
    ring = await trial.ring()
    await ring.work()
    spoil(ring)
    await ring.noticed()
    try:
        with suppress(RefusedRequest):
            await ring.stop()
        await ring.move(64)
        await ring.work()
    except CLOSED:
        raise Failed("a broken ring closed the connection") from None


@HOSTILE.should(15, "2.1.2", "Other rings go on when one is broken.", WORKS)
@EachFormat
async def others_go_on(trial: Trial) -> None:
    """Makes a chain available that is nowhere, on another ring than that on which valid requests are then
    answered.
    """
    ring = await trial.ring()
    other = 0 if ring.queue.index else 1
    if trial.subject.queue_num <= other and len(ring.queues) <= other:
        skip("it has one ring only")
    if other < len(ring.queues):
        broken = Ring(ring.frontend, ring.memory, ring.queues, ring.exchange._replace(queue=other))
    else:
        queue = await trial.start(ring.frontend, ring.memory, other)
        broken = Ring(ring.frontend, ring.memory, [queue], ring.exchange._replace(queue=0))
    await ring.work()
    spoil(broken)
    await broken.noticed()
    try:
        await ring.work(2)
    except CLOSED:
        raise Failed("a broken ring closed the connection") from None
