"""What an input device is: its names and ids, and the events it can have."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from vhost_user_input.events import (
    ABS_MT_POSITION_X,
    ABS_MT_POSITION_Y,
    ABS_MT_SLOT,
    ABS_MT_TRACKING_ID,
    ABS_X,
    ABS_Y,
    EV_ABS,
    EV_KEY,
    EV_LED,
    EV_MSC,
    EV_REL,
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
REPEAT_CODES = frozenset((0, 1))  # REP_DELAY, REP_PERIOD: a device that repeats keys has both
SYN_CODES = frozenset((SYN_REPORT, SYN_DROPPED))


class Ids(NamedTuple):
    """struct input_id."""

    bustype: int
    vendor: int
    product: int
    version: int


class AbsInfo(NamedTuple):
    """The range and the precision of an absolute axis."""

    minimum: int = 0
    maximum: int = 1
    fuzz: int = 0
    flat: int = 0
    resolution: int = 0


NONE: Mapping[int, Any] = MappingProxyType({})
AREA = AbsInfo(0, 0x7FFF)  # from edge to edge, as QEMU's tablet
BUTTONS = frozenset(range(0x110, 0x115))  # BTN_LEFT, BTN_RIGHT, BTN_MIDDLE, BTN_SIDE, BTN_EXTRA
WHEELS = frozenset((6, 8))  # REL_HWHEEL, REL_WHEEL


class Description(NamedTuple):
    """An input device as the guest is to see it."""

    name: str = ""
    serial: str = ""
    ids: Ids = Ids(BUS_VIRTUAL, 0, 0, 0)
    properties: frozenset[int] = frozenset()
    codes: Mapping[int, frozenset[int]] = NONE  # by event type
    axes: Mapping[int, AbsInfo] = NONE  # by code of EV_ABS

    @property
    def slots(self) -> int:
        """The number of contacts that the device tells apart; 0 without multi-touch protocol B."""
        return self.axes[ABS_MT_SLOT].maximum + 1 if ABS_MT_SLOT in self.axes else 0

    @property
    def repeats(self) -> bool:
        """Whether the guest's input core repeats keys that are held."""
        return EV_REP in self.codes

    def has(self, kind: int, code: int) -> bool:
        """Whether the device can have this event."""
        return code in self.codes.get(kind, ())

    def check(self, kind: int, code: int, value: int) -> None:
        """Raises BadEvent, which names the wrong value, for an event that the device cannot have."""
        if kind == EV_SYN:
            if code > SYN_LAST:
                raise BadEvent(f"code {code:04x} is not one of EV_SYN")
        elif not self.codes.get(kind):
            raise BadEvent(f"type {kind:04x} is not one of the device's types of events")
        elif code not in self.codes[kind]:
            raise BadEvent(f"code {code:04x} is not one of the device's codes of type {kind:04x}")
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
    """A full keyboard: all standard keys, three LEDs, repeat and scan codes."""
    unassigned = {84, *range(195, 200)}
    return Description(
        name="vhostd virtual keyboard",
        codes={
            EV_SYN: SYN_CODES,
            EV_KEY: frozenset(range(1, 249)) - unassigned,  # KEY_ESC to KEY_MICMUTE
            EV_MSC: frozenset((4,)),  # MSC_SCAN
            EV_LED: frozenset((0, 1, 2)),  # LED_NUML, LED_CAPSL, LED_SCROLLL
            EV_REP: REPEAT_CODES,
        },
    )


def mouse() -> Description:
    """A mouse with five buttons and two wheels."""
    return Description(
        name="vhostd virtual mouse",
        codes={EV_SYN: SYN_CODES, EV_KEY: BUTTONS, EV_REL: frozenset((0, 1)) | WHEELS},  # REL_X, REL_Y
    )


def tablet() -> Description:
    """A mouse with absolute coordinates, as QEMU's tablet."""
    return Description(
        name="vhostd virtual tablet",
        codes={EV_SYN: SYN_CODES, EV_KEY: BUTTONS, EV_REL: WHEELS, EV_ABS: frozenset((ABS_X, ABS_Y))},
        axes={ABS_X: AREA, ABS_Y: AREA},
    )


def touchscreen() -> Description:
    """A multi-touch screen for ten fingers."""
    axes = {
        ABS_X: AREA,
        ABS_Y: AREA,
        ABS_MT_SLOT: AbsInfo(0, 9),
        ABS_MT_POSITION_X: AREA,
        ABS_MT_POSITION_Y: AREA,
        ABS_MT_TRACKING_ID: AbsInfo(0, 0xFFFF),
    }
    return Description(
        name="vhostd virtual touchscreen",
        properties=frozenset((1,)),  # INPUT_PROP_DIRECT
        codes={EV_SYN: SYN_CODES, EV_KEY: frozenset((0x14A,)), EV_ABS: frozenset(axes)},  # BTN_TOUCH
        axes=axes,
    )


# The devices that are defined here, by their name on the command line.
VIRTUAL = {make.__name__: make for make in (keyboard, mouse, tablet, touchscreen)}
