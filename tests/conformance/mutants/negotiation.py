"""Faults of the negotiation."""

from itertools import count
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import MalformedMessage
from vhostd.vhost_user.dispatch import ACK, Agreed, Dispatcher
from vhostd.vhost_user.messages import GET_FEATURES, ProtocolFeature
from vhostd.vhost_user.negotiation import Negotiation
from vhostd.virtio.state import VirtioState
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import Reply
from vhostd.wire.framing import NEED_REPLY
from vhostd.wire.rows import U64


@breaks("NEG-1", "the masks differ")
def features_that_change() -> None:
    """Every other answer has one feature less."""
    times = count()
    replace(
        Negotiation,
        "get_features",
        lambda get, self, empty: U64(get(self, empty).value & ~(next(times) % 2 << Feature.EVENT_IDX)),
    )


@breaks("NEG-2", "VERSION_1 is not offered")
def legacy_device() -> None:
    """It is a device of before virtio 1."""
    replace(
        Negotiation,
        "get_features",
        lambda get, self, empty: U64(get(self, empty).value & ~mask(Feature.VERSION_1)),
    )


@breaks("NEG-3", "closed the connection")
def protocol_features_come_late() -> None:
    """REPLY_ACK alone is refused before SET_FEATURES."""

    def set_protocol_features(before: Any, self: Any, features: U64) -> None:
        if features.value == mask(ProtocolFeature.REPLY_ACK) and not self._state.features:
            raise MalformedMessage("too early")
        before(self, features)

    replace(Negotiation, "set_protocol_features", set_protocol_features)


@breaks("NEG-4", "SET_OWNER got no ack", patience=SILENCE)
def acks_come_late() -> None:
    """There are acks after SET_FEATURES only."""
    acking: set[Agreed] = set()

    def set_features(before: Any, self: Any, features: U64) -> Any:
        acking.add(self._agreed)
        return before(self, features)

    replace(Negotiation, "set_features", set_features)
    replace(
        Agreed,
        "has",
        lambda has, self, bit: has(self, bit) and (bit != ProtocolFeature.REPLY_ACK or self in acking),
    )


@breaks("NEG-5", "SET_OWNER was acked, though REPLY_ACK was not negotiated")
def acks_without_reply_ack() -> None:
    """The need_reply flag is enough."""
    replace(Agreed, "has", lambda has, self, bit: has(self, bit) or bit == ProtocolFeature.REPLY_ACK)


@breaks("NEG-6", "was acked without being asked")
def acks_for_everything() -> None:
    """With REPLY_ACK each request is acked."""

    def answer(before: Any, self: Any, message: Any) -> Any:
        message.flags |= NEED_REPLY
        return before(self, message)

    replace(Dispatcher, "_answer", answer)


@breaks("NEG-7", "GET_FEATURES was acked beside its reply")
def two_replies() -> None:
    """A request with a reply of its own gets an ack as well."""

    async def send(before: Any, self: Any, message: Any, reply: Any) -> bool:
        sent: bool = await before(self, message, reply)
        if sent and message.needs_reply and message.request == GET_FEATURES.request:
            return bool(await before(self, message, Reply(ACK, [])))
        return sent

    replace(Dispatcher, "_send", send)


@breaks("NEG-8", "was accepted, and was never offered")
def any_features() -> None:
    """What was not offered is passed over."""
    replace(
        Negotiation,
        "set_features",
        lambda before, self, features: before(self, U64(features.value & self._offered)),
    )


@breaks("NEG-9", "was accepted, and was never offered")
def any_protocol_features() -> None:
    """What was not offered is passed over."""
    replace(
        Negotiation,
        "set_protocol_features",
        lambda before, self, features: before(self, U64(features.value & self._offered_protocol_features)),
    )


@breaks("NEG-10", "it has no queues")
def no_queues() -> None:
    """GET_QUEUE_NUM tells nothing."""
    replace(Negotiation, "get_queue_num", lambda _before, _self, _empty: U64(0))


@breaks("NEG-11", "SET_OWNER closed the connection")
def owner_comes_later() -> None:
    """SET_OWNER is not taken as the first request."""

    def set_owner(before: Any, self: Any, empty: Any) -> None:
        if not self._agreed.protocol_features:
            raise MalformedMessage("too early")
        before(self, empty)

    replace(Negotiation, "set_owner", set_owner)


@breaks("NEG-12", "a second SET_OWNER closed the connection")
def one_owner() -> None:
    """A second SET_OWNER is a fault."""
    owned: set[Negotiation] = set()

    def set_owner(before: Any, self: Any, empty: Any) -> None:
        if self in owned:
            raise MalformedMessage("owned")
        owned.add(self)
        before(self, empty)

    replace(Negotiation, "set_owner", set_owner)


@breaks("NEG-13", "a valid request was not answered", patience=SILENCE)
def rings_wait_for_enable() -> None:
    """Without bit 30 the rings wait for SET_VRING_ENABLE all the same."""
    replace(VirtioState, "enable_all", lambda enable, self, *, on: None if on else enable(self, on=on))
