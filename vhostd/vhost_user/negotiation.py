"""Negotiation of the features and the protocol features."""

from collections.abc import Iterable
from functools import cached_property
from typing import Protocol

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.messages import (
    GET_FEATURES,
    GET_PROTOCOL_FEATURES,
    GET_QUEUE_NUM,
    REQUESTS,
    SET_FEATURES,
    SET_OWNER,
    SET_PROTOCOL_FEATURES,
    ProtocolFeature,
)
from vhostd.vhost_user.migration import Migration
from vhostd.vhost_user.offer import PROTOCOL, Offer
from vhostd.vhost_user.postcopy import Postcopy
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.translation import Translation
from vhostd.virtio.state import VirtioState
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.calls import Call, answer
from vhostd.wire.rows import U64, Empty

# QEMU's GPU sets it without having read it. QEMU turns a queue's reset into a stop and a start of the ring.
TOLERATED_FEATURES = mask(Feature.RING_RESET)
# Features of the front-end, not of the driver. QEMU changes them while a driver runs, for the dirty log.
FRONT_END_FEATURES = mask(Feature.LOG_ALL)
# Protocol features that have no message of their own. Of the others, the messages that are answered tell.
WITHOUT_MESSAGE = mask(
    ProtocolFeature.REPLY_ACK, ProtocolFeature.GET_VRING_BASE_INFLIGHT, ProtocolFeature.GPA_ADDRESSES
)


class Topic(Protocol):
    """The messages of one subject."""

    calls: tuple[Call, ...]


class Negotiation:
    """Offers the features of the core and of the device, and takes the front-end's choice."""

    def __init__(
        self,
        state: VirtioState,
        rings: Rings,
        migration: Migration,
        translation: Translation,
        agreed: Agreed,
        offer: Offer,
        topics: Iterable[Topic],
    ) -> None:
        """`topics` are the other topics of the session."""
        self._state = state
        self._rings = rings
        self._migration = migration
        self._translation = translation
        self._agreed = agreed
        self.calls: tuple[Call, ...] = (
            answer(GET_FEATURES, self.get_features),
            answer(SET_FEATURES, self.set_features),
            answer(SET_OWNER, self.set_owner),
            answer(GET_PROTOCOL_FEATURES, self.get_protocol_features),
            answer(SET_PROTOCOL_FEATURES, self.set_protocol_features),
            answer(GET_QUEUE_NUM, self.get_queue_num),
        )
        self._offer = offer
        self._implemented = WITHOUT_MESSAGE | _answered([*topics, self])

    @property
    def _offered(self) -> int:
        has_log = self._offered_protocol_features >> ProtocolFeature.LOG_SHMFD & 1
        own = mask(Feature.PROTOCOL_FEATURES) | (FRONT_END_FEATURES if has_log else 0)
        iommu = 0 if self._state.device.keeps_memory else mask(Feature.ACCESS_PLATFORM)
        return self._offer.features(self._state.offered | iommu) | own

    @property
    def _offered_protocol_features(self) -> int:
        device = self._state.device
        lacking = 0 if device.read_config() else mask(ProtocolFeature.CONFIG)
        offered = self._offer.protocol_features(self._implemented & ~lacking)
        if offered >> ProtocolFeature.PAGEFAULT & 1 and not self._has_postcopy:
            offered -= mask(ProtocolFeature.PAGEFAULT)
        return offered | device.protocol_features

    @cached_property
    def _has_postcopy(self) -> bool:
        return Postcopy.is_possible(self._state.device)

    def get_features(self, _: Empty) -> U64:
        return U64(self._offered)

    async def set_features(self, features: U64) -> None:
        state, chosen = self._state, features.value
        if surplus := chosen & ~(self._offered | TOLERATED_FEATURES):
            raise RefusedRequest(f"SET_FEATURES with {surplus:#x}, which was not offered")
        if (chosen ^ state.features) & ~FRONT_END_FEATURES and state.is_running:
            if any(queue.started and queue.is_enabled for queue in state.queues):
                raise RefusedRequest(f"SET_FEATURES {chosen:#x} while rings run with {state.features:#x}")
            await self._rings.stop_all()  # a new driver: libkrun only disables the rings of the old one
        state.accept(chosen)
        self._migration.update()
        self._translation.update()
        if not chosen & mask(Feature.PROTOCOL_FEATURES):
            state.enable_all(on=True)

    def set_owner(self, _: Empty) -> None:
        """No effect. libkrun sends it again for each new driver."""

    def get_protocol_features(self, _: Empty) -> U64:
        return U64(self._offered_protocol_features)

    def set_protocol_features(self, features: U64) -> None:
        if surplus := features.value & ~self._offered_protocol_features:
            raise RefusedRequest(f"SET_PROTOCOL_FEATURES with {surplus:#x}, which was not offered")
        for choice in PROTOCOL:
            if features.value >> choice.bit & 1 and (lacking := mask(*choice.needs) & ~features.value):
                raise MalformedMessage(
                    f"SET_PROTOCOL_FEATURES with {choice.bit.name}, and without {lacking:#x}, which it needs"
                )
        self._agreed.protocol_features = features.value

    def get_queue_num(self, _: Empty) -> U64:
        return U64(len(self._state.queues))


def _answered(topics: Iterable[Topic]) -> int:
    """The protocol features of which every request is answered, as a mask."""
    answered = {call.row.request for topic in topics for call in topic.calls}
    needed = {row: row.needs for row in REQUESTS.values() if row.needs is not None}
    lacking = {needs for row, needs in needed.items() if row.request not in answered}
    return mask(*(set(needed.values()) - lacking))
