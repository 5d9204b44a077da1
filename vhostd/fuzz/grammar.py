"""Cases from a seed: mostly a valid set-up, so that they get deep, and then what nobody should do."""

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from vhostd.fuzz.conversation import Conversation
from vhostd.fuzz.mutation import Mutation
from vhostd.fuzz.operation import (
    Await,
    Case,
    Descriptor,
    Disconnect,
    Head,
    Jump,
    Kick,
    Offer,
    Operation,
    Renew,
    Resize,
    Send,
    Stranger,
    Tell,
    Wish,
    Write,
)
from vhostd.fuzz.place import DATA, MEMORIES, RING_ROOM, ring_addr
from vhostd.fuzz.requests import TYPES
from vhostd.fuzz.traits import Traits
from vhostd.ring.driver import INDIRECT, NEXT, WRITE
from vhostd.vhost_user.messages import GET_FEATURES, REQUESTS
from vhostd.wire.framing import HEADER

MOVES = (3, 12)  # of a case, at least and at most
PLACES, PLACE = 32, 0x1000  # for requests: their number, and bytes of each
TABLES = DATA + PLACES * PLACE  # where indirect tables lie


class Scope(NamedTuple):
    """What cases are made of: hostile `messages` and `rings`, requests of `types`, nothing of `without`."""

    messages: bool = True
    rings: bool = True
    types: tuple[str, ...] = tuple(TYPES)
    without: frozenset[str] = frozenset()


class Grammar:
    """Makes the cases of a seed, each by its number: the same seed, traits and scope, the same cases."""

    def __init__(self, seed: int, traits: Traits, scope: Scope, corpus: Sequence[Case] = ()) -> None:
        self._seed = seed
        self._traits = traits
        self._scope = scope
        self._corpus = corpus

    def case(self, number: int) -> Case:
        """The case of that number. If there is a corpus, every other one comes of it."""
        random = Random(f"{self._seed}/{number}")
        if self._corpus and number % 2:
            made = Mutation(random).case(random.choice(self._corpus), random.choice(self._corpus))
        else:
            made = tuple(_Author(random, self._traits, self._scope).case())
        return tuple(each for each in made if each.name not in self._scope.without)


class _Author:
    """Writes one case."""

    def __init__(self, random: Random, traits: Traits, scope: Scope) -> None:
        self._random = random
        self._traits = traits
        self._scope = scope
        self._mutation = Mutation(random)
        self._talk = Conversation(random, traits)
        self._requests = [TYPES[each] for each in scope.types]

    def case(self) -> Iterator[Operation]:
        """A connection, moves on it, and what the end is."""
        moves: list[Callable[[], Iterator[Operation]]] = []
        if self._scope.messages:
            moves += [self._hostile_messages] * 4 + [self._replace_memory, self._talk_back]
        if self._scope.rings:
            moves += [self._hostile_ring] * 8 + [self._requests_in_order] * 2
        moves += [self._reconnect, self._odd]
        yield from self._set_up()
        for _ in range(self._random.randint(*MOVES)):
            yield from self._random.choice(moves)()

    # --- Connections --------------------------------------------------------------------------------------

    def _set_up(self) -> Iterator[Operation]:
        """Connects; and is done with what is right, all but one time in ten."""
        self._talk = Conversation(self._random, self._traits)
        yield self._talk.opening
        if self._scope.messages and self._random.random() < 0.1:
            return
        setting = list(self._talk.greeting())
        for ring in range(self._talk.opening.rings):
            setting += self._talk.start(ring)
        if self._scope.messages and self._random.random() < 0.1:
            at = self._random.randrange(len(setting))
            setting[at] = self._hostile(setting[at])
        yield from setting
        yield Await()

    def _reconnect(self) -> Iterator[Operation]:
        """Goes in the middle of something, and comes back."""
        if self._random.random() < 0.5:
            yield from self._requests_in_order(wait=False)
        elif self._scope.messages:
            message = self._any_message()
            yield message.model_copy(update={"size": len(message.payload) + 8})
        yield Disconnect()
        yield from self._set_up()

    def _odd(self) -> Iterator[Operation]:
        if self._random.random() < 0.5:
            yield Stranger()
        else:
            memory = self._random.randrange(len(MEMORIES))
            size = self._random.choice((0, 4096, 100, MEMORIES[memory][1] // 2, MEMORIES[memory][1] * 2))
            yield Resize(memory=memory, size=size)
            yield from self._requests_in_order()
            yield Disconnect()
            yield from self._set_up()

    # --- Messages -----------------------------------------------------------------------------------------

    def _any_message(self) -> Send:
        """A valid message; mostly of those that were agreed on."""
        while True:
            row = REQUESTS[self._random.choice(list(REQUESTS))]
            agreed = row.exists(self._talk.protocol) and row is not GET_FEATURES
            if agreed or self._random.random() < 0.02:
                return self._talk.valid(row)

    def _hostile(self, message: Send) -> Send:
        chance = self._random.random()
        if chance < 0.7:
            return self._mutation.message(message)
        if chance < 0.97:
            return self._mutation.fds(message)
        return self._mutation.broken(message)

    def _hostile_messages(self) -> Iterator[Operation]:
        """Messages, most of them wrong in one place. Some end the connection, so there is another soon."""
        for _ in range(self._random.randint(4, 32)):
            message = self._any_message()
            yield self._hostile(message) if self._random.random() < 0.8 else message
        yield Await()
        if self._random.random() < 0.5:
            yield from self._set_up()

    def _replace_memory(self) -> Iterator[Operation]:
        """Another table of memory while requests are in flight."""
        yield from self._requests_in_order(wait=False)
        table = self._talk.share()
        yield self._mutation.message(table) if self._random.random() < 0.5 else table
        yield from self._requests_in_order()

    def _talk_back(self) -> Iterator[Operation]:
        """Garbage on the other sockets that the back-end has."""
        size = self._random.choice((0, 8, 16, 408))
        flags = self._random.choice((1, 4, 5, 5, 9))
        data = HEADER.pack(self._random.randrange(14), flags, size) + self._random.randbytes(size)
        yield Tell(channel=self._random.choice(("backend", "display")), data=data)
        yield Await()

    # --- Rings --------------------------------------------------------------------------------------------

    def _requests_in_order(self, *, wait: bool = True) -> Iterator[Operation]:
        """Some good requests on each ring."""
        for ring in range(self._talk.opening.rings):
            for _ in range(self._random.randint(1, 4)):
                yield from self._request(ring)
            yield Kick(ring=ring)
        if wait:
            yield Await()

    def _request(self, ring: int) -> Iterator[Operation]:
        data, room = self._random.choice(self._requests)(self._random)
        place = DATA + PLACE * self._random.randrange(PLACES)
        buffers = [(at, size, 0) for at, size in self._cut(place, len(data))]
        buffers += [(at, size, WRITE) for at, size in self._cut(place + len(data), room)]
        if data:
            yield Write(addr=place, data=data)
        if self._random.random() < 0.2:
            yield from self._indirect(ring, buffers)
        else:
            yield Offer(ring=ring, buffers=tuple(buffers))

    def _cut(self, at: int, size: int) -> Iterator[tuple[int, int]]:
        """One buffer, or several that are side by side."""
        while size:
            part = size if self._random.random() < 0.7 else self._random.randint(1, size)
            yield at, part
            at, size = at + part, size - part

    def _indirect(self, ring: int, buffers: Sequence[tuple[int, int, int]]) -> Iterator[Operation]:
        at = TABLES + 0x400 * self._random.randrange(64)
        table = b"".join(
            _entry(*buffer, following=i if i < len(buffers) else 0) for i, buffer in enumerate(buffers, 1)
        )
        yield Write(addr=at, data=table)
        yield Offer(ring=ring, buffers=((at, len(table), INDIRECT),))

    def _hostile_ring(self) -> Iterator[Operation]:
        """Good requests and bad ones on each ring; then those rings are stopped, and begin again."""
        rings = range(self._talk.opening.rings)
        for ring in rings:
            for _ in range(self._random.randint(0, 3)):
                yield from self._request(ring)
            for _ in range(self._random.randint(1, 3)):
                yield from self._random.choice(_HOSTILE)(self, ring)
            yield Kick(ring=ring, count=1 if self._random.random() < 0.8 else self._random.randint(0, 20))
        yield Await()
        for ring in rings:
            yield self._talk.stop(ring)
        yield Await()
        for ring in rings:
            yield Renew(ring=ring)
            yield from self._talk.restart(ring)
        yield Await()

    def _bad_chain(self, ring: int) -> Iterator[Operation]:
        """A chain with one number that is wrong."""
        buffers = [
            (DATA + PLACE * self._random.randrange(PLACES), self._random.choice((16, 512, 4096)), flags)
            for flags in sorted(self._random.choices((0, 0, WRITE), k=self._random.randint(1, 5)))
        ]
        at = self._random.randrange(len(buffers))
        addr, length, flags = buffers[at]
        buffers[at] = self._random.choice(
            (
                (self._mutation.number(8, addr), length, flags),
                (addr, self._mutation.number(4, length), flags),
                (addr, length, flags ^ self._random.choice((NEXT, WRITE, INDIRECT, WRITE | INDIRECT))),
                (addr, length, self._mutation.number(2, flags)),
            )
        )
        if self._random.random() < 0.3:
            yield from self._indirect(ring, buffers)
        else:
            yield Offer(ring=ring, buffers=tuple(buffers))

    def _bad_table(self, ring: int) -> Iterator[Operation]:
        """An indirect table that is too short, too long, nested, odd, or leads in circles."""
        at = TABLES + 0x400 * self._random.randrange(64)
        entries = [
            _entry(
                DATA,
                16,
                self._random.choice((0, NEXT, NEXT, WRITE | NEXT, INDIRECT, 7)),
                following=self._random.choice((0, 1, 2, self._mutation.number(2))),
            )
            for _ in range(self._random.randint(1, 8))
        ]
        yield Write(addr=at, data=b"".join(entries))
        length = self._random.choice((16, 16 * len(entries), self._mutation.number(4, 16 * len(entries))))
        yield Offer(ring=ring, buffers=((at, length, INDIRECT | self._random.choice((0, 0, NEXT, WRITE))),))

    def _bad_descriptors(self, ring: int) -> Iterator[Operation]:
        """Descriptors written one by one, which may lead anywhere, and a head."""
        size = self._talk.opening.size
        for _ in range(self._random.randint(1, 6)):
            yield Descriptor(
                ring=ring,
                at=self._random.randrange(size),
                addr=self._random.choice((DATA, self._mutation.number(8, DATA))),
                length=self._random.choice((16, self._mutation.number(4, 16))),
                flags=self._random.choice(
                    (0, NEXT, NEXT, WRITE, NEXT | WRITE, 0x80, 0x8000, self._mutation.number(2))
                ),
                following=self._random.choice((self._random.randrange(size), self._mutation.number(2))),
            )
        yield from self._bad_head(ring)

    def _bad_head(self, ring: int) -> Iterator[Operation]:
        """A head that may be out of range, or the same again."""
        size = self._talk.opening.size
        head = self._random.choice((self._random.randrange(size), size, self._mutation.number(2, size)))
        for _ in range(self._random.choice((1, 1, 2, size + 1))):
            yield Head(ring=ring, head=head)

    def _bad_index(self, ring: int) -> Iterator[Operation]:
        """An avail index that is far ahead."""
        size = self._talk.opening.size
        yield Jump(
            ring=ring, count=self._random.choice((1, size, size + 1, 65535, self._mutation.number(2, size)))
        )

    def _bad_area(self, ring: int) -> Iterator[Operation]:
        """Bytes anywhere in the ring's memory, or in somebody else's request."""
        near = ring_addr(ring) + self._random.randrange(min(RING_ROOM, 32 * self._talk.opening.size + 64))
        at = near if self._random.random() < 0.7 else DATA + self._random.randrange(PLACES * PLACE)
        data = self._random.randbytes(self._random.choice((1, 2, 4, 8, 16, 64)))
        yield Write(addr=at, data=data)
        yield from self._request(ring)

    def _wish(self, ring: int) -> Iterator[Operation]:
        """Another wish for interrupts."""
        yield Wish(
            ring=ring, position=self._mutation.number(2), flags=self._random.choice((0, 1, 2, 3, 65535))
        )
        yield from self._request(ring)


_HOSTILE: Sequence[Callable[[_Author, int], Iterator[Operation]]] = (
    _Author._bad_chain,
    _Author._bad_chain,
    _Author._bad_chain,
    _Author._bad_table,
    _Author._bad_descriptors,
    _Author._bad_descriptors,
    _Author._bad_head,
    _Author._bad_index,
    _Author._bad_area,
    _Author._wish,
)


def _entry(addr: int, length: int, flags: int, *, following: int) -> bytes:
    """A descriptor of an indirect table. Its chain goes on if it has something `following`."""
    flags |= NEXT if following and not flags & INDIRECT else 0
    return (
        (addr % 2**64).to_bytes(8, "little")
        + (length % 2**32).to_bytes(4, "little")
        + (flags % 2**16).to_bytes(2, "little")
        + (following % 2**16).to_bytes(2, "little")
    )
