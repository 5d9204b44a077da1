"""An evdev node of the host, as the kernel shows it: /dev/input/event*."""

import array
import errno
import fcntl
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Protocol

from vhost_user_input.description import REPEAT_CODES, SYN_CODES, AbsInfo, Description, Ids
from vhost_user_input.events import (
    ABS_MT_FIRST,
    ABS_MT_LAST,
    ABS_MT_SLOT,
    EV_ABS,
    EV_KEY,
    EV_REP,
    EV_SW,
    EV_SYN,
    EVENT,
)
from vhost_user_input.state import State
from vhostd import Grants, Ioctl, SetupError

INPUT_EVENT = struct.Struct("@llHHi")  # struct input_event: seconds, microseconds, type, code, value
READ_SIZE = 256 * INPUT_EVENT.size
FOLDER = "/dev/input"  # has the kernel's nodes, and links to them whose names do not change

# Linux, include/uapi/linux/input.h: ioctls that return state.
EVIOCGMTSLOTS, EVIOCGKEY, EVIOCGLED, EVIOCGSW = (Ioctl.reading("E", n) for n in (0x0A, 0x18, 0x19, 0x1B))
EVIOCGABS = Ioctl.reading("E", 0x40, size=24, count=0x40)  # of each axis
EVIOCGRAB = Ioctl.writing("E", 0x90, size=4)
# The ioctls by which evdev opens a node: EVIOCGVERSION, ID, NAME, PHYS, UNIQ and PROP, EFFECTS, and BIT of
# each type of events.
OPENING = (
    *(Ioctl.reading("E", number) for number in (0x01, 0x02, 0x06, 0x07, 0x08, 0x09, 0x84)),
    Ioctl.reading("E", 0x20, count=0x20),
)
_BITMAP_BYTES = 96  # KEY_CNT bits, the longest
_BITMAPS = {EV_KEY: EVIOCGKEY, EV_SW: EVIOCGSW}


class Node(Protocol):
    """The part of evdev.InputDevice that is used here; evdev 1.9 and 2.0 agree on it."""

    fd: int
    info: Any
    name: str
    uniq: str

    def capabilities(self) -> dict[int, list[Any]]: ...
    def input_props(self) -> list[int]: ...
    def absinfo(self, _axis: int, /) -> Any: ...
    def grab(self) -> None: ...
    def ungrab(self) -> None: ...
    def close(self) -> None: ...


def grants(*, reopened: bool) -> Grants:
    """What is needed to grab a node and to read its state; with `reopened`, also to open it again."""
    using = (EVIOCGMTSLOTS, EVIOCGKEY, EVIOCGLED, EVIOCGSW, EVIOCGABS, EVIOCGRAB)
    return Grants(ioctls=(*using, *OPENING), devices=(FOLDER,)) if reopened else Grants(ioctls=using)


def open_node(path: str) -> Node:
    """Opens a node. Raises OSError; SetupError if evdev is missing, or a name is not UTF-8."""
    try:  # imported here, since it loads slowly, and only this source needs it
        import evdev
    except ImportError as error:
        raise SetupError(f"{path}: the Python library evdev is missing: {error}") from error
    make: Any = evdev.InputDevice
    try:
        node: Node = make(path)
    except UnicodeDecodeError as error:
        raise SetupError(f"{path}: the device's name is not UTF-8") from error
    return node


def open_same(path: str, description: Description) -> Node:
    """Opens a node if its description is still the same; raises OSError if not."""
    node = open_node(path)
    try:
        if describe(node) == description:
            return node
        raise OSError("there is another device now")
    except OSError:
        node.close()
        raise


def describe(node: Node) -> Description:
    """What the kernel says of a node."""
    found = node.capabilities()
    axes = dict(found.get(EV_ABS, ()))
    codes = {kind: frozenset(codes) for kind, codes in found.items() if kind not in (EV_SYN, EV_ABS)}
    # The kernel lists the event types where the codes of EV_SYN would be, and no codes of EV_REP at all.
    if EV_REP in found.get(EV_SYN, ()):
        codes[EV_REP] = REPEAT_CODES
    codes[EV_SYN] = SYN_CODES
    codes[EV_ABS] = frozenset(axes)
    return Description(
        node.name,
        node.uniq,
        Ids(*(number & 0xFFFF for number in node.info)),  # evdev gives them signed
        properties=frozenset(node.input_props()),
        codes={kind: numbers for kind, numbers in codes.items() if numbers},
        axes={axis: AbsInfo(i.min, i.max, i.fuzz, i.flat, i.resolution) for axis, i in axes.items()},
    )


def held_keys(node: Node) -> list[int]:
    """The keys that are down. The kernel then drops the key events that this reader has not read yet."""
    return _bits_of(node, EVIOCGKEY)


def lit_leds(node: Node) -> list[int]:
    """The LEDs that are on."""
    return _bits_of(node, EVIOCGLED)


def drain(node: Node) -> None:
    """Drops the events that this reader has not read yet."""
    with suppress(BlockingIOError):
        while os.read(node.fd, READ_SIZE):
            pass


def write_events(node: Node, events: bytes) -> None:
    """Writes packed events to the device: LEDs, sounds and repeat rates."""
    os.write(node.fd, b"".join(INPUT_EVENT.pack(0, 0, *event) for event in EVENT.iter_unpack(events)))


def read_state(node: Node, description: Description) -> State:
    """The present state of keys, switches, axes and contacts."""
    state = State(slots=description.slots > 0)
    for kind, bitmap in _BITMAPS.items():
        if kind in description.codes:
            for code in _bits_of(node, bitmap):
                state.set(kind, code, 1)
    for axis in description.codes.get(EV_ABS, ()):
        if not ABS_MT_SLOT <= axis <= ABS_MT_LAST:
            state.set(EV_ABS, axis, node.absinfo(axis).value)
        elif description.slots and axis >= ABS_MT_FIRST:
            for slot, value in enumerate(_read_slots(node.fd, axis, description.slots)):
                state.set(EV_ABS, axis, value, slot)
    if description.slots:
        state.slot = node.absinfo(ABS_MT_SLOT).value
    return state


def _read_slots(fd: int, axis: int, slots: int) -> Iterable[int]:
    """The value of one axis for the contact in every slot (struct input_mt_request_layout)."""
    request = struct.pack(f"@I{slots}i", axis, *[0] * slots)
    return array.array("i", _ioctl_read(fd, EVIOCGMTSLOTS, request)[4:])


def _ioctl_read(fd: int, ioctl: Ioctl, data: bytes) -> bytes:
    buffer = bytearray(data)  # ioctl takes a buffer of any size if it is writable
    fcntl.ioctl(fd, ioctl.sized(len(data)), buffer)
    return bytes(buffer)


def _bits_of(node: Node, bitmap: Ioctl) -> list[int]:
    return _set_bits(_ioctl_read(node.fd, bitmap, bytes(_BITMAP_BYTES)))


def _set_bits(bitmap: bytes) -> list[int]:
    number = int.from_bytes(bitmap, "little")
    return [bit for bit in range(number.bit_length()) if number >> bit & 1]


def reason(error: OSError) -> str:
    """Why a node is of no use."""
    if error.errno == errno.EBUSY:
        return "another program has grabbed it"
    if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EISDIR):
        return "not an evdev node"
    return error.strerror or str(error)
