"""What a front-end is offered, by default and when somebody chooses."""

import pytest

from tests.conftest import Run
from tests.sessions import Echo, connected
from vhostd.vhost_user.messages import GET_FEATURES, GET_PROTOCOL_FEATURES, ProtocolFeature
from vhostd.vhost_user.offer import CHOICES, DEFAULT_OFFER, PROTOCOL, RING, Choice, Offer
from vhostd.virtio.vocabulary import Feature, mask
from vhostd.wire.rows import Empty

# What is offered whatever is chosen, for a device with a config space and feature 5.
FIXED = mask(5, Feature.PROTOCOL_FEATURES, Feature.VERSION_1)
FIXED_PROTOCOL = mask(ProtocolFeature.MQ, ProtocolFeature.REPLY_ACK, ProtocolFeature.CONFIG)


async def offered(offer: Offer) -> tuple[int, int]:
    """The features and the protocol features that a session offers."""
    async with connected(Echo(), offer) as frontend:
        features = (await frontend.call(GET_FEATURES, Empty())).value
        return features, (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value


def test_all_that_is_implemented_is_fixed_or_a_choice_and_every_choice_is_implemented(run_async: Run) -> None:
    async def main() -> None:
        features, protocol_features = await offered(Offer(CHOICES))
        assert features == FIXED | mask(Feature.LOG_ALL, *(choice.bit for choice in RING))
        assert protocol_features == FIXED_PROTOCOL | mask(*(choice.bit for choice in PROTOCOL))

    run_async(main)


@pytest.mark.parametrize("choice", CHOICES.values(), ids=list(CHOICES))
def test_a_choice_alone_comes_with_what_it_needs(choice: Choice, run_async: Run) -> None:
    async def main() -> None:
        features, protocol_features = await offered(Offer([choice.name]))
        chosen, needs = mask(choice.bit), mask(*choice.needs)
        log_all = mask(Feature.LOG_ALL) if choice.bit == ProtocolFeature.LOG_SHMFD else 0
        if choice in RING:
            assert (features, protocol_features) == (FIXED | chosen, FIXED_PROTOCOL | needs)
        else:
            assert (features, protocol_features) == (FIXED | log_all, FIXED_PROTOCOL | chosen | needs)

    run_async(main)


def test_what_is_not_implemented_is_not_offered(run_async: Run) -> None:
    assert Offer(CHOICES).features(0) == 0
    assert Offer(CHOICES).protocol_features(1) == 1

    async def main() -> None:
        device = Echo()
        device.read_config = bytes  # type: ignore[method-assign]  # it has no config space
        async with connected(device, Offer(CHOICES)) as frontend:
            protocol_features = (await frontend.call(GET_PROTOCOL_FEATURES, Empty())).value
            assert not protocol_features & mask(ProtocolFeature.CONFIG)

    run_async(main)


def test_what_is_offered_by_default() -> None:
    for choices, offered in ((RING, DEFAULT_OFFER.features), (PROTOCOL, DEFAULT_OFFER.protocol_features)):
        for choice in choices:
            assert bool(offered(mask(choice.bit))) == choice.by_default, choice.name
