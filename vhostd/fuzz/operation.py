"""What a case is made of. Each operation knows how it is done with a `Rig`, and what would be simpler.

A case is a tuple of operations; a corpus keeps it as JSON. An operation has in it all that its execution
depends on: nothing is drawn by chance there, so that a case does the same again.
"""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from vhostd.fuzz.rig import Rig
from vhostd.vhost_user.messages import REQUESTS

u8 = Annotated[int, Field(ge=0, lt=2**8)]
u16 = Annotated[int, Field(ge=0, lt=2**16)]
u32 = Annotated[int, Field(ge=0, lt=2**32)]
u64 = Annotated[int, Field(ge=0, lt=2**64)]
USUAL = 64  # the size of a ring to which it does not matter


def _with_less(data: bytes) -> Iterator[bytes]:
    """The data with zeros in one place: all of it, then a half, down to four bytes."""
    width, done = len(data), {data}
    while width >= 4:
        for at in range(0, len(data), width):
            less = data[:at] + bytes(len(data[at : at + width])) + data[at + width :]
            if less not in done:
                done.add(less)
                yield less
        width = 4 if 4 < width < 8 else width // 2


class _Operation(BaseModel):
    """Base of all operations. `NUMBERS` are the fields that may be 0 in a simpler one."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="hex", val_json_bytes="hex", extra="forbid")
    NUMBERS: ClassVar[tuple[str, ...]] = ()
    op: str

    def do(self, rig: Rig) -> None:
        """Does it; only while there is a connection, except for `Connect`."""
        raise NotImplementedError

    def simpler(self) -> Iterator[Self]:
        """The same with less in it, in one place each."""
        for name in self.NUMBERS:
            if getattr(self, name):
                yield self.model_copy(update={name: 0})

    @property
    def name(self) -> str:
        """What it is, for a list of what a finding takes."""
        return self.op


class Connect(_Operation):
    """Connects anew, with fresh memory, and so many rings of a size and a format, laid out there."""

    op: Literal["connect"] = "connect"
    rings: Annotated[int, Field(ge=1, le=8)]
    size: Literal[2, 4, 8, 16, 32, 64, 128, 256]
    packed: bool

    def do(self, rig: Rig) -> None:
        rig.connect(self.rings, self.size, packed=self.packed)

    def simpler(self) -> Iterator[Self]:
        if self.rings > 1:
            yield self.model_copy(update={"rings": 1})
        if self.size != USUAL:
            yield self.model_copy(update={"size": USUAL})


class Send(_Operation):
    """Sends a message. `size` is what its header says, if that is not the payload's."""

    op: Literal["send"] = "send"
    request: u32
    flags: u32
    payload: bytes = b""
    fds: tuple[str, ...] = ()
    size: u32 | None = None

    def do(self, rig: Rig) -> None:
        rig.send(self.request, self.flags, self.payload, self.fds, self.size)

    def simpler(self) -> Iterator[Self]:
        if self.size is not None:
            yield self.model_copy(update={"size": None})
        if self.fds:
            yield self.model_copy(update={"fds": self.fds[:-1]})
        if self.flags != 1:
            yield self.model_copy(update={"flags": 1})
        for payload in _with_less(self.payload):
            yield self.model_copy(update={"payload": payload})

    @property
    def name(self) -> str:
        row = REQUESTS.get(self.request)
        return row.name if row else f"request {self.request}"


class Await(_Operation):
    """Waits until the back-end has answered all messages."""

    op: Literal["await"] = "await"

    def do(self, rig: Rig) -> None:
        rig.settle()


class RingOperation(_Operation):
    """Base of what a driver does to a ring."""

    ring: u8


class Renew(RingOperation):
    """Lays a ring out again, empty, as after its driver's reset."""

    op: Literal["renew"] = "renew"

    def do(self, rig: Rig) -> None:
        rig.renew(self.ring)


class Descriptor(RingOperation):
    """Writes a descriptor. `following` is the next one's index, or the buffer's id in a packed ring."""

    op: Literal["descriptor"] = "descriptor"
    NUMBERS = ("addr", "length", "flags", "following")
    at: u16
    addr: u64
    length: u32
    flags: u16
    following: u16

    def do(self, rig: Rig) -> None:
        rig.descriptor(self.ring, self.at, self.addr, self.length, self.flags, self.following)


class Offer(RingOperation):
    """Makes a chain of `(addr, length, flags)` available. What is linked to what is as it should be."""

    op: Literal["offer"] = "offer"
    buffers: Annotated[tuple[tuple[u64, u32, u16], ...], Field(min_length=1)]

    def do(self, rig: Rig) -> None:
        rig.offer(self.ring, self.buffers)

    def simpler(self) -> Iterator[Self]:
        for at in range(len(self.buffers)) if len(self.buffers) > 1 else ():
            yield self.model_copy(update={"buffers": self.buffers[:at] + self.buffers[at + 1 :]})
        for at, (addr, length, flags) in enumerate(self.buffers):
            for less in ((0, length, flags), (addr, 0, flags), (addr, length, 0)):
                if less != (addr, length, flags):
                    buffers = (*self.buffers[:at], less, *self.buffers[at + 1 :])
                    yield self.model_copy(update={"buffers": buffers})


class Head(RingOperation):
    """Makes a chain available by its head: any index of a split ring, any id of a packed one."""

    op: Literal["head"] = "head"
    NUMBERS = ("head",)
    head: u16

    def do(self, rig: Rig) -> None:
        rig.head(self.ring, self.head)


class Jump(RingOperation):
    """Advances the avail index of a split ring, whatever is there; marks as many of a packed ring."""

    op: Literal["jump"] = "jump"
    count: u16

    def do(self, rig: Rig) -> None:
        rig.jump(self.ring, self.count)

    def simpler(self) -> Iterator[Self]:
        if self.count > 1:
            yield self.model_copy(update={"count": 1})


class Wish(RingOperation):
    """Says when the driver wants interrupts: an index or a position, and the flags of a packed ring."""

    op: Literal["wish"] = "wish"
    NUMBERS = ("position", "flags")
    position: u16
    flags: u16

    def do(self, rig: Rig) -> None:
        rig.wish(self.ring, self.position, self.flags)


class Kick(RingOperation):
    """Kicks so many times."""

    op: Literal["kick"] = "kick"
    count: u8 = 1

    def do(self, rig: Rig) -> None:
        rig.kick(self.ring, self.count)

    def simpler(self) -> Iterator[Self]:
        if self.count > 1:
            yield self.model_copy(update={"count": 1})


class Write(_Operation):
    """Writes into the guest's memory: a request, an indirect table, or anything anywhere."""

    op: Literal["write"] = "write"
    addr: u64
    data: bytes

    def do(self, rig: Rig) -> None:
        rig.write(self.addr, self.data)

    def simpler(self) -> Iterator[Self]:
        for data in _with_less(self.data):
            yield self.model_copy(update={"data": data})


class Resize(_Operation):
    """Gives the file of a memory another size, while it is mapped."""

    op: Literal["resize"] = "resize"
    NUMBERS = ("size",)
    memory: u8
    size: Annotated[int, Field(ge=0, lt=2**30)]

    def do(self, rig: Rig) -> None:
        rig.resize(self.memory, self.size)


class Tell(_Operation):
    """Writes to a socket that the back-end was given: its own channel, or the one of its display."""

    op: Literal["tell"] = "tell"
    channel: Literal["backend", "display"]
    data: bytes

    def do(self, rig: Rig) -> None:
        rig.tell(self.channel, self.data)


class Stranger(_Operation):
    """Connects a second time, and goes again."""

    op: Literal["stranger"] = "stranger"

    def do(self, rig: Rig) -> None:
        rig.stranger()


class Disconnect(_Operation):
    """Closes the connection, whatever is going on."""

    op: Literal["disconnect"] = "disconnect"

    def do(self, rig: Rig) -> None:
        rig.disconnect()


Operation = (
    Connect
    | Send
    | Await
    | Renew
    | Descriptor
    | Offer
    | Head
    | Jump
    | Wish
    | Kick
    | Write
    | Resize
    | Tell
    | Stranger
    | Disconnect
)
Case = tuple[Operation, ...]
_CASES: TypeAdapter[Case] = TypeAdapter(tuple[Annotated[Operation, Field(discriminator="op")], ...])


def leavable() -> tuple[str, ...]:
    """The names of operations without which a case can be: all but `connect`, and messages by their rows'."""
    kinds = (str(each.model_fields["op"].default) for each in get_args(Operation))
    return (
        *(kind for kind in kinds if kind not in ("connect", "send")),
        *(row.name for row in REQUESTS.values()),
    )


def to_json(case: Case) -> bytes:
    """The case as it is kept in a corpus: the same case, the same bytes."""
    return _CASES.dump_json(case, exclude_defaults=False, indent=1) + b"\n"


def from_json(data: bytes) -> Case:
    """The case that `to_json` made into this; raises ValueError for anything else."""
    return _CASES.validate_json(data)
