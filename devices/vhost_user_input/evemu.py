"""The text format of evemu, versions 1.0 to 1.3: descriptions of input devices, recordings of their events.

    # EVEMU 1.3
    N: name, to the end of the line
    I: bustype vendor product version                  hexadecimal, as all numbers unless said
    P: 8 bytes of the properties' bitmap               as often as needed
    B: type, 8 bytes of that event type's bitmap       as often as needed
    A: axis minimum maximum fuzz flat [resolution]     all but the axis decimal
    L: led state        S: switch state                state decimal, 0 if not mentioned
    E: seconds.microseconds type code value            value decimal

Comments run from # to the end of the line, but not in a name. In version 1.0 only the bitmap of type 00,
which has a bit for each type, tells that the device repeats keys. Nothing here opens a file.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vhost_user_input.description import REPEAT_CODES, AbsInfo, Description, Ids
from vhost_user_input.events import ABS_CNT, ABS_MT_SLOT, EV_ABS, EV_CNT, EV_REP, EV_SYN, BadEvent
from vhostd import SetupError

BITMAP_BYTES = 128  # the size of a bitmap in the config space
MAX_SLOTS = 1024
BYTE_ORDER_MARK = "\ufeff"  # the first character of a file that some Windows editors write

# Compiled at its first use: a program without recordings starts the sooner.
_EVENT = (
    r"E:\s*([0-9]{1,12})\.([0-9]{1,6})\s+([0-9a-fA-F]{1,4})\s+([0-9a-fA-F]{1,4})\s+(-?[0-9]{1,10})\s*(?:#.*)?"
)
_FORMS = (
    ("time", r"[0-9]{1,12}\.[0-9]{1,6}", "seconds.microseconds"),
    ("type", r"[0-9a-fA-F]{1,4}", "a hexadecimal number of 16 bits"),
    ("code", r"[0-9a-fA-F]{1,4}", "a hexadecimal number of 16 bits"),
    ("value", r"-?[0-9]{1,10}", "a decimal number of 32 bits"),
)
_S32 = range(-(1 << 31), 1 << 31)

Event = tuple[int, int, int, int]  # microseconds, type, code, value


class Recording(NamedTuple):
    """A device and its events, as evemu files describe them."""

    description: Description
    switches: frozenset[int]  # the switches that were on when the recording began
    events: Sequence[Event]


def parse(text: str, origin: str, *further: tuple[str, str]) -> Recording:
    """Reads a whole file, or several as if they were one. Each is given as its text and its name.

    The first file describes the device. The events of each file follow those of the file before it without a
    pause.
    Raises SetupError with the file's name, the line's number and the wrong value.
    """
    reader = _Reader()
    for content, name in ((text, origin), *further):
        reader.begin()
        for number, line in enumerate(content.removeprefix(BYTE_ORDER_MARK).split("\n"), 1):
            try:
                reader.take(line)
            except ValueError as error:
                raise SetupError(f"{name}:{number}: {error}") from None
        for tag, missing in (("N", reader.name is None), ("I", not reader.ids)):
            if missing:
                raise SetupError(f"{name}: no {tag}: line, so this does not describe a device")
    return Recording(reader.description, frozenset(reader.switches), reader.events)


def parse_event(line: str) -> Event:
    """Reads an E: line; raises BadEvent, which names the wrong value."""
    if (match := re.fullmatch(_EVENT, line)) is None:
        raise BadEvent(_why_not_an_event(line))
    seconds, fraction, kind, code, text = match.groups()
    if (value := int(text)) not in _S32:
        raise BadEvent(f"value {text} does not fit 32 bits")
    return int(seconds) * 1_000_000 + int(fraction.ljust(6, "0")), int(kind, 16), int(code, 16), value


def format_event(event: Event) -> str:
    """Writes an E: line, without the end of line."""
    time, kind, code, value = event
    return f"E: {time // 1_000_000}.{time % 1_000_000:06} {kind:04x} {code:04x} {value:04}"


def _why_not_an_event(line: str) -> str:
    if not line.startswith("E:"):
        return f"{_shown(line)} is not an E: line"
    values = line[2:].partition("#")[0].split()
    for value, (what, pattern, form) in zip(values, _FORMS, strict=False):
        if re.fullmatch(pattern, value) is None:
            return f"{what} {_shown(value)} is not {form}"
    if len(values) != len(_FORMS):
        return f"{len(values)} values where E: takes 4, time, type, code and value: {_shown(line)}"
    return f"{_shown(line)} is not an E: line"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


class _Reader:
    """Takes a file line by line; raises ValueError for a wrong line."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.ids: list[int] = []
        self.switches: set[int] = set()
        self.events: list[Event] = []
        self._shift: int | None = None  # of the times in this file, in microseconds
        self._properties = bytearray()
        self._bitmaps: dict[int, bytearray] = {}
        self._axes: dict[int, AbsInfo] = {}
        self._description: Description | None = None
        self._tags: dict[str, Callable[[list[str]], None]] = {
            "I:": self._take_ids,
            "P:": self._take_properties,
            "B:": self._take_bits,
            "A:": self._take_axis,
            "L:": self._take_led,
            "S:": self._take_switch,
        }

    @property
    def description(self) -> Description:
        """The device, once the lines that describe it have been read."""
        if self._description is None:
            self._description = self._describe()
        return self._description

    def begin(self) -> None:
        """Starts the next file, whose events have a clock of their own."""
        self._shift = None

    def take(self, line: str) -> None:
        line = line.strip()
        if not line or line.startswith("#"):
            return
        if line.startswith("E:"):
            self._take_event(line)
        elif self.events:
            raise ValueError(f"{_shown(line)} after the first event")
        elif line.startswith("N:"):
            self._take_name(line[2:].strip())
        elif take := self._tags.get(line[:2]):
            take(line[2:].partition("#")[0].split())
        else:
            raise ValueError(f"{_shown(line)} begins with none of N: I: P: B: A: L: S: E: #")

    def _take_event(self, line: str) -> None:
        event = parse_event(line)
        if self.name is None or not self.ids:
            raise ValueError("an event before the N: and I: lines of the device")
        self.description.check(*event[1:])
        if self._shift is None:
            self._shift = self.events[-1][0] - event[0] if self.events else 0
        self.events.append((event[0] + self._shift, *event[1:]))

    def _take_name(self, name: str) -> None:
        if self.name is not None:
            raise ValueError(f"a second name, {_shown(name)}")
        self.name = name

    def _take_ids(self, values: list[str]) -> None:
        _require(values, 4, "I", "bustype, vendor, product and version")
        self.ids = [_hexadecimal(value, 0xFFFF) for value in values]

    def _take_properties(self, values: list[str]) -> None:
        _require(values, 8, "P", "bytes")
        _extend(self._properties, values)

    def _take_bits(self, values: list[str]) -> None:
        _require(values, 9, "B", "a type and 8 bytes")
        kind = _hexadecimal(values[0], EV_CNT - 1)
        _extend(self._bitmaps.setdefault(kind, bytearray()), values[1:])

    def _take_axis(self, values: list[str]) -> None:
        if len(values) not in (5, 6):
            raise ValueError(f"{len(values)} values where A: takes 5, or 6 with a resolution")
        axis = _hexadecimal(values[0], ABS_CNT - 1)
        info = AbsInfo(*(_decimal(value) for value in values[1:]))
        if axis == ABS_MT_SLOT and not 0 <= info.maximum < MAX_SLOTS:
            raise ValueError(f"maximum {info.maximum} of ABS_MT_SLOT is not a number of slots")
        self._axes[axis] = info

    def _take_led(self, values: list[str]) -> None:
        # The state of the LEDs is the guest's to choose.
        self._state(values, "L")

    def _take_switch(self, values: list[str]) -> None:
        switch, on = self._state(values, "S")
        self.switches.add(switch) if on else self.switches.discard(switch)

    def _state(self, values: list[str], tag: str) -> tuple[int, bool]:
        _require(values, 2, tag, "an index and a state")
        return _hexadecimal(values[0], 0xFF), bool(_decimal(values[1]))

    def _describe(self) -> Description:
        codes = {kind: _bits(bitmap) for kind, bitmap in self._bitmaps.items() if any(bitmap)}
        if EV_REP in codes.get(EV_SYN, ()):
            codes.setdefault(EV_REP, REPEAT_CODES)
        # An axis without an A: line has the range that evemu gives it.
        axes = {axis: self._axes.get(axis, AbsInfo()) for axis in codes.get(EV_ABS, ())}
        return Description(self.name or "", "", Ids(*self.ids), _bits(self._properties), codes, axes)


def _require(values: list[str], count: int, tag: str, what: str) -> None:
    if len(values) != count:
        raise ValueError(f"{len(values)} values where {tag}: takes {count}: {what}")


def _hexadecimal(text: str, most: int) -> int:
    if re.fullmatch(r"[0-9a-fA-F]{1,8}", text) is None:
        raise ValueError(f"{_shown(text)} is not a hexadecimal number")
    if (number := int(text, 16)) > most:
        raise ValueError(f"{text} is above {most:x}")
    return number


def _decimal(text: str) -> int:
    if re.fullmatch(r"-?[0-9]{1,10}", text) is None or int(text) not in _S32:
        raise ValueError(f"{_shown(text)} is not a decimal number of 32 bits")
    return int(text)


def _extend(bitmap: bytearray, values: list[str]) -> None:
    if len(bitmap) + len(values) > BITMAP_BYTES:
        raise ValueError(f"a bitmap of more than {BITMAP_BYTES} bytes")
    bitmap += bytes(_hexadecimal(value, 0xFF) for value in values)


def _bits(bitmap: bytes | bytearray) -> frozenset[int]:
    return frozenset(
        8 * index + bit for index, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1
    )
