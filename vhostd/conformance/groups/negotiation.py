"""Features, and who may use what from when on.

**REPLY_ACK and bit 30.** The specification says that protocol features may be asked for once
VHOST_USER_F_PROTOCOL_FEATURES was *offered* by GET_FEATURES, and that a front-end may use them before it
has sent SET_FEATURES. Some back-ends waited until SET_FEATURES had acked the bit. It was settled in 2021,
on both projects' lists: the bit in GET_FEATURES is enough, and SET_FEATURES has a say only about how
rings start. A front-end asks for acks as soon as it has set REPLY_ACK.
"""

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import CLOSED, Trial
from vhostd.conformance.verdict import Failed, expect
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    SET_FEATURES,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    ProtocolFeature,
)
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.framing import NEED_REPLY, VERSION
from vhostd.wire.rows import U64, Empty

NEGOTIATION = Group("NEG", "Negotiation")

WITH_BIT_30 = Needs(features=(Feature.PROTOCOL_FEATURES,))
WITH_ACKS = Needs(features=(Feature.PROTOCOL_FEATURES,), protocol=(ProtocolFeature.REPLY_ACK,))


@NEGOTIATION.must(1, "GET_FEATURES", "A back-end tells its features, any number of times.")
async def features_are_told(trial: Trial) -> None:
    """Sends GET_FEATURES three times on one connection, and once more on another: the masks are the same."""
    first = await trial.connect()
    masks = {(await first.call(GET_FEATURES, Empty())).value for _ in range(3)}
    first.close()
    if trial.subject.is_one_shot:
        return expect(len(masks) == 1, f"the masks differ: {', '.join(map(hex, masks))}")
    masks.add((await (await trial.connect()).call(GET_FEATURES, Empty())).value)
    expect(len(masks) == 1, f"the masks differ: {', '.join(map(hex, masks))}")


@NEGOTIATION.should(2, "virtio 6", "A device offers VIRTIO_F_VERSION_1.")
async def version_1_is_offered(trial: Trial) -> None:
    """Looks for bit 32 in the answer to GET_FEATURES."""
    expect(
        trial.subject.has(Feature.VERSION_1), "VERSION_1 is not offered: a modern driver refuses the device"
    )


@NEGOTIATION.must(
    3,
    "GET_PROTOCOL_FEATURES",
    "Protocol features may be asked for as soon as bit 30 was offered.",
    WITH_BIT_30,
)
async def protocol_features_come_first(trial: Trial) -> None:
    """Sends GET_PROTOCOL_FEATURES, and SET_PROTOCOL_FEATURES of all, before SET_OWNER and SET_FEATURES."""
    frontend = await trial.connect()
    await frontend.call(GET_FEATURES, Empty())
    offered = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
    await frontend.tell(SET_PROTOCOL_FEATURES, U64(offered & mask(ProtocolFeature.REPLY_ACK)))
    await trial.answers(frontend, "SET_PROTOCOL_FEATURES before SET_FEATURES closed the connection")


@NEGOTIATION.must(
    4,
    "VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "Once REPLY_ACK is set, a request that asks for an ack gets one.",
    WITH_ACKS,
)
async def acks_come_at_once(trial: Trial) -> None:
    """Sets REPLY_ACK, and asks for an ack of SET_OWNER before SET_FEATURES was ever sent."""
    frontend = await trial.connect()
    await frontend.call(GET_FEATURES, Empty())
    await frontend.call(GET_PROTOCOL_FEATURES, Empty())
    await frontend.call(SET_PROTOCOL_FEATURES, U64(mask(ProtocolFeature.REPLY_ACK)))
    frontend.protocol_features = mask(ProtocolFeature.REPLY_ACK)
    try:
        await frontend.call(SET_OWNER, Empty())
    except TimeoutError:
        raise Failed("SET_OWNER got no ack, though REPLY_ACK was set before") from None


@NEGOTIATION.should(
    5,
    "VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "A request that asks for an ack gets none before REPLY_ACK is set.",
    WITH_BIT_30,
)
async def no_ack_before(trial: Trial) -> None:
    """Sends SET_OWNER with the need_reply flag, and then GET_FEATURES: the next reply is that of
    GET_FEATURES.
    """
    frontend = await trial.connect()
    await frontend.send_raw(trial.message(SET_OWNER, Empty(), flags=VERSION | NEED_REPLY))
    reply = await trial.reply_to(frontend, GET_FEATURES, Empty())
    expect(reply.request == GET_FEATURES.request, "SET_OWNER was acked, though REPLY_ACK was not negotiated")


@NEGOTIATION.must(
    6,
    "VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "A request that does not ask for an ack gets none.",
    WITH_ACKS,
)
async def no_ack_unasked(trial: Trial) -> None:
    """With REPLY_ACK, sends SET_FEATURES without the need_reply flag, and then GET_FEATURES, whose reply
    comes next.
    """
    frontend = await trial.negotiate()
    await frontend.send_raw(trial.message(SET_FEATURES, U64(frontend.features)))
    reply = await trial.reply_to(frontend, GET_FEATURES, Empty())
    expect(reply.request == GET_FEATURES.request, "SET_FEATURES was acked without being asked")


@NEGOTIATION.must(
    7,
    "VHOST_USER_PROTOCOL_F_REPLY_ACK",
    "A request with a reply of its own gets that reply only, even if it asks for an ack.",
    WITH_ACKS,
)
async def one_reply_each(trial: Trial) -> None:
    """With REPLY_ACK, sends GET_FEATURES with the need_reply flag, then GET_PROTOCOL_FEATURES: two replies
    come.
    """
    frontend = await trial.negotiate()
    await frontend.send_raw(trial.message(GET_FEATURES, Empty(), flags=VERSION | NEED_REPLY))
    first = await trial.next_reply(frontend)
    second = await trial.reply_to(frontend, GET_PROTOCOL_FEATURES, Empty())
    expect(
        (first.request, second.request) == (GET_FEATURES.request, GET_PROTOCOL_FEATURES.request),
        f"the replies were to {first.request} and {second.request}: GET_FEATURES was acked beside its reply",
    )


@NEGOTIATION.should(8, "SET_FEATURES", "Features that were never offered are not accepted.", WITH_ACKS)
async def unknown_features(trial: Trial) -> None:
    """Sends SET_FEATURES with a bit that was not offered, and asks for an ack."""
    frontend = await trial.negotiate()
    bit = next(bit for bit in range(63, 0, -1) if not trial.subject.features >> bit & 1)
    await trial.refused(
        frontend,
        SET_FEATURES,
        U64(trial.subject.features & ~mask(Feature.LOG_ALL) | 1 << bit),
        reason=f"bit {bit} was accepted, and was never offered",
    )


@NEGOTIATION.should(
    9, "SET_PROTOCOL_FEATURES", "Protocol features that were never offered are not accepted.", WITH_ACKS
)
async def unknown_protocol_features(trial: Trial) -> None:
    """Sends SET_PROTOCOL_FEATURES with a bit that was not offered, and asks for an ack."""
    frontend = await trial.negotiate()
    bit = next(bit for bit in range(63, 0, -1) if not trial.subject.protocol_features >> bit & 1)
    await trial.refused(
        frontend,
        SET_PROTOCOL_FEATURES,
        U64(frontend.protocol_features | 1 << bit),
        reason=f"protocol feature {bit} was accepted, and was never offered",
    )


@NEGOTIATION.must(
    10,
    "GET_QUEUE_NUM",
    "With MQ a back-end tells how many queues it has.",
    Needs(protocol=(ProtocolFeature.MQ,)),
)
async def queue_num(trial: Trial) -> None:
    """Sends GET_QUEUE_NUM: the answer is at least 1, and what the type of device needs."""
    frontend = await trial.negotiate()
    count = (await frontend.call(GET_QUEUE_NUM, Empty())).value
    least = trial.subject.exchange.queues if trial.subject.exchange else 1
    expect(count >= 1, "it has no queues")
    # Pairs of a network card count once: the specification says queues, and some count pairs.
    expect(count >= least or trial.subject.kind == "net", f"{count} queues, where the device needs {least}")


@NEGOTIATION.must(11, "SET_OWNER", "A front-end may claim ownership.")
async def owner(trial: Trial) -> None:
    """Sends SET_OWNER, first of all, and then GET_FEATURES."""
    frontend = await trial.connect()
    await frontend.tell(SET_OWNER, Empty())
    await trial.answers(frontend, "SET_OWNER closed the connection")


@NEGOTIATION.should(12, "SET_OWNER", "It does no harm to claim it twice.")
async def owner_twice(trial: Trial) -> None:
    """Sends SET_OWNER twice, and then GET_FEATURES."""
    frontend = await trial.connect()
    for _ in range(2):
        await frontend.tell(SET_OWNER, Empty())
    await trial.answers(frontend, "a second SET_OWNER closed the connection")


@NEGOTIATION.must(
    13,
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "The device works without any protocol feature.",
    Needs(exchange=True),
)
async def without_protocol_features(trial: Trial) -> None:
    """Negotiates no protocol feature, and no bit 30: the rings are enabled at once, and a valid request is
    answered.
    """
    frontend = await trial.negotiate(protocol_features=0, without=(Feature.PROTOCOL_FEATURES,))
    try:
        await (await trial.ring(frontend)).work()
    except CLOSED:
        raise Failed("it closed the connection") from None
