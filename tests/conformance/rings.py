"""What faults of rings have in common: they look into guest memory, and write what no device may."""

import struct
from collections.abc import Callable
from typing import Any

from tests.conformance.faults import replace
from vhostd.errors import BadDescriptor
from vhostd.ring import Chain
from vhostd.ring.driver import INDIRECT, NEXT
from vhostd.vhost_user.vring import Vring
from vhostd.virtio.virtqueue import Virtqueue
from vhostd.virtio.vocabulary import Feature

DESCRIPTOR = struct.Struct("<QIHH")
OFFSET = 0x7F00_0000_0000 - 0x1000_0000  # of user addresses from guest addresses, as SharedMemory has them
FLAGS = 14  # where they are in a packed descriptor

Planted = Callable[["Lair", Chain], object]


class Lair:
    """A running ring, for a fault that lies in it."""

    def __init__(self, vring: Vring) -> None:
        assert vring.runner.queue is not None
        assert vring.addr is not None
        self.vring = vring
        self.queue = vring.runner.queue
        self.size = vring.size
        self.addr = vring.addr
        self.memory = vring._map
        self.is_packed = bool(vring._features >> Feature.RING_PACKED & 1)

    def read(self, part: str, offset: int, size: int) -> bytes:
        """Bytes of one of its areas: desc, avail or used."""
        return self.memory.read(getattr(self.addr, part) - OFFSET + offset, size)

    def write(self, part: str, offset: int, data: bytes) -> None:
        """Writes into one of its areas."""
        self.memory.write(getattr(self.addr, part) - OFFSET + offset, data)

    def word(self, part: str, offset: int) -> int:
        """Two bytes of an area."""
        return int.from_bytes(self.read(part, offset, 2), "little")

    def descriptor(self, at: int) -> tuple[int, int, int, int]:
        """The fields of a descriptor of the ring."""
        addr, size, third, fourth = DESCRIPTOR.unpack(
            self.read("desc", DESCRIPTOR.size * at, DESCRIPTOR.size)
        )
        return addr, size, third, fourth

    def flags(self, at: int) -> int:
        """Those of a descriptor, in either format."""
        return self.descriptor(at)[3 if self.is_packed else 2]

    def table(self, at: int) -> list[tuple[int, int, int, int]]:
        """The descriptors of the table that a descriptor refers to; none if it does not."""
        addr, size, *_ = self.descriptor(at)
        if not self.flags(at) & INDIRECT:
            return []
        entries = DESCRIPTOR.iter_unpack(self.memory.read(addr, size))
        return [(entry[0], entry[1], entry[2], entry[3]) for entry in entries]

    def is_chained(self, at: int) -> bool:
        """Whether more descriptors follow this one."""
        return bool(self.flags(at) & NEXT)

    @property
    def count(self) -> int:
        """How many chains the device has taken here."""
        return self.queue.ring.effort


LAIRS: dict[Virtqueue, Lair] = {}


def watch_rings() -> None:
    """Has the rings that start from now on known in LAIRS."""

    def begin(before: Any, self: Vring, *arguments: Any) -> None:
        before(self, *arguments)
        lair = Lair(self)
        LAIRS[lair.queue] = lair

    replace(Vring, "_begin", begin)


def refuse(is_refused: Callable[[Lair, Chain], object]) -> None:
    """Has a ring break at a chain for which this holds."""
    watch_rings()

    def pop(before: Any, self: Virtqueue) -> Chain | None:
        chain: Chain | None = before(self)
        if chain is not None and is_refused(LAIRS[self], chain):
            raise BadDescriptor("planted")
        return chain

    replace(Virtqueue, "pop", pop)


def lose(is_lost: Callable[[Lair, Chain], object]) -> None:
    """Has a ring never use a chain for which this holds."""
    watch_rings()

    def push(before: Any, self: Virtqueue, chain: Chain) -> None:
        if not is_lost(LAIRS[self], chain):
            before(self, chain)

    replace(Virtqueue, "push", push)


def when_pushing(fault: Planted) -> None:
    """Has this done just before a chain is used."""
    lose(fault)


def when_kicked(fault: Callable[[Lair], object]) -> None:
    """Has this done just before a kick is heeded."""
    watch_rings()

    def kicked(before: Any, self: Vring) -> None:
        if self.runner.queue is not None:
            fault(LAIRS[self.runner.queue])
        before(self)

    replace(Vring, "_kicked", kicked)
