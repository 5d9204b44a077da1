"""What belongs to split rings alone (virtio 1.3, 2.7).

**How long a chain may be** is for drivers to keep to, and is not checked.

**A base other than 0** is that of a ring that was stopped, whose avail_event the device has left there. So
the checks write one, too.

**IN_ORDER.** A device may use a whole batch of chains with one element, which has the head of the last, and
lies where that of the first would be. So the heads that are found on the way must be in order, and the last
must be there.
"""

from collections.abc import Sequence

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.groups.ring_requests import expect_refusal
from vhostd.conformance.ring import Buffer, Ring
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import expect
from vhostd.ring.driver import INDIRECT, NEXT, WRITE
from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.virtio.vocabulary import Feature, mask

SPLIT = Group("SPLIT", "Split rings", "virtio 1.3, 2.7")

WORKS = Needs(exchange=True)
TABLES = Needs(exchange=True, features=(Feature.INDIRECT_DESC,))
ORDERED = Needs(exchange=True, features=(Feature.IN_ORDER,))
BATCH = 8
TABLE_ORDER = (0, 5, 3, 0)


@SPLIT.must(1, "2.7.6", "A ring may begin at any index, where the device goes on.", WORKS)
async def base(trial: Trial) -> None:
    """Starts a ring at index 1000, sends three requests, and stops it: it has stopped at 1003."""
    ring = await _resumed(trial, 1000)
    await ring.work(3)
    reached = await ring.stop()
    expect(reached == 1003, f"it began at 1000 and has stopped at {reached} after 3 requests, not at 1003")


@SPLIT.must(2, "2.7.13.3", "The indices wrap at 65536.", WORKS)
async def indices_wrap(trial: Trial) -> None:
    """Starts a ring at index 65530, sends twelve requests, and stops it: it has stopped at 6."""
    ring = await _resumed(trial, 65530)
    await ring.work(12)
    reached = await ring.stop()
    expect(reached == 6, f"it began at 65530 and has stopped at {reached} after 12 requests, not at 6")


@SPLIT.must(3, "2.7.8", "A chain may lie in any descriptors; it comes back by its head.", WORKS)
async def any_descriptors(trial: Trial) -> None:
    """Sends requests in chains that begin at descriptor 37 and at the last one, and go on elsewhere."""
    ring = await trial.ring(packed=False)
    for slots in ((37, 2, 61), (63, 0, 31)):
        buffers = ring.buffers()
        _lay(ring, buffers, slots)
        _offer(ring, slots[0])
        await ring.expect_used(slots[0], buffers)


@SPLIT.must(4, "2.7.5", "A next that has no NEXT flag means nothing.", WORKS)
async def no_next(trial: Trial) -> None:
    """Sends a request whose last descriptor has next 0xffff."""
    ring = await trial.ring(packed=False)
    buffers = ring.buffers()
    _lay(ring, buffers, range(len(buffers)), end=0xFFFF)
    _offer(ring, 0)
    await ring.expect_used(0, buffers)


@SPLIT.must(5, "2.7.6", "Chains can be made available in any order, several at once.", WORKS)
async def any_order(trial: Trial) -> None:
    """Makes chains with the heads 40, 2 and 20 available with one step of the index: all come back."""
    ring = await trial.ring(packed=False)
    heads = (40, 2, 20)
    for head in heads:
        buffers = ring.buffers()
        _lay(ring, buffers, range(head, head + len(buffers)))
    _offer(ring, *heads)
    found = [(await ring.used())[0] for _ in heads]
    expect(sorted(found) == sorted(heads), f"the heads {heads} were made available, and {found} were used")


@SPLIT.must(6, "2.7.6", "Only what lies before the available index was made available.", WORKS)
async def not_yet(trial: Trial) -> None:
    """Puts two heads into the ring, and lets the index make one step: when the ring is stopped, one is used.
    Then the other is made available, and is used.
    """
    ring = await trial.ring(packed=False)
    driver = ring.queue.driver
    for head in (8, 24):
        buffers = ring.buffers()
        _lay(ring, buffers, range(head, head + len(buffers)))
        driver.offer(head)
    driver.publish()
    ring.kick()
    expect((await ring.used())[0] == 8, "another head than the one that was made available was used")
    await ring.tempt()
    reached = await ring.stop()
    expect((reached, driver.used_index) == (1, 1), f"it has stopped at {reached}, and 1 chain was available")
    await ring.start(base=reached)
    driver.publish()
    ring.kick()
    expect((await ring.used())[0] == 24, "another head than the one that was made available was used")


@SPLIT.should(7, "2.7.5.3.2", "A table may come behind descriptors in the ring.", TABLES)
async def direct_and_indirect(trial: Trial) -> None:
    """Sends a request whose first buffer has a descriptor in the ring, which is followed by one that refers
    to a table of all others.
    """
    ring = await trial.ring(packed=False)
    driver = ring.queue.driver
    (addr, size, writes), *rest = buffers = ring.in_pieces(2)
    table, length = ring.table(rest)
    driver.descriptor(3, addr, size, NEXT | (WRITE if writes else 0), 9)
    driver.descriptor(9, table, length, INDIRECT, 0)
    _offer(ring, 3)
    await ring.expect_used(3, buffers)


@SPLIT.must(8, "2.7.5.3", "The descriptors of a table are chained by next.", TABLES)
async def table_in_any_order(trial: Trial) -> None:
    """Sends a request in a table of six descriptors, of which it takes the first, the last and the fourth."""
    ring = await trial.ring(packed=False)
    buffers = ring.buffers()
    entries, last = [(0, 0, 0, 0)] * 6, len(buffers) - 1
    for at, (addr, size, writes) in enumerate(buffers):
        flags = (WRITE if writes else 0) | (NEXT if at < last else 0)
        entries[TABLE_ORDER[at]] = (addr, size, flags, TABLE_ORDER[at + 1])
    table, length = ring.put_table(entries)
    ring.offer_one(table, length, INDIRECT)
    await ring.expect_used(0, buffers)


@SPLIT.should(
    9,
    "2.7",
    "A size that is no power of two is refused.",
    WORKS._replace(features=(Feature.PROTOCOL_FEATURES,), protocol=(ProtocolFeature.REPLY_ACK,)),
)
async def no_power_of_two(trial: Trial) -> None:
    """Starts a ring of 48 descriptors: some request of its set-up is refused."""
    ring = await trial.ring(packed=False, started=False)
    await expect_refusal(ring, 48, ring.frontend.address(ring.queue), "a ring of 48 descriptors")


@SPLIT.must(10, "2.7.9", "With IN_ORDER chains are used in the order in which they came.", ORDERED)
async def in_order(trial: Trial) -> None:
    """Makes 8 requests available with one kick; the heads in the used ring are in their order."""
    frontend = await trial.negotiate(
        features=~mask(Feature.LOG_ALL, Feature.ACCESS_PLATFORM, Feature.RING_PACKED)
    )
    ring = await trial.ring(frontend, packed=False)
    heads = [ring.post() for _ in range(BATCH)]
    ring.kick()
    driver = ring.queue.driver
    await ring.until(lambda: driver.used_index == BATCH or None)
    at = 0
    while at < BATCH:
        where = driver.used_addr + 4 + 8 * at
        head = int.from_bytes(ring.memory.map.read(where, 4), "little")
        expect(head in heads[at:], f"used element {at} has head {head}, and the next are {heads[at:]}")
        at = heads.index(head) + 1


async def _resumed(trial: Trial, base: int) -> Ring:
    """A ring that begins at `base`, as if a device had stopped there that wants a kick for more."""
    ring = await trial.ring(packed=False, base=base, started=False)
    driver = ring.queue.driver
    ring.memory.map.write(driver.used_addr + 4 + 8 * driver.size, base.to_bytes(2, "little"))
    await ring.start()
    return ring


def _lay(ring: Ring, buffers: Sequence[Buffer], slots: Sequence[int], end: int = 0) -> None:
    """Puts buffers into these descriptors, chained by next; that of the last one is `end`."""
    last = len(buffers) - 1
    for at, (addr, size, writes) in enumerate(buffers):
        flags = (WRITE if writes else 0) | (NEXT if at < last else 0)
        ring.queue.driver.descriptor(slots[at], addr, size, flags, slots[at + 1] if at < last else end)


def _offer(ring: Ring, *heads: int) -> None:
    """Makes these chains available at once, and kicks."""
    for head in heads:
        ring.queue.driver.offer(head)
    ring.queue.driver.publish(len(heads))
    ring.queue.kick()
