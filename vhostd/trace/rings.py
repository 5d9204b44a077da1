"""What a driver has put into a ring: read, and nothing is written. Both formats (virtio 1.3, 2.7 and 2.8)."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from vhostd.errors import BadRing, GuestError
from vhostd.ring import GuestMemory
from vhostd.trace.entries import Piece
from vhostd.virtio.vocabulary import Feature

NEXT, WRITE, INDIRECT = 1, 2, 4  # flags of a descriptor
AVAIL, USED = 1 << 7, 1 << 15  # flags of a packed ring's descriptor
DESCRIPTOR = struct.Struct("<QIHH")  # split: address, length, flags, next; packed: address, length, id, flags
INDEX = struct.Struct("<H")
MOST = 1 << 24  # bytes of buffers to keep at a time


class RingPlace(NamedTuple):
    """Where a ring is, in guest addresses, and where its driver begins."""

    size: int
    desc: int
    avail: int
    used: int
    base: int


class News:
    """What is new in a ring: pieces of memory, in the order in which to write them."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._left = MOST
        self.pieces: list[Piece] = []
        self.chains = 0
        self.is_cut = False

    def keep(self, addr: int, size: int) -> bytes:
        """Keeps these bytes; empty if they are too many, or outside the memory."""
        try:
            data = self._memory.read(addr, size) if size <= self._left else b""
        except GuestError:
            data = b""
        if data:
            self._left -= size
            self.pieces.append(Piece(addr=addr, data=data))
        self.is_cut |= len(data) < size
        return data

    def keep_buffer(self, addr: int, length: int, flags: int) -> None:
        """Keeps what the driver wrote for the device; of the device's room nothing."""
        if not flags & WRITE:
            self.keep(addr, length)


class Walk:
    """Follows the driver of a ring through `memory`. `done` counts the chains that the device gave back."""

    def __init__(self, memory: GuestMemory, place: RingPlace, features: int) -> None:
        self.memory = memory
        self.place = place
        self.features = features
        self.done = 0

    def areas(self) -> Iterator[tuple[int, int]]:
        """The address and the size of each part of the ring."""
        raise NotImplementedError

    def keep_new(self, news: News) -> None:
        """Keeps what the driver has made available since the last time. BadRing for what no driver does."""
        raise NotImplementedError

    def count_done(self) -> int:
        """Counts what the device has given back since the last time; returns `done`."""
        raise NotImplementedError

    def start(self) -> News:
        """The whole ring, and what is new in it."""
        news = News(self.memory)
        for addr, size in self.areas():
            news.keep(addr, size)
        self.keep_new(news)
        return news

    def news(self) -> News:
        """What is new since the last time."""
        news = News(self.memory)
        self.keep_new(news)
        return news

    def _number(self, addr: int) -> int:
        return int(INDEX.unpack(self.memory.read(addr, INDEX.size))[0])


class SplitWalk(Walk):
    """Of a split ring. Its base is the index of the next chain."""

    def __init__(self, memory: GuestMemory, place: RingPlace, features: int) -> None:
        super().__init__(memory, place, features)
        self._next = place.base & 0xFFFF
        self._used = self._number(place.used + 2)

    def areas(self) -> Iterator[tuple[int, int]]:
        size = self.place.size
        yield self.place.desc, DESCRIPTOR.size * size
        yield self.place.avail, 6 + 2 * size
        yield self.place.used, 6 + 8 * size

    def keep_new(self, news: News) -> None:
        size, avail = self.place.size, self.place.avail
        index = self._number(avail + 2)
        news.chains = (index - self._next) & 0xFFFF
        if news.chains > size:
            raise BadRing(f"{news.chains} chains are new in a ring of {size}")
        while self._next != index:
            slot = avail + 4 + 2 * (self._next % size)
            self._keep_chain(news, self._number(slot))
            news.keep(slot, INDEX.size)
            self._next = (self._next + 1) & 0xFFFF
        if news.chains:
            news.pieces.append(Piece(addr=avail + 2, data=INDEX.pack(index)))

    def count_done(self) -> int:
        used = self._number(self.place.used + 2)
        self.done += (used - self._used) & 0xFFFF
        self._used = used
        return self.done

    def _keep_chain(self, news: News, head: int) -> None:
        i = head
        for _ in range(self.place.size):
            data = news.keep(self.place.desc + DESCRIPTOR.size * i, DESCRIPTOR.size)
            if i >= self.place.size or not data:
                return
            addr, length, flags, i = DESCRIPTOR.unpack(data)
            if flags & INDIRECT:
                table = news.keep(addr, length)
                for at in range(0, len(table) - DESCRIPTOR.size + 1, DESCRIPTOR.size):
                    news.keep_buffer(*DESCRIPTOR.unpack_from(table, at)[:3])
            else:
                news.keep_buffer(addr, length, flags)
            if not flags & NEXT:
                return


class PackedWalk(Walk):
    """Of a packed ring. Its base is two positions: of the next chain, and of the next used descriptor."""

    def __init__(self, memory: GuestMemory, place: RingPlace, features: int) -> None:
        super().__init__(memory, place, features)
        base = place.base or 0x8000_8000
        self._next = _Position(base & 0xFFFF, place.size)
        self._used = _Position(base >> 16 or base & 0xFFFF, place.size)
        self._out: dict[int, int] = {}  # the descriptors of each chain that the device has, by its id

    def areas(self) -> Iterator[tuple[int, int]]:
        yield self.place.desc, DESCRIPTOR.size * self.place.size
        yield self.place.avail, 4
        yield self.place.used, 4

    def keep_new(self, news: News) -> None:
        while news.chains < self.place.size and self._is_available():
            self._keep_chain(news)
            news.chains += 1

    def count_done(self) -> int:
        while self._out and self._used.is_used(self._flags(self._used.index)):
            given = self._descriptor(self._used.index)[2]
            for number in list(self._out) if self.features >> Feature.IN_ORDER & 1 else [given]:
                self._used.advance(self._out.pop(number, 1))
                self.done += 1
                if number == given:
                    break
        return self.done

    def _is_available(self) -> bool:
        return self._next.is_available(self._flags(self._next.index))

    def _keep_chain(self, news: News) -> None:
        """Keeps a chain, its first descriptor's flags last: they make it available."""
        head = self.place.desc + DESCRIPTOR.size * self._next.index
        flags_at = head + DESCRIPTOR.size - INDEX.size
        for count in range(1, self.place.size + 1):
            addr, length, number, flags = self._descriptor(self._next.index)
            if count == 1:
                news.keep(head, DESCRIPTOR.size - INDEX.size)
            else:
                news.keep(self.place.desc + DESCRIPTOR.size * self._next.index, DESCRIPTOR.size)
            self._keep_buffers(news, addr, length, flags)
            self._next.advance(1)
            if not flags & NEXT:
                break
        news.keep(flags_at, INDEX.size)
        self._out[number] = count

    def _keep_buffers(self, news: News, addr: int, length: int, flags: int) -> None:
        if not flags & INDIRECT:
            news.keep_buffer(addr, length, flags)
            return
        table = news.keep(addr, length)
        for at in range(0, len(table) - DESCRIPTOR.size + 1, DESCRIPTOR.size):
            addr, length, _, flags = DESCRIPTOR.unpack_from(table, at)
            news.keep_buffer(addr, length, flags)

    def _descriptor(self, i: int) -> tuple[int, int, int, int]:
        found = self.memory.read(self.place.desc + DESCRIPTOR.size * i, DESCRIPTOR.size)
        addr, length, number, flags = DESCRIPTOR.unpack(found)
        return addr, length, number, flags

    def _flags(self, i: int) -> int:
        return self._descriptor(i)[3]


class _Position:
    """A place in a packed ring, with its wrap counter."""

    def __init__(self, position: int, size: int) -> None:
        self.index = position & 0x7FFF
        self._wrap = bool(position & 0x8000)
        self._size = size

    def advance(self, count: int) -> None:
        self.index += count
        if self.index >= self._size:
            self.index -= self._size
            self._wrap = not self._wrap

    def is_available(self, flags: int) -> bool:
        return bool(flags & AVAIL) == self._wrap != bool(flags & USED)

    def is_used(self, flags: int) -> bool:
        return bool(flags & AVAIL) == bool(flags & USED) == self._wrap


def walk(memory: GuestMemory, place: RingPlace, features: int) -> Walk:
    """Follows a ring of the format that was negotiated. Raises BadDescriptor if it is outside the memory."""
    made = PackedWalk if features >> Feature.RING_PACKED & 1 else SplitWalk
    return made(memory, place, features)
