"""Faults of packed rings."""

import os
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.mutants.split import UNANSWERED, UNUSED, disorder
from tests.conformance.rings import DESCRIPTOR, FLAGS, Lair, refuse, when_kicked, when_pushing
from vhostd.errors import RefusedRequest
from vhostd.ring.driver import WRITE
from vhostd.vhost_user.messages import VringState
from vhostd.vhost_user.rings import Rings
from vhostd.vhost_user.vring import Vring

AVAIL, USED = 0x80, 0x8000


@breaks("PACKED-1", UNANSWERED, patience=SILENCE)
def first_round() -> None:
    """Wrap counters are 1 at a start."""
    replace(Vring, "set_base", lambda before, self, base: before(self, base | 0x8000_8000))


@breaks("PACKED-2", "SET_VRING_NUM was acked with 1")
def powers_of_two() -> None:
    """A size must be a power of two."""

    async def set_vring_num(before: Any, self: Rings, state: VringState) -> None:
        if state.num & state.num - 1:
            raise RefusedRequest("planted")
        await before(self, state)

    replace(Rings, "set_vring_num", set_vring_num)


@breaks("PACKED-3", UNUSED, patience=SILENCE)
def chains_end_with_the_ring() -> None:
    """A chain must not go on at the begin of the ring."""
    refuse(lambda lair, chain: lair.is_packed and lair.is_chained(lair.size - 1))


@breaks("PACKED-4", "the chain was used by the id 3")
def id_in_the_first() -> None:
    """The id is that of a chain's first descriptor."""

    def rename(lair: Lair) -> None:
        if lair.is_packed and lair.is_chained(0):
            at = next(at for at in range(lair.size) if not lair.is_chained(at))
            lair.write("desc", DESCRIPTOR.size * at + 12, lair.read("desc", 12, 2))

    when_kicked(rename)


@breaks("PACKED-5", "descriptor [1] was changed, in the middle of a chain")
def clears_descriptors() -> None:
    """The second descriptor of a ring is cleared."""
    when_pushing(lambda lair, chain: lair.write("desc", DESCRIPTOR.size, bytes(8)))


@breaks("PACKED-6", "with room for 64 bytes, its flags are")
def writes_nothing() -> None:
    """No byte is written, as used descriptors say."""
    replace(os, "getrandom", lambda before, size, *flags: b"")


@breaks("PACKED-7", "was used")
def takes_anything() -> None:
    """What lies in a ring is available."""

    def mark(lair: Lair) -> None:
        addr, *_, flags = lair.descriptor(0)
        if lair.is_packed and addr and flags & (AVAIL | USED) != AVAIL:
            lair.write("desc", FLAGS, (flags & ~USED | AVAIL).to_bytes(2, "little"))

    when_kicked(mark)


@breaks("PACKED-8", UNUSED, patience=SILENCE)
def strict_tables() -> None:
    """In a table no flag but WRITE may be set."""
    refuse(lambda lair, chain: any(entry[3] & ~WRITE for entry in lair.table(0)) and lair.is_packed)


@breaks("PACKED-9", "used descriptor 14 has id 3", options="--offer=all")
def out_of_order() -> None:
    """Chains are used in another order than they came in."""
    disorder()
