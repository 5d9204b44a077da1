"""The lines of a trace for a person."""

from typing import Any

from vhostd.trace.decoding import ASKING
from vhostd.trace.entries import AnyEntry, Head, Line, Message, Rings, Side
from vhostd.wire.framing import NEED_REPLY, REPLY, VERSION_MASK

NAME = 22  # characters of most names
PREFIX = {Line.MAIN: "", Line.BACKEND: "backend.", Line.DISPLAY: "display."}
ARROW = {Side.FRONT_END: "->", Side.BACK_END: "<-"}
FLAGS = VERSION_MASK | NEED_REPLY | REPLY
LEGEND = "    seconds -> from the front-end, <- from the back-end, [an fd that goes along]"
LARGE = 0xFFFF  # larger numbers are masks and addresses


def line_of(entry: AnyEntry) -> str:
    """One line: the time in seconds, the direction, the name, what it says, its fds."""
    if isinstance(entry, Head):
        return LEGEND
    if isinstance(entry, Message):
        what = f"{ARROW[entry.sender]} {_message(entry)}"
    elif isinstance(entry, Rings):
        what = f"{'<-' if entry.event == 'call' else '->'} {entry.event:<{NAME}}  {_rings(entry)}"
    else:
        what = f"-- {entry.note}"
    return f"{entry.time:11.6f} {what}"


def _message(message: Message) -> str:
    return f"{PREFIX[message.line] + message.name:<{NAME}}  {says(message)}".rstrip()


def says(message: Message) -> str:
    """What a decoded message says, beside its name."""
    words = [f"{key}={_value(value)}" for key, value in message.fields.items() if key != "bits"]
    words += message.fields.get("bits", [])
    words += (f"[{fd}]" for fd in message.fds)
    answers = message.sender != ASKING[message.line]
    if bool(message.flags & REPLY) != answers or message.flags & ~FLAGS:
        words.append(f"flags={message.flags:#x}")
    if message.flags & NEED_REPLY:
        words.append("need_reply")
    return " ".join(words)


def difference(seen: Message, recorded: Message) -> str:
    """How a decoded message is another one than was recorded; of features only those that differ."""
    bits, before = (each.fields.get("bits", []) for each in (seen, recorded))
    more, less = ([bit for bit in one if bit not in other] for one, other in ((bits, before), (before, bits)))
    words = [f"{word} {' '.join(them)}" for word, them in (("with", more), ("without", less)) if them]
    what = ", ".join(words) or f"{says(seen)}, was {says(recorded)}"
    return f"{seen.name} {what}"


def _rings(rings: Rings) -> str:
    size = sum(len(piece.data) for piece in rings.memory)
    cut = ", not all of them kept" if rings.cut else ""
    return f"ring={rings.ring} chains={rings.chains} done={rings.done}, {size} bytes{cut}"


def _value(value: Any) -> str:
    if value is True:
        return "yes"
    if isinstance(value, int):
        return f"{value:#x}" if value > LARGE else str(value)
    if isinstance(value, dict):
        return " ".join(f"{key}={_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(f"[{_value(each)}]" for each in value)
    return str(value)
