"""What goes over rings of either format, how large a ring may be, and where it may lie: the rest of RINGS."""

from vhostd.conformance.check import Needs
from vhostd.conformance.each_format import EachFormat
from vhostd.conformance.groups.rings import RINGS, SMALL_MEMORY, WORKS, content
from vhostd.conformance.ring import Ring
from vhostd.conformance.trial import CLOSED, MEMORY_SIZE, Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.errors import RefusedRequest
from vhostd.ring.driver import INDIRECT, WRITE
from vhostd.vhost_user.messages import (
    SET_VRING_ADDR,
    SET_VRING_ENABLE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    ProtocolFeature,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import MAX_QUEUE_SIZE, Feature

__all__ = ["RINGS"]

REFUSES = Needs(exchange=True, features=(Feature.PROTOCOL_FEATURES,), protocol=(ProtocolFeature.REPLY_ACK,))
TABLES = Needs(exchange=True, features=(Feature.INDIRECT_DESC,))
BATCH = 32
PATTERNS = (0x00, 0xFF, 0x55, 0xAA)


# --- Requests -----------------------------------------------------------------------------------------------


@RINGS.must(
    21, "virtio 2.7.13", "Many chains can be made available with one kick, a whole ring of them.", WORKS
)
@EachFormat
async def full_ring(trial: Trial) -> None:
    """Fills the ring with requests and kicks once, three times: each is used exactly once."""
    ring = await trial.ring()
    for _ in range(3):
        count = 0
        while ring.queue.driver.free >= ring.descriptors:
            ring.post()
            count += 1
        ring.kick()
        for _ in range(count):
            await ring.seen()
        expect(ring.queue.poll() is None, f"it has used more than the {count} chains that it had")


@RINGS.must(22, "virtio 2.7", "A ring is circular.", WORKS)
@EachFormat
async def circular(trial: Trial) -> None:
    """Sends 40 requests over a ring of 16 descriptors."""
    await (await trial.ring(size=16)).work(40)


@RINGS.must(23, "virtio 2.7.4.1", "No arrangement of descriptors is assumed.", WORKS)
@EachFormat
async def pieces(trial: Trial) -> None:
    """Sends a request whose readable and writable parts are cut in three each, in memory that is apart; with
    INDIRECT_DESC then once more, in a table.
    """
    ring = await trial.ring()
    tables = [None, ring.memory.allocate(16 * 6)] if trial.subject.has(Feature.INDIRECT_DESC) else [None]
    for table in tables:
        ring.queue.offer(ring.in_pieces(3), indirect=table)
        ring.queue.kick()
        await ring.seen()


@RINGS.should(24, "virtio 2.7.4.1", "A descriptor may have a single byte.", WORKS)
@EachFormat
async def single_bytes(trial: Trial) -> None:
    """Sends a request whose readable part, up to 32 bytes, has a descriptor for each byte; and, in a chain of
    its own, so for the room.
    """
    ring = await trial.ring()
    request, room = len(ring.exchange.request), ring.exchange.room
    for sizes in ((-(-request // BATCH), room), (request, -(-room // BATCH))):
        ring.queue.offer(ring.buffers(*(max(size, 1) for size in sizes)))
        ring.queue.kick()
        await ring.seen()


@RINGS.must(25, "virtio 2.7.5.3", "With INDIRECT_DESC the descriptors may be in a table.", TABLES)
@EachFormat
async def indirect(trial: Trial) -> None:
    """Sends three requests, each of which has its descriptors in a table."""
    ring = await trial.ring()
    for _ in range(3):
        buffers = ring.buffers()
        ring.queue.offer(buffers, indirect=ring.memory.allocate(16 * len(buffers)))
        ring.queue.kick()
        await ring.seen()


@RINGS.must(
    26, "virtio 2.7.5.3.2", "The write flag of a descriptor that refers to a table is ignored.", TABLES
)
@EachFormat
async def writable_table(trial: Trial) -> None:
    """Sends a request in a table, and sets WRITE beside INDIRECT."""
    ring = await trial.ring()
    buffers = ring.buffers()
    table, size = ring.table(buffers)
    ring.offer_one(table, size, INDIRECT | WRITE)
    await ring.expect_used(0, buffers)


@RINGS.must(27, "virtio 2.7.5.2", "The device writes nothing but what is its to write.", WORKS)
@EachFormat
async def writes(trial: Trial) -> None:
    """Sends a request, and compares all of the memory with what it was: only the writable buffers and the
    used ring have changed; of a packed ring one descriptor for the chain, and the device's event suppression.
    """
    frontend = await trial.negotiate()
    memory = trial.memory(SMALL_MEMORY)
    await frontend.share(memory)
    ring = await trial.ring(frontend, memory)
    buffers = ring.buffers()
    allowed = [(addr, size) for addr, size, is_writable in buffers if is_writable] + ring.device_areas
    ring.queue.offer(buffers)
    before = bytearray(content(ring))
    ring.queue.kick()
    await ring.seen()
    await ring.stop()
    after = content(ring)
    for addr, size in allowed:
        at = addr - memory.guest_addr
        before[at : at + size] = after[at : at + size]
    if before != after:
        at = next(at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new)
        raise Failed(f"it has changed {ring.name_of(memory.guest_addr + at)}")


@RINGS.should(
    28, "virtio 2.7.8.2", "As many bytes were written as the used length says, from the first.", WORKS
)
@EachFormat
async def written(trial: Trial) -> None:
    """Sends a request four times, each time into memory with another pattern: no byte that counts as written
    keeps them all.
    """
    ring = await trial.ring()
    if not (room := ring.exchange.room):
        skip("its request has no room for an answer")
    kept = set(range(room))
    for pattern in PATTERNS:
        buffers = ring.buffers()
        for addr, size, writes in buffers:
            if writes:
                ring.memory.map.write(addr, bytes([pattern]) * size)
        ring.queue.offer(buffers)
        ring.queue.kick()
        answer = await ring.seen()
        kept &= {at for at, byte in enumerate(answer) if byte == pattern}
    expect(not kept, f"byte {min(kept, default=0)} was not written, and the used length says that it was")


# --- Sizes and addresses ------------------------------------------------------------------------------------


@RINGS.should(29, "SET_VRING_NUM", "A ring may have 1024 descriptors.", WORKS)
@EachFormat
async def large(trial: Trial) -> None:
    """Serves requests on a ring of 1024 descriptors, the most that QEMU gives."""
    await (await trial.ring(size=1024)).work(3)


@RINGS.advice(30, "virtio 2.7", "A ring may have 32768 descriptors.", WORKS)
@EachFormat
async def largest(trial: Trial) -> None:
    """Serves requests on a ring of the largest size of all."""
    await (await trial.ring(size=MAX_QUEUE_SIZE)).work(3)


@RINGS.should(31, "virtio 2.7", "A ring may be as small as its requests.", WORKS)
@EachFormat
async def smallest(trial: Trial) -> None:
    """Serves 10 requests on a ring that has just the descriptors for one, or the next power of two."""
    exchange = trial.subject.exchange
    assert exchange is not None
    await (await trial.ring(size=1 << (exchange.descriptors - 1).bit_length())).work(10)


@RINGS.should(32, "SET_VRING_NUM", "A size that no ring has is refused.", REFUSES)
@EachFormat
async def no_size(trial: Trial) -> None:
    """Starts a ring of no descriptors, and one of 65536: some request of its set-up is refused."""
    for size in (0, 2 * MAX_QUEUE_SIZE):
        ring = await trial.ring(started=False)
        await expect_refusal(ring, size, ring.frontend.address(ring.queue), f"a ring of {size} descriptors")
        if trial.subject.is_one_shot:
            return


@RINGS.should(33, "SET_VRING_KICK", "A ring of which nothing is known is not started.", REFUSES)
@EachFormat
async def nothing_known(trial: Trial) -> None:
    """Sends SET_VRING_KICK for a ring without size and addresses."""
    ring = await trial.ring(started=False)
    await trial.refused(
        ring.frontend,
        SET_VRING_KICK,
        VringFd(ring.queue.index),
        ring.queue.kick_fd,
        reason="a ring without addresses was started",
    )


@RINGS.should(34, "virtio 2.7", "A ring that is not aligned is refused.", REFUSES)
@EachFormat
async def not_aligned(trial: Trial) -> None:
    """Starts rings one part of which is not aligned as it must: some request of its set-up is refused."""
    for part, shift in (("desc", 8), ("avail", 1), ("used", 2)):
        ring = await trial.ring(started=False)
        address = ring.frontend.address(ring.queue)
        address = moved(address, part, getattr(address, part) + shift)
        await expect_refusal(ring, ring.queue.size, address, f"a ring whose {part} is not aligned")
        if trial.subject.is_one_shot:
            return


@RINGS.should(35, "SET_VRING_ADDR", "A ring that does not lie in the guest's memory is refused.", REFUSES)
@EachFormat
async def outside(trial: Trial) -> None:
    """Starts rings one part of which ends behind the memory, or is nowhere: some request of its set-up is
    refused.
    """
    for part in ("desc", "avail", "used"):
        for far in (False, True):
            ring = await trial.ring(started=False)
            edge = MEMORY_SIZE - (0 if ring.is_packed and part != "desc" else 16)
            address = ring.frontend.address(ring.queue)
            begin = address.desc - (ring.queue.driver.desc_addr - ring.memory.guest_addr)
            address = moved(address, part, begin + (MEMORY_SIZE << 8 if far else edge))
            await expect_refusal(ring, ring.queue.size, address, f"a ring whose {part} is outside the memory")
            if trial.subject.is_one_shot:
                return


async def expect_refusal(ring: Ring, size: int, address: VringAddr, what: str) -> None:
    """Expects that a ring cannot be set up like that, started and enabled; and ends the connection."""
    frontend, queue = ring.frontend, ring.queue
    try:
        await frontend.call(SET_VRING_NUM, VringState(queue.index, size))
        await frontend.call(SET_VRING_ADDR, address)
        await frontend.call(SET_VRING_KICK, VringFd(queue.index), queue.kick_fd)
        await frontend.call(SET_VRING_ENABLE, VringState(queue.index, 1))
    except (RefusedRequest, *CLOSED):
        frontend.close()
        return
    raise Failed(f"{what} was accepted")


def moved(address: VringAddr, part: str, to: int) -> VringAddr:
    """The address of a ring one part of which is somewhere else."""
    return VringAddr(**(vars(address) | {part: to}))
