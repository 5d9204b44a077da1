"""The data plane of a source of entropy (virtio 1.3, 5.4)."""

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import expect
from vhostd.frontend import Queue

RNG = Group("RNG", "Entropy device", "virtio 1.3, 5.4")

IS_RNG = Needs(kinds=("rng",))
SIZE = 64  # bytes: two of this size are never equal by chance


async def requestq(trial: Trial) -> Queue:
    """The running requestq."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    return await trial.start(frontend, memory)


@RNG.must(1, "5.4.6.2", "A buffer comes back with at least one byte.", IS_RNG)
async def one_byte(trial: Trial) -> None:
    """Offers buffers of 1, 64 and 4096 bytes: each comes back with something in it."""
    queue = await requestq(trial)
    for size in (1, SIZE, 4096):
        expect(await queue.request(room=size), f"a buffer of {size} bytes came back empty")


@RNG.must(2, "5.4.6", "The bytes differ each time.", IS_RNG)
async def they_differ(trial: Trial) -> None:
    """Takes 64 bytes 16 times, on one connection: all are different, and none is all zeroes."""
    queue = await requestq(trial)
    taken = [await queue.request(room=SIZE) for _ in range(16)]
    whole = [data for data in taken if len(data) == SIZE]
    expect(len(set(whole)) == len(whole), "the same bytes came twice")
    expect(bytes(SIZE) not in whole, "64 zeroes came")


@RNG.should(3, "5.4.6.2", "A small buffer is filled whole.", IS_RNG)
async def filled(trial: Trial) -> None:
    """Offers a buffer of 64 bytes; Linux asks for 64 bytes at a time."""
    written = len(await (await requestq(trial)).request(room=SIZE))
    expect(written == SIZE, f"{written} of {SIZE} bytes were filled")


@RNG.must(4, "2.7.4", "A chain of several buffers is one request.", IS_RNG)
async def several_buffers(trial: Trial) -> None:
    """Offers a chain of three buffers: it comes back once, filled from its start on."""
    queue = await requestq(trial)
    places = [(queue.memory.allocate(SIZE), SIZE, True) for _ in range(3)]
    for addr, size, _ in places:
        queue.memory.map.write(addr, bytes(size))
    head = queue.offer(places)
    queue.kick()
    used, data = await queue.used()
    expect(used == head, f"the used id is {used}, not {head}")
    expect(data and any(data[:SIZE]), "the first buffer is empty")


@RNG.must(5, "5.4.6.1", "A buffer that the device may not write costs the ring at most.", IS_RNG)
async def nothing_to_write(trial: Trial) -> None:
    """Offers a chain that the device can only read; afterwards a new front-end is served."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    queue = await trial.start(frontend, memory)
    queue.add(bytes(SIZE))
    queue.kick()
    await trial.provoke(frontend, queue)
