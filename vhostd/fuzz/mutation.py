"""What goes wrong with a valid operation: numbers at the edges, wrong flags, sizes and fds."""

import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from vhostd.fuzz.operation import Case, Operation, Send
from vhostd.fuzz.place import DATA, DATA_END, MEMORIES, USER, ring_addr
from vhostd.fuzz.strange import KINDS
from vhostd.vhost_user.messages import REQUESTS, ConfigSpace, MemoryTable
from vhostd.wire.framing import MAX_PAYLOAD, NEED_REPLY, REPLY, VERSION
from vhostd.wire.layout import Layout

_ENDS = [at + size for at, size in MEMORIES]
ADDRESSES = (
    *(0, 1, DATA, DATA_END - 16, DATA_END - 1, *_ENDS, MEMORIES[1][0] - 8, MEMORIES[2][0] - 8),
    *(USER, USER + DATA, USER + MEMORIES[0][0], ring_addr(0), ring_addr(1) + 4, DATA + 1, DATA + 4095),
    *(2**64 - 1, 2**64 - 16, 2**64 - 4096, 2**63, 2**48, 2**32, 2**32 - 1),
)
EDGES = (0, 1, 2, 3, 7, 8, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 32767, 32768, 32769, 65535, 65536)
OWN_FDS = (
    *("memory0", "memory1", "memory2", "kick0", "call0", "err0", "kick1", "own", "reader"),
    *("backend", "display"),
)
FDS = (*KINDS, *OWN_FDS)
WRONG_FLAGS = (0, 2, 3, VERSION | REPLY, VERSION | REPLY | NEED_REPLY, VERSION | 0x10, 0xFFFF_FFFF)


class Mutation:
    """Draws from one source of chance; the same source, the same draws."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def number(self, width: int, near: int = 0) -> int:
        """A number of so many bytes: an edge, an address, `near` what was right, a bit off, or anything."""
        random = self._random
        kind = random.randrange(6)
        if kind == 0:
            value = random.choice(EDGES)
        elif kind == 1:
            value = random.choice(ADDRESSES) if width > 2 else random.getrandbits(8 * width)
        elif kind == 2:
            value = near + random.choice((-4096, -16, -8, -1, 1, 8, 16, 4096))
        elif kind == 3:
            value = near ^ 1 << random.randrange(8 * width)
        elif kind == 4:
            value = (1 << 8 * width) - random.choice((1, 2, 16, 4096))
        else:
            value = random.getrandbits(random.randrange(8 * width) + 1)
        return int(value % (1 << 8 * width))

    def payload(self, layout: Any, data: bytes) -> bytes:
        """A payload with one field, at times two, that are another number."""
        fields = spans(layout, len(data))
        for _ in range(1 + (self._random.random() < 0.2)):
            if not fields:
                break
            at, width = self._random.choice(fields)
            near = int.from_bytes(data[at : at + width], "little")
            data = data[:at] + self.number(width, near).to_bytes(width, "little") + data[at + width :]
        return data

    def message(self, valid: Send) -> Send:
        """A message with another number in one of its fields. What it comes to, the back-end may judge."""
        row = REQUESTS[valid.request]
        return valid.model_copy(update={"payload": self.payload(row.payload, valid.payload)})

    def fds(self, valid: Send) -> Send:
        """A message with the right number of fds of another kind."""
        kinds = list(valid.fds)
        if kinds:
            kinds[self._random.randrange(len(kinds))] = self._random.choice(FDS)
        return valid.model_copy(update={"fds": tuple(kinds)})

    def broken(self, valid: Send) -> Send:
        """What is no message at all: after most of these a connection is at its end."""
        random = self._random
        ways: Sequence[Callable[[], dict[str, object]]] = (
            lambda: {"flags": random.choice(WRONG_FLAGS)},
            lambda: {"payload": valid.payload[: random.randrange(len(valid.payload) + 1)]},
            lambda: {"payload": valid.payload + random.randbytes(random.choice((1, 8, 64, 5000)))},
            lambda: {
                "size": random.choice((0, 1, len(valid.payload) + 1, MAX_PAYLOAD + 1, 2**31, 2**32 - 1))
            },
            lambda: {"fds": tuple(random.choices(FDS, k=random.choice((1, 2, 8, 9, 32, 33, 64))))},
            lambda: {"fds": ()},
            lambda: {"request": random.choice((0, 45, 46, 255, 0x1000, 2**32 - 1, random.getrandbits(32)))},
        )
        return valid.model_copy(update=random.choice(ways)())

    def case(self, case: Case, other: Case) -> Case:
        """A case with something taken out, doubled, moved or changed, or with the end of another one."""
        random, operations = self._random, list(case)
        for _ in range(1 + random.randrange(4)):
            at = random.randrange(len(operations) + 1)
            end = min(len(operations), at + 1 + random.randrange(8))
            way = random.randrange(5)
            if way == 0 and len(operations) > 1:
                del operations[at:end]
            elif way == 1:
                operations[at:at] = operations[at:end] * (1 + random.randrange(3))
            elif way == 2:
                piece = operations[at:end]
                del operations[at:end]
                to = random.randrange(len(operations) + 1)
                operations[to:to] = piece
            elif way == 3:
                operations[at:] = other[random.randrange(len(other) + 1) :]
            else:
                operations[at:end] = [self._changed(each) for each in operations[at:end]]
        return tuple(operations) or case

    def _changed(self, operation: Operation) -> Operation:
        if isinstance(operation, Send) and operation.request in REQUESTS:
            return self.message(operation)
        if operation.NUMBERS:
            return self._renumbered(operation)
        return operation

    def _renumbered(self, operation: Operation) -> Operation:
        name = self._random.choice(operation.NUMBERS)
        width = {"addr": 8, "length": 4, "size": 3}.get(name, 2)
        return operation.model_copy(update={name: self.number(width, getattr(operation, name))})


_HEADS = {MemoryTable: (4, 4), ConfigSpace: (4, 4, 4)}


def spans(layout: Any, size: int) -> list[tuple[int, int]]:
    """Where the fields of a payload are, and their widths; those of 8 bytes at most, which are numbers."""
    if isinstance(layout, type) and issubclass(layout, Layout):
        codes = [hint.__metadata__[0] for hint in layout.__annotations__.values()]
        widths = [struct.calcsize(f"={code}") for code in codes]
    else:
        widths = list(_HEADS.get(layout, ()))
        widths += [8] * ((size - sum(widths)) // 8)
    found, at = [], 0
    for width in widths:
        if width <= 8 and at + width <= size:
            found.append((at, width))
        at += width
    return found
