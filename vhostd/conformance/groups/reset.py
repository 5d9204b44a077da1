"""A guest that begins anew, on the same connection.

**RESET_OWNER** is deprecated. Once some back-ends forgot the whole connection by it: memory, addresses and
protocol features. The specification recommends that it is ignored, or disables all rings. Both are accepted.

**A reboot.** Front-ends do not agree on how they tell of one. QEMU stops each ring by GET_VRING_BASE, and
sets features, memory and rings up again, with RESET_DEVICE or a status of 0 only where that was negotiated.
So a back-end has to work again after the stop alone.
"""

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.groups.rings import skip_network
from vhostd.conformance.trial import CLOSED, Ring, Trial
from vhostd.conformance.verdict import Failed, expect
from vhostd.frontend import Frontend
from vhostd.vhost_user.messages import (
    GET_VRING_BASE,
    RESET_DEVICE,
    RESET_OWNER,
    SET_FEATURES,
    SET_VRING_ENABLE,
    ProtocolFeature,
    VringState,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.rows import U64, Empty

RESET = Group("RST", "Resets")

WORKS = Needs(exchange=True)
WITH_RESET = Needs(protocol=(ProtocolFeature.RESET_DEVICE,), exchange=True)
WITH_BIT_30 = Needs(features=(Feature.PROTOCOL_FEATURES,), exchange=True)
OPTIONAL = mask(Feature.EVENT_IDX, Feature.INDIRECT_DESC)


@RESET.must(1, "Ring states", "A device works again after all its rings were stopped.", WORKS)
async def reboot(trial: Trial) -> None:
    """Has a ring work, stops all, and sets them up from the start on, in other places; three times."""
    ring = await trial.ring()
    for _ in range(3):
        await ring.work()
        await _stop(ring)
        ring = await trial.ring(ring.frontend, ring.memory)
    await ring.work()


@RESET.must(2, "SET_FEATURES", "Other features may be negotiated when all rings were stopped.", WORKS)
async def other_features(trial: Trial) -> None:
    """Stops all rings, sets features without EVENT_IDX and INDIRECT_DESC, and starts the rings."""
    ring = await trial.ring()
    await ring.work()
    await _stop(ring)
    ring = await _set_features(trial, ring, ring.frontend.features & ~OPTIONAL)
    await ring.work_by_interrupts(2)
    await _stop(ring)
    await (await _set_features(trial, ring, ring.frontend.features | trial.subject.features & OPTIONAL)).work(
        2
    )


@RESET.must(3, "SET_MEM_TABLE", "Other memory may be shared when all rings were stopped.", WORKS)
async def other_memory(trial: Trial) -> None:
    """Stops all rings, shares another memory at the same guest addresses, and starts the rings there."""
    ring = await trial.ring()
    await ring.work()
    await _stop(ring)
    memory = trial.memory()
    await ring.frontend.share(memory)
    await (await trial.ring(ring.frontend, memory)).work(2)


@RESET.should(4, "RESET_DEVICE", "All rings are disabled.", WITH_RESET)
async def reset_disables(trial: Trial) -> None:
    """Sends RESET_DEVICE, then a request, a kick, and GET_VRING_BASE: the request was not answered."""
    skip_network(trial)
    ring = await trial.ring()
    await ring.work()
    await ring.frontend.call(RESET_DEVICE, Empty())
    ring.post()
    ring.queue.kick()
    for _ in range(2):  # until whoever has noticed the kick has done something
        await trial.answers(ring.frontend, "RESET_DEVICE closed the connection")
    await _stop(ring)
    expect(ring.queue.poll() is None, "a request was answered after RESET_DEVICE")


@RESET.must(5, "RESET_DEVICE", "The device may be initialized again.", WITH_RESET)
async def reset_and_again(trial: Trial) -> None:
    """Sends RESET_DEVICE while rings run, then sets features, memory and rings up again."""
    ring = await trial.ring()
    await ring.work()
    await ring.frontend.call(RESET_DEVICE, Empty())
    await _stop(ring)
    await ring.frontend.call(SET_FEATURES, U64(ring.frontend.features))
    memory = trial.memory()
    await ring.frontend.share(memory)
    await (await trial.ring(ring.frontend, memory)).work(2)


@RESET.must(6, "RESET_DEVICE", "It does no harm before anything was set up.", WITH_RESET)
async def reset_at_first(trial: Trial) -> None:
    """Sends RESET_DEVICE right after the negotiation, twice; then rings are set up, and work."""
    frontend = await trial.negotiate()
    for _ in range(2):
        await frontend.call(RESET_DEVICE, Empty())
    await frontend.call(SET_FEATURES, U64(frontend.features))
    await (await trial.ring(frontend)).work()


@RESET.should(7, "RESET_OWNER", "It does not end the connection.")
async def reset_owner(trial: Trial) -> None:
    """Sends RESET_OWNER, and then GET_FEATURES."""
    frontend = await trial.negotiate()
    await frontend.tell(RESET_OWNER, Empty())
    await trial.answers(frontend, "RESET_OWNER closed the connection")


@RESET.should(8, "RESET_OWNER", "It discards neither memory nor rings.", WITH_BIT_30)
async def owner_discards_nothing(trial: Trial) -> None:
    """Sends RESET_OWNER while rings run, and enables them: they go on where they were."""
    ring = await trial.ring()
    await ring.work()
    await ring.frontend.tell(RESET_OWNER, Empty())
    try:
        for queue in ring.queues:
            await ring.frontend.call(SET_VRING_ENABLE, VringState(queue.index, 1))
        await ring.work(2)
    except CLOSED:
        raise Failed("RESET_OWNER closed the connection") from None


async def _stop(ring: Ring) -> None:
    """Stops all its rings, as a front-end does when the guest reboots."""
    for queue in ring.queues:
        await ring.frontend.call(GET_VRING_BASE, VringState(queue.index, 0))


async def _set_features(trial: Trial, ring: Ring, features: int) -> Ring:
    frontend: Frontend = ring.frontend
    frontend.features = features
    await frontend.call(SET_FEATURES, U64(features))
    return await trial.ring(frontend, ring.memory)
