"""What an input device is: its names and ids, and the events it can have."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from vhost_user_input.events import (
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_MSC,
    EV_REP,
    EV_SW,
    EV_SYN,
    KEY_REPEATED,
    SYN_DROPPED,
    SYN_LAST,
    SYN_REPORT,
    BadEvent,
)

BUS_VIRTUAL = 0x06


class Ids(NamedTuple):
    """struct input_id."""

    bustype: int
    vendor: int
    product: int
    version: int


@dataclass(frozen=True)
class AbsInfo:
    """The range and the precision of an absolute axis."""

    minimum: int = 0
    maximum: int = 1
    fuzz: int = 0
    flat: int = 0
    resolution: int = 0


@dataclass(frozen=True)
class Description:
    """An input device as the guest is to see it."""

    name: str = ""
    serial: str = ""
    ids: Ids = Ids(BUS_VIRTUAL, 0, 0, 0)  # noqa: RUF009 (immutable)
    properties: frozenset[int] = frozenset()
    codes: Mapping[int, frozenset[int]] = field(default_factory=dict)  # by event type
    axes: Mapping[int, AbsInfo] = field(default_factory=dict)  # by code of EV_ABS

    @property
    def slots(self) -> int:
        """How many contacts the device tells apart; 0 unless it is a multi-touch device of protocol B."""
        return self.axes[ABS_MT_SLOT].maximum + 1 if ABS_MT_SLOT in self.axes else 0

    @property
    def repeats(self) -> bool:
        """Whether the guest's input core repeats keys that are held."""
        return EV_REP in self.codes

    def has(self, kind: int, code: int) -> bool:
        """Whether the device can have this event."""
        return code in self.codes.get(kind, ())

    def check(self, kind: int, code: int, value: int) -> None:
        """Raises BadEvent, naming what is wrong, for an event that the device cannot have."""
        if kind == EV_SYN:
            if code > SYN_LAST:
                raise BadEvent(f"code {code:04x} is not one of EV_SYN")
        elif not self.codes.get(kind):
            raise BadEvent(f"type {kind:04x} is none that the device has")
        elif code not in self.codes[kind]:
            raise BadEvent(f"code {code:04x} is none that the device has of type {kind:04x}")
        elif not self._can_be(kind, code, value):
            raise BadEvent(f"value {value} is out of range for type {kind:04x} code {code:04x}")

    def _can_be(self, kind: int, code: int, value: int) -> bool:
        if kind == EV_KEY:
            return 0 <= value <= KEY_REPEATED
        if kind == EV_SW:
            return 0 <= value <= 1
        if kind == EV_ABS and code == ABS_MT_SLOT:
            return 0 <= value < self.slots
        if kind == EV_ABS and code == ABS_MT_TRACKING_ID:
            return value >= -1
        return True


def keyboard() -> Description:
    """A full keyboard that exists nowhere else: all standard keys, three LEDs, repeat and scan codes."""
    unassigned = {84, *range(195, 200)}
    return Description(
        name="vhostd virtual keyboard",
        codes={
            EV_SYN: frozenset((SYN_REPORT, SYN_DROPPED)),
            EV_KEY: frozenset(range(1, 249)) - unassigned,  # KEY_ESC to KEY_MICMUTE
            EV_MSC: frozenset((4,)),  # MSC_SCAN
            EV_LED: frozenset((0, 1, 2)),  # LED_NUML, LED_CAPSL, LED_SCROLLL
            EV_REP: frozenset((0, 1)),  # REP_DELAY, REP_PERIOD
        },
    )
