"""Which features a front-end is offered, of those that are implemented.

A feature is optional if somebody gains by its absence. All others are always offered: those of the device,
and MQ, REPLY_ACK and CONFIG, which front-ends rely on. What is offered by default is what works best under
every front-end that we know (docs/features.md).
"""

from collections.abc import Iterable

from vhostd.vhost_user.messages import ProtocolFeature
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.rows import Bit


class Choice:
    """An optional feature. Whoever offers it has to offer what it `needs`, too."""

    def __init__(self, bit: Bit, *, by_default: bool = True, needs: tuple[Bit, ...] = ()) -> None:
        self.bit = bit
        self.by_default = by_default
        self.needs = needs

    @property
    def name(self) -> str:
        """Its name for a command line: the specification's, in small letters."""
        return self.bit.name.lower().replace("_", "-")


RING = (
    Choice(Feature.INDIRECT_DESC),
    Choice(Feature.EVENT_IDX),
    Choice(Feature.ACCESS_PLATFORM, by_default=False, needs=(ProtocolFeature.BACKEND_REQ,)),
    Choice(Feature.RING_PACKED),
    Choice(Feature.IN_ORDER, by_default=False),
)
PROTOCOL = (
    Choice(ProtocolFeature.LOG_SHMFD),
    Choice(ProtocolFeature.BACKEND_REQ),
    Choice(ProtocolFeature.PAGEFAULT, by_default=False),
    Choice(ProtocolFeature.INFLIGHT_SHMFD),
    Choice(ProtocolFeature.RESET_DEVICE),
    Choice(ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Choice(ProtocolFeature.STATUS),
    Choice(ProtocolFeature.DEVICE_STATE),
    Choice(
        ProtocolFeature.INBAND_NOTIFICATIONS,
        by_default=False,
        needs=(ProtocolFeature.BACKEND_REQ, ProtocolFeature.REPLY_ACK),
    ),
    Choice(ProtocolFeature.GET_VRING_BASE_INFLIGHT, needs=(ProtocolFeature.INFLIGHT_SHMFD,)),
    Choice(ProtocolFeature.GPA_ADDRESSES, by_default=False),
)
CHOICES = {choice.name: choice for choice in (*RING, *PROTOCOL)}


class Offer:
    """The optional features that are offered."""

    def __init__(self, names: Iterable[str]) -> None:
        """The `names` are of CHOICES. What they need is offered as well."""
        chosen = {bit for name in names for bit in (CHOICES[name].bit, *CHOICES[name].needs)}
        self._withheld = _bits(RING, chosen)
        self._withheld_protocol = _bits(PROTOCOL, chosen)

    def features(self, implemented: int) -> int:
        """The features that are offered, of a mask of those that are implemented."""
        return implemented & ~self._withheld

    def protocol_features(self, implemented: int) -> int:
        """The protocol features that are offered, of a mask of those that are implemented."""
        return implemented & ~self._withheld_protocol


def _bits(choices: Iterable[Choice], chosen: set[Bit]) -> int:
    """The choices that were not chosen, as a mask."""
    return mask(*(choice.bit for choice in choices if choice.bit not in chosen))


DEFAULT_OFFER = Offer(choice.name for choice in CHOICES.values() if choice.by_default)
