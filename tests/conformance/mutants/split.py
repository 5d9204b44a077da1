"""Faults of split rings."""

from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.rings import Lair, refuse, when_kicked
from vhostd.ring import Chain
from vhostd.ring.driver import INDIRECT, NEXT
from vhostd.vhost_user.messages import VringState
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import Feature

UNUSED = "a request that was made available was not used"
UNANSWERED = "a valid request was not answered"
DISORDER = (0, 1, 2, 4, 5, 6, 7, 3)


def _base(meant: Any) -> None:
    replace(Vring, "set_base", lambda before, self, base: before(self, meant(base)))


@breaks("SPLIT-1", UNANSWERED, patience=SILENCE)
def base_within_the_ring() -> None:
    """The base is taken modulo the queue size."""
    _base(lambda base: base % 64)


@breaks("SPLIT-2", UNANSWERED, patience=SILENCE)
def base_of_15_bits() -> None:
    """An index has 15 bits."""
    _base(lambda base: base & 0x7FFF)


@breaks("SPLIT-3", UNUSED, patience=SILENCE)
def low_heads() -> None:
    """Chains begin in the first half of the ring."""
    refuse(lambda lair, chain: chain.head > 31)


@breaks("SPLIT-4", UNUSED, patience=SILENCE)
def next_without_a_flag() -> None:
    """Each next must be a descriptor."""
    refuse(lambda lair, chain: any(lair.descriptor(at)[3] > 64 for at in range(4)))


@breaks("SPLIT-5", UNUSED, patience=SILENCE)
def heads_that_grow() -> None:
    """Chains come in the order of their descriptors."""
    heads: list[int] = []

    def falls(lair: Lair, chain: Chain) -> bool:
        heads.append(chain.head)
        return heads[-2:] == [40, 2]

    refuse(falls)


@breaks("SPLIT-6", "and 1 chain was available")
def runs_ahead() -> None:
    """A head behind the available index counts, if it is not 0."""

    def step(lair: Lair) -> None:
        index = lair.word("avail", 2)
        if lair.word("avail", 4 + 2 * (index % 64)):
            lair.write("avail", 2, (index + 1).to_bytes(2, "little"))

    when_kicked(step)


@breaks("SPLIT-7", UNUSED, patience=SILENCE)
def tables_stand_alone() -> None:
    """A table must not come behind descriptors."""
    refuse(
        lambda lair, chain: (
            lair.is_chained(chain.head) and lair.flags(lair.descriptor(chain.head)[3]) & INDIRECT
        )
    )


@breaks("SPLIT-8", UNUSED, program="gpu", patience=SILENCE)
def tables_in_order() -> None:
    """The descriptors of a table follow each other."""
    refuse(
        lambda lair, chain: any(
            entry[2] & NEXT and entry[3] != at for at, entry in enumerate(lair.table(chain.head), 1)
        )
    )


@breaks("SPLIT-9", "a ring of 48 descriptors was accepted")
def rounds_sizes() -> None:
    """A size is rounded down to a power of two."""

    async def set_vring_num(before: Any, self: Rings, state: VringState) -> None:
        await before(self, VringState(state.index, 1 << state.num.bit_length() - 1))

    replace(Rings, "set_vring_num", set_vring_num)


def disorder() -> None:
    """Uses eight chains in another order than they came in."""
    held: list[Chain] = []

    def make_ring(before: Any, self: Vring, memory: Any) -> Any:
        self._features &= ~(1 << Feature.IN_ORDER)
        return before(self, memory)

    def push(before: Any, self: Virtqueue, chain: Chain) -> None:
        held.append(chain)
        if len(held) == len(DISORDER):
            for at in DISORDER:
                before(self, held[at])
            held.clear()

    replace(Vring, "_make_ring", make_ring)
    replace(Virtqueue, "push", push)


@breaks("SPLIT-10", "used element 7 has head 3", options="--offer=all")
def out_of_order() -> None:
    """Chains are used in another order than they came in."""
    disorder()
