"""The state that events lead to: which keys and switches are on, and where axes and contacts are."""

import struct
from collections.abc import Iterable
from typing import Self

from vhost_user_input.description import Description
from vhost_user_input.events import (
    ABS_MT_FIRST,
    ABS_MT_LAST,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_SW,
    EVENT,
    KEY_REPEATED,
    SYN_REPORT_EVENT,
    BadEvent,
)
from vhostd import RefusedRequest, Unpacker

UNKNOWN_SLOT = -1
STATE = struct.Struct("<iI")  # slot, number of elements
ELEMENT = struct.Struct("<IHHBi")  # slot, type, code, whether its value is known, value

_SWITCHING = frozenset((EV_KEY, EV_SW))
_KEPT = _SWITCHING | {EV_ABS}
_TRACKING_ID = EV_ABS << 16 | ABS_MT_TRACKING_ID


class State:
    """The keys, switches, axes, and contacts in the slots of a multi-touch device, as one side knows them.

    At first all is at rest: keys up, axes at 0, slots empty, slot 0 current. A Linux driver assumes the same
    when it starts. A value is None when it is not known.
    """

    def __init__(self, *, slots: bool = False) -> None:
        self.slot = 0
        # By element: slot << 32 | type << 16 | code. An element that is missing is at rest.
        self._values: dict[int, int | None] = {}
        self._slots = slots

    def set(self, kind: int, code: int, value: int | None, slot: int = 0) -> None:
        """Sets one value; `slot` matters only for codes that describe a contact."""
        self._values[slot << 32 | kind << 16 | code] = value

    def apply(self, events: bytes) -> None:
        """Follows packed events."""
        values, slot = self._values, self.slot
        for kind, code, value in EVENT.iter_unpack(events):
            if kind in _SWITCHING:
                if value != KEY_REPEATED:
                    values[kind << 16 | code] = value
            elif kind == EV_ABS:
                if not ABS_MT_SLOT <= code <= ABS_MT_LAST:
                    values[EV_ABS << 16 | code] = value
                elif not self._slots:
                    pass  # protocol A: every report names all contacts anew, so there is no state
                elif code == ABS_MT_SLOT:
                    slot = value
                else:
                    values[slot << 32 | EV_ABS << 16 | code] = value
        self.slot = slot

    def doubt(self) -> None:
        """Makes every value unknown that is not at rest: its side may have started anew, or not."""
        for element in list(self._values):
            if self._values[element] != _at_rest(element):
                self._values[element] = None
        if self.slot:
            self.slot = UNKNOWN_SLOT

    def doubt_all(self, description: Description, device: Self) -> None:
        """Makes every key, switch and contact unknown, and each value that this or the device's state has."""
        keys = {kind << 16 | code for kind in _SWITCHING for code in description.codes.get(kind, ())}
        contacts = {slot << 32 | _TRACKING_ID for slot in range(description.slots)}
        self._values = dict.fromkeys(keys | contacts | self._values.keys() | device._values.keys())
        self.slot = UNKNOWN_SLOT if self._slots else 0

    def held(self) -> dict[int, int | None]:
        """The keys that are pressed and the contacts that touch, by element."""
        return {
            each: value
            for each, value in self._values.items()
            if _can_be_held(each) and value != _at_rest(each)
        }

    def released(self, elements: Iterable[int] | None = None) -> "State":
        """A copy with these keys and contacts lifted, by default all that are held."""
        state = State(slots=self._slots)
        state._values, state.slot = dict(self._values), self.slot
        for element in self.held() if elements is None else elements:
            state._values[element] = _at_rest(element)
        return state

    def until(self, target: Self) -> bytes:
        """The reports that lead from this state to `target`; b"" if they are equal.

        When a slot has another contact in `target`, the old contact is lifted first, in a report of its own:
        programs in the guest do not expect that one contact turns into another.
        """
        now = self.released(())
        lifts = now._differences(target._with_replaced_lifted(self))
        now.apply(lifts)
        return lifts + now._differences(target)

    def _with_replaced_lifted(self, before: Self) -> "State":
        """`before`, with the contacts lifted whose slot has another contact here."""
        contacts = [element for element in self._values if element & 0xFFFFFFFF == _TRACKING_ID]
        replaced = [element for element in contacts if self._replaces(element, before)]
        lifted = before.released(replaced)
        if replaced:
            lifted.slot = max(replaced) >> 32
        return lifted

    def _replaces(self, element: int, before: "State") -> bool:
        old, new = before._get(element), self._get(element)
        return old != new and old != -1 and new != -1

    def _differences(self, target: "State") -> bytes:
        report = bytearray()
        slot = self.slot
        for element in sorted(self._values.keys() | target._values.keys(), key=_order):
            value = target._get(element)
            if value is None or self._get(element) == value:
                continue
            kind, code = element >> 16 & 0xFFFF, element & 0xFFFF
            if slot != element >> 32 and self._describes_contact(kind, code):
                slot = element >> 32
                report += EVENT.pack(EV_ABS, ABS_MT_SLOT, slot)
            report += EVENT.pack(kind, code, value)
        if slot != target.slot:
            report += EVENT.pack(EV_ABS, ABS_MT_SLOT, target.slot)
        return bytes(report) + SYN_REPORT_EVENT if report else b""

    def _describes_contact(self, kind: int, code: int) -> bool:
        return self._slots and kind == EV_ABS and ABS_MT_FIRST <= code <= ABS_MT_LAST

    def _get(self, element: int) -> int | None:
        return self._values.get(element, _at_rest(element))

    def moved_to(self, here: Self) -> "State":
        """What a device in the state `here` is in when it goes on for this one: axes unknown there stay."""
        state = here.released(())
        for element, value in self._values.items():
            if element >> 16 & 0xFFFF == EV_ABS and not _can_be_held(element):
                state._values.setdefault(element, value)
        return state

    def pack(self) -> bytes:
        """The state as bytes: the slot, the number of elements that are not at rest, and these elements."""
        values = [(each, value) for each, value in self._values.items() if value != _at_rest(each)]
        return STATE.pack(self.slot, len(values)) + b"".join(
            ELEMENT.pack(each >> 32, each >> 16 & 0xFFFF, each & 0xFFFF, value is not None, value or 0)
            for each, value in values
        )

    @classmethod
    def unpack(cls, unpacker: Unpacker, description: Description) -> Self:
        """Takes what `pack` gave; RefusedRequest for what a device of this description cannot have."""
        state = cls(slots=description.slots > 0)
        state.slot, count = STATE.unpack(unpacker.take(STATE.size))
        if not UNKNOWN_SLOT <= state.slot < max(description.slots, 1):
            raise RefusedRequest(f"slot {state.slot} of a device with {description.slots}")
        for _ in range(count):
            slot, kind, code, is_known, value = ELEMENT.unpack(unpacker.take(ELEMENT.size))
            _check(description, slot, kind, code, value)
            state.set(kind, code, value if is_known else None, slot)
        return state

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        elements = self._values.keys() | other._values.keys()
        return self.slot == other.slot and all(self._get(each) == other._get(each) for each in elements)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        values = {f"{element:x}": value for element, value in sorted(self._values.items())}
        return f"State(slot={self.slot}, {values})"


def _check(description: Description, slot: int, kind: int, code: int, value: int) -> None:
    """Raises RefusedRequest for an element that the device's state cannot have."""
    is_contact_s = kind == EV_ABS and ABS_MT_FIRST <= code <= ABS_MT_LAST
    if kind not in _KEPT or (kind, code) == (EV_ABS, ABS_MT_SLOT):
        raise RefusedRequest(f"type {kind:04x} code {code:04x} has no state")
    if slot >= (max(description.slots, 1) if is_contact_s else 1):
        raise RefusedRequest(f"type {kind:04x} code {code:04x} in slot {slot} of {description.slots}")
    try:
        description.check(kind, code, value)
    except BadEvent as error:
        raise RefusedRequest(str(error)) from None


def _at_rest(element: int) -> int:
    return -1 if element & 0xFFFFFFFF == _TRACKING_ID else 0


def _can_be_held(element: int) -> bool:
    return element >> 16 == EV_KEY or element & 0xFFFFFFFF == _TRACKING_ID


def _order(element: int) -> tuple[int, bool, int]:
    """Sorts by slot; a contact's tracking id comes before its position."""
    return element >> 32, element & 0xFFFFFFFF != _TRACKING_ID, element
