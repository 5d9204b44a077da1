"""What belongs to packed rings alone (virtio 1.3, 2.8).

**Buffer ids.** The specification has no bound for them. Here they are below the queue size, as Linux' are:
devices keep a table of them.

**The write flag of a used descriptor** says whether anything was written. Drivers that are in use do not look
at it.

**IN_ORDER.** As for split rings: a used descriptor may stand for a whole batch.
"""

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.ring import Ring
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import expect
from vhostd.ring.driver import INDIRECT, NEXT, WRITE
from vhostd.virtio.vocabulary import Feature, mask

PACKED = Group("PACKED", "Packed rings", "virtio 1.3, 2.8")

WORKS = Needs(exchange=True, features=(Feature.RING_PACKED,))
TABLES = Needs(exchange=True, features=(Feature.RING_PACKED, Feature.INDIRECT_DESC))
ORDERED = Needs(exchange=True, features=(Feature.RING_PACKED, Feature.IN_ORDER))
AVAIL, USED = 0x80, 0x8000  # the flags that say whose a descriptor is
BATCH = 8


@PACKED.must(1, "2.8.1", "A ring may begin at any descriptor, with either wrap counter.", WORKS)
async def base(trial: Trial) -> None:
    """Starts a ring at descriptor 5 with both wrap counters 0, sends three requests, and stops it: it has
    stopped behind them, with the same wrap counters.
    """
    ring = await trial.ring(packed=True, base=0x0005_0005)
    await ring.work(3)
    reached = await ring.stop()
    expect(
        reached == ring.reached, f"it has stopped at {ring.spell(reached)}, not at {ring.spell(ring.reached)}"
    )


@PACKED.must(2, "2.8.10.1", "A size need not be a power of two.", WORKS)
async def any_size(trial: Trial) -> None:
    """Serves requests on rings of 5 and of 100 descriptors, many times around."""
    for size in (5, 100):
        ring = await trial.ring(packed=True, size=size)
        await ring.work(4 * size)
        ring.frontend.close()
        if trial.subject.is_one_shot:
            return


@PACKED.must(3, "2.8.6", "A chain may go on at the begin of the ring.", WORKS)
async def around_the_end(trial: Trial) -> None:
    """Sends ten requests, in chains of two descriptors for each part, over a ring of 7 descriptors."""
    ring = await trial.ring(packed=True, size=7)
    for _ in range(10):
        ring.queue.offer(ring.in_pieces(2))
        ring.queue.kick()
        await ring.seen()


@PACKED.must(4, "2.8.6", "The id of a chain is that in its last descriptor.", WORKS)
async def id_in_the_last(trial: Trial) -> None:
    """Sends a request in a chain whose descriptors have the ids 3, and 9 in the last: 9 is used."""
    ring = await trial.ring(packed=True)
    _offer(ring, 9, others=3)
    _, _, id, _ = await _used(ring, 0)
    expect(id == 9, f"the chain was used by the id {id}")


@PACKED.must(
    5, "2.8.6", "A chain comes back by one used descriptor, behind those of the chains before.", WORKS
)
async def one_for_each(trial: Trial) -> None:
    """Makes three chains with the ids 63, 0 and 40 available at once: each id is found in the slot of a
    chain's first descriptor, and no other slot is changed.
    """
    ring = await trial.ring(packed=True)
    size = 0
    for id in (63, 0, 40):
        size = _offer(ring, id, kick=False)
    others = [at for at in range(3 * size) if at % size]
    before = [ring.slot(at) for at in others]
    ring.kick()
    found = [(await _used(ring, at * size))[2] for at in range(3)]
    expect(
        sorted(found) == [0, 40, 63], f"the chains 63, 0 and 40 were made available, and {found} were used"
    )
    after = [ring.slot(at) for at in others]
    changed = [at for at, old, new in zip(others, before, after, strict=True) if old != new]
    expect(not changed, f"descriptor {changed[:1]} was changed, in the middle of a chain")


@PACKED.should(6, "2.8.3", "A used descriptor tells by its write flag whether anything was written.", WORKS)
async def write_flag(trial: Trial) -> None:
    """Sends a request and looks at the flags of the used descriptor."""
    ring = await trial.ring(packed=True)
    _offer(ring, 0)
    _, written, _, flags = await _used(ring, 0)
    room = ring.exchange.room
    expect(bool(flags & WRITE) == bool(room), f"with room for {room} bytes, its flags are {flags:#x}")
    expect(not room or written, "no bytes count as written")


@PACKED.must(7, "2.8.1", "A descriptor that was not made available is not used.", WORKS)
async def not_available(trial: Trial) -> None:
    """Puts a request's descriptor into the ring with each of the marks that do not make it available, and
    kicks: it stays as it is. Then it is made available, and used.
    """
    ring = await trial.ring(packed=True)
    addr, size, writes = ring.buffers()[0]
    for marks in (0, USED, AVAIL | USED):
        ring.queue.driver.descriptor(0, addr, size, 0, marks | (WRITE if writes else 0))
        before = ring.slot(0)
        await ring.tempt()
        expect(ring.slot(0) == before, f"a descriptor with the flags {before[3]:#x} was used")
    _offer(ring, 0)
    await _used(ring, 0)


@PACKED.should(8, "2.8.7", "In a table no flag but WRITE counts, and no id.", TABLES)
async def flags_in_a_table(trial: Trial) -> None:
    """Sends a request in a table whose descriptors have other flags, and ids, too."""
    ring = await trial.ring(packed=True)
    buffers = ring.in_pieces(2)
    noise = NEXT | AVAIL | USED
    table, size = ring.put_table(
        [(addr, size, 0xABCD, noise | (WRITE if writes else 0)) for addr, size, writes in buffers]
    )
    ring.offer_one(table, size, INDIRECT)
    await ring.expect_used(0, buffers)


@PACKED.must(9, "2.8.8", "With IN_ORDER chains are used in the order in which they came.", ORDERED)
async def in_order(trial: Trial) -> None:
    """Makes 8 requests available with one kick; the ids that are used are in their order."""
    frontend = await trial.negotiate(features=~mask(Feature.LOG_ALL, Feature.ACCESS_PLATFORM), packed=True)
    ring = await trial.ring(frontend, packed=True)
    ids, size = list(range(BATCH)), 0
    for id in ids:
        size = _offer(ring, id, kick=False)
    ring.kick()
    at = 0
    while at < BATCH:
        _, _, id, _ = await _used(ring, at * size)
        expect(id in ids[at:], f"used descriptor {at * size} has id {id}, and the next are {ids[at:]}")
        at = id + 1


def _offer(ring: Ring, id: int, *, others: int = 0, kick: bool = True) -> int:
    """Makes a request available, in a chain with this id, and others in all but its last descriptor.

    Returns how many descriptors it has.
    """
    buffers = ring.in_pieces(2)
    last = len(buffers) - 1
    ring.queue.driver.offer(
        [
            (addr, size, others if at < last else id, (WRITE if writes else 0) | (NEXT if at < last else 0))
            for at, (addr, size, writes) in enumerate(buffers)
        ]
    )
    if kick:
        ring.kick()
    return len(buffers)


async def _used(ring: Ring, at: int) -> tuple[int, int, int, int]:
    """A descriptor of the ring's first round, when it is marked as used."""
    return await ring.until(lambda: found if (found := ring.slot(at))[3] & USED else None)
