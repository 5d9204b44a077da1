"""An evdev node of the host as the source: /dev/input/event*, grabbed unless that is not wanted."""

import array
import asyncio
import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterable
from typing import Any, Protocol

from vhost_user_input.description import AbsInfo, Description, Ids
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
    SYN_DROPPED,
    SYN_REPORT,
    BadEvent,
)
from vhost_user_input.reports import Reports
from vhost_user_input.source import Sink
from vhost_user_input.state import State
from vhostd import Grants, SetupError

log = logging.getLogger(__name__)

INPUT_EVENT = struct.Struct("@llHHi")  # struct input_event: seconds, microseconds, type, code, value
READ_SIZE = 256 * INPUT_EVENT.size

# Numbers of ioctls that return state (linux/input.h).
_EVIOCGMTSLOTS = 0x0A
_EVIOCGKEY = 0x18
_EVIOCGSW = 0x1B
_BITMAP_BYTES = 96  # KEY_CNT bits, the longest
_BITMAPS = {EV_KEY: _EVIOCGKEY, EV_SW: _EVIOCGSW}


class Node(Protocol):
    """What is used of evdev.InputDevice, alike in evdev 1.9 and 2.0."""

    fd: int
    info: Any
    name: str
    uniq: str

    def capabilities(self) -> dict[int, list[Any]]: ...
    def input_props(self) -> list[int]: ...
    def absinfo(self, _axis: int, /) -> Any: ...
    def grab(self) -> None: ...
    def close(self) -> None: ...


class EvdevSource:
    """Reads a node in bulk; owns its fd. What the kernel loses is made up for by reading the state anew."""

    def __init__(self, path: str, *, grab: bool) -> None:
        self._path = path
        self._node = _open(path)
        self._to_grab = grab
        try:
            self.description = describe(self._node)
            self._grab_if_free()
        except OSError as error:
            self._node.close()
            raise SetupError(f"{path}: {_reason(error)}") from error
        if self._to_grab:
            log.info("%s is grabbed when its keys are up", path)
        self._reports = Reports(self.description)
        self._lossy = False  # events were lost: what comes is no use until the state has been read
        self._gone: asyncio.Future[None] | None = None

    def grants(self) -> Grants:
        """The node's ioctls: to grab it, and to read its state."""
        return Grants(ioctls=(ord("E"),))

    async def run(self, sink: Sink) -> None:
        """Reads until the node is gone, which raises SetupError."""
        loop = asyncio.get_running_loop()
        self._gone = loop.create_future()
        self._resync(sink)
        loop.add_reader(self._node.fd, self._readable, sink)
        try:
            await self._gone
        finally:
            loop.remove_reader(self._node.fd)

    def write(self, events: bytes) -> None:
        """Writes the events to the node."""
        data = b"".join(INPUT_EVENT.pack(0, 0, *event) for event in EVENT.iter_unpack(events))
        try:
            os.write(self._node.fd, data)
        except OSError as error:
            log.warning("%s: the driver's status cannot be written: %s", self._path, error.strerror)

    def close(self) -> None:
        """Closes the node, which ends the grab; idempotent."""
        self._node.close()

    def _grab_if_free(self) -> None:
        """Takes the node for the guest alone, unless a key is down: the host would never see it released.

        One often is: the Enter that started the program.
        """
        if self._to_grab and not held_keys(self._node):
            self._node.grab()
            self._to_grab = False

    def _readable(self, sink: Sink) -> None:
        try:
            if data := os.read(self._node.fd, READ_SIZE):
                self._take(data, sink)
                self._grab_if_free()
            else:
                self._end("end of file")
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(_reason(error))

    def _take(self, data: bytes, sink: Sink) -> None:
        reports = bytearray()
        last = (EV_SYN, SYN_REPORT)
        try:
            for _, _, kind, code, value in INPUT_EVENT.iter_unpack(data):
                last = (kind, code)
                if last == (EV_SYN, SYN_DROPPED):
                    self._lossy = True
                elif not self._lossy:
                    reports += self._reports.add(kind, code, value)
        except BadEvent as error:
            log.warning("%s: %s", self._path, error)
            self._lossy = True
        sink.deliver(bytes(reports))
        # Reading the state makes the kernel forget key events that are still queued, so nothing older than
        # the state may be used after it: go on only where a report begins.
        if self._lossy and last == (EV_SYN, SYN_REPORT):
            log.warning("%s: events were lost, the state is read anew", self._path)
            self._resync(sink)

    def _resync(self, sink: Sink) -> None:
        self._lossy = False
        self._reports.clear()
        sink.replace(read_state(self._node, self.description))

    def _end(self, reason: str) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_exception(SetupError(f"{self._path}: the input device is gone: {reason}"))


def describe(node: Node) -> Description:
    """What the kernel says of a node."""
    found = node.capabilities()
    axes = dict(found.get(EV_ABS, ()))
    codes = {kind: frozenset(codes) for kind, codes in found.items() if kind not in (EV_SYN, EV_ABS)}
    # The kernel lists the event types where the codes of EV_SYN would be, and no codes of EV_REP at all.
    if EV_REP in found.get(EV_SYN, ()):
        codes[EV_REP] = frozenset((0, 1))
    codes[EV_SYN] = frozenset((SYN_REPORT, SYN_DROPPED))
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
    """The keys that are down."""
    return _set_bits(_ioctl_read(node.fd, _EVIOCGKEY, bytes(_BITMAP_BYTES)))


def read_state(node: Node, description: Description) -> State:
    """Where keys, switches, axes and contacts are now."""
    state = State(slots=description.slots > 0)
    for kind, number in _BITMAPS.items():
        if kind in description.codes:
            for code in _set_bits(_ioctl_read(node.fd, number, bytes(_BITMAP_BYTES))):
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
    return array.array("i", _ioctl_read(fd, _EVIOCGMTSLOTS, request)[4:])


def _ioctl_read(fd: int, number: int, data: bytes) -> bytes:
    read = 2  # _IOC_READ
    buffer = bytearray(data)  # one that can be written to may be of any size
    fcntl.ioctl(fd, read << 30 | len(data) << 16 | ord("E") << 8 | number, buffer)
    return bytes(buffer)


def _set_bits(bitmap: bytes) -> list[int]:
    number = int.from_bytes(bitmap, "little")
    return [bit for bit in range(number.bit_length()) if number >> bit & 1]


def _open(path: str) -> Node:
    try:
        import evdev
    except ImportError as error:
        raise SetupError(f"{path}: the Python library evdev is missing: {error}") from error
    make: Any = evdev.InputDevice
    try:
        node: Node = make(path)
    except OSError as error:
        raise SetupError(f"{path}: {_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{path}: the device's name is not UTF-8") from error
    return node


def _reason(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return "another program has grabbed it"
    if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EISDIR):
        return "not an evdev node"
    return error.strerror or str(error)
