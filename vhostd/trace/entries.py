"""The lines of a trace as JSON: `trace --json` prints them, `--write` writes them, `replay` reads them."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, PlainSerializer, Tag, TypeAdapter

from vhostd.trace.passed import PassedFd

VERSION = 1

Hex = Annotated[
    bytes,
    BeforeValidator(lambda value: bytes.fromhex(value) if isinstance(value, str) else value),
    PlainSerializer(bytes.hex, when_used="json"),
]


class Side(StrEnum):
    """Who says it."""

    FRONT_END = "front-end"
    BACK_END = "back-end"


class Line(StrEnum):
    """The socket on which it is said."""

    MAIN = "main"
    BACKEND = "backend"  # of SET_BACKEND_REQ_FD
    DISPLAY = "display"  # of GPU_SET_SOCKET


class Head(BaseModel):
    """The first line."""

    vhostd_trace: Literal[1]
    started: str


class Entry(BaseModel):
    """What all other lines have: the seconds since the trace began, and which connection it is, from 1 on."""

    time: float
    connection: int


class Note(Entry):
    """Something happened that is no message."""

    note: str


class Message(Entry):
    """A message. `payload` is its beginning if `size` says more. `fields` are for readers only."""

    line: Line
    sender: Side
    request: int
    flags: int
    size: int
    payload: Hex
    fds: tuple[PassedFd, ...] = ()
    name: str = ""
    fields: dict[str, Any] = {}


class Piece(BaseModel):
    """Bytes of the guest's memory."""

    addr: int
    data: Hex


class Rings(Entry):
    """What was new in a ring when it started, was kicked, called its driver, or ended, in the order to write.

    `chains` is how many chains were new. `done` is how many the device had given back since the ring's start.
    With `cut`, there was too much to keep all.
    """

    ring: int
    event: Literal["start", "kick", "call", "end"]
    chains: int
    done: int
    cut: bool = False
    memory: tuple[Piece, ...]


def _kind(line: Any) -> str:
    """What a line is to be, by the field that only such lines have; a message otherwise."""
    own = {"vhostd_trace": "head", "event": "rings", "note": "note"}
    return next((kind for field, kind in own.items() if isinstance(line, dict) and field in line), "message")


AnyEntry = Head | Rings | Message | Note
_Tagged = (
    Annotated[Head, Tag("head")]
    | Annotated[Rings, Tag("rings")]
    | Annotated[Message, Tag("message")]
    | Annotated[Note, Tag("note")]
)
ENTRIES: TypeAdapter[AnyEntry] = TypeAdapter(Annotated[_Tagged, Discriminator(_kind)])
