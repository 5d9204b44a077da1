"""The agent's commands about input devices: evdev nodes and uinput.

A `device` is a path (/dev/input/event0) or a device's name. An event is [type, code, value].
"""

import errno
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Generic, TypeVar

import evdev
from evdev import ecodes

from tests.guest.agent_loop import Loop

Event = Sequence[int]
Source = TypeVar("Source", bound="evdev.InputDevice[str] | evdev.UInput")


class Recorder(Generic[Source]):
    """Collects every event of an open evdev or uinput descriptor from now on."""

    def __init__(self, loop: Loop, source: Source) -> None:
        self._loop = loop
        self.source = source
        self.events: list[Event] = []
        self.gone = False
        loop.watch(source.fd, self._read)

    def take(self) -> list[Event]:
        """The events recorded since the last `take`."""
        events, self.events = self.events, []
        return events

    def close(self) -> None:
        """Stops recording and closes the node."""
        if not self.gone:
            self._loop.unwatch(self.source.fd)
        self.source.close()

    def _read(self) -> None:
        try:
            self.events += [[event.type, event.code, event.value] for event in self.source.read()]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self.gone = True
            self._loop.unwatch(self.source.fd)


class InputCommands:
    """The evdev nodes being recorded, by path, and the uinput devices, by name."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._recorders: dict[str, Recorder[evdev.InputDevice[str]]] = {}
        self._virtual: dict[str, Recorder[evdev.UInput]] = {}

    def table(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {
            "input_devices": list_devices,
            "input_device": describe,
            "input_state": state,
            "wait_input_device": self.wait_device,
            "record": self.record,
            "stop_recording": self.stop_recording,
            "events": self.events,
            "wait_events": self.wait_events,
            "wait_event": self.wait_event,
            "grab": self.grab,
            "ungrab": self.ungrab,
            "is_grabbed": is_grabbed,
            "write_events": write_events,
            "repeat": repeat,
            "uinput_create": self.uinput_create,
            "uinput_emit": self.uinput_emit,
            "uinput_events": self.uinput_events,
            "uinput_wait_events": self.uinput_wait_events,
            "uinput_destroy": self.uinput_destroy,
        }

    def wait_device(self, name: str, *, present: bool = True) -> dict[str, Any] | None:
        """Waits until a device of this name is there (the result describes it) or is not."""
        self._loop.wait(lambda: bool(find(name)) is present, f"{name} to {'come' if present else 'go'}")
        return describe(name) if present else None

    def record(self, device: str) -> str:
        """Starts recording the events of a node, or forgets what was recorded; returns its path."""
        path = path_of(device)
        if path in self._recorders:
            self.stop_recording(path)
        self._recorders[path] = Recorder(self._loop, evdev.InputDevice(path))
        return path

    def stop_recording(self, device: str) -> list[Event]:
        """Closes a recorded node; returns the events not fetched yet."""
        recorder = self._recorder(device)
        del self._recorders[str(recorder.source.path)]
        recorder.close()
        return recorder.take()

    def events(self, device: str) -> list[Event]:
        """Fetches and forgets the events recorded so far."""
        return self._recorder(device).take()

    def wait_events(self, device: str, count: int) -> list[Event]:
        """Waits until `count` events are recorded, then fetches and forgets all."""
        return self._wait_count(self._recorder(device), count)

    def wait_event(self, device: str, event: Event) -> list[Event]:
        """Waits until `event` is recorded, then fetches and forgets all."""
        recorder = self._recorder(device)
        self._wait(recorder, lambda: event in recorder.events, f"the event {event}")
        return recorder.take()

    def grab(self, device: str) -> None:
        """Makes the recorder of `device` the only one that gets its events (EVIOCGRAB)."""
        self._recorder(device).source.grab()

    def ungrab(self, device: str) -> None:
        """Undoes `grab`."""
        self._recorder(device).source.ungrab()

    def uinput_create(self, description: dict[str, Any]) -> dict[str, Any]:
        """Creates a uinput device from a description as `input_device` gives them; returns its own."""
        device = evdev.UInput(
            events=uinput_capabilities(description),
            name=description["name"],
            vendor=description.get("vendor", 1),
            product=description.get("product", 1),
            version=description.get("version", 1),
            bustype=description.get("bustype", ecodes.BUS_VIRTUAL),
            phys=description.get("phys") or "vhostd-test",
            input_props=description.get("properties", []),
            max_effects=ecodes.FF_MAX_EFFECTS if ecodes.EV_FF in description["events"] else 0,
        )
        self._virtual[device.name] = Recorder(self._loop, device)
        return describe(str(device.device.path))

    def uinput_emit(self, name: str, events: Sequence[Event]) -> None:
        """Makes a uinput device send these events; nothing is added to them."""
        write_all(self._virtual[name].source, events)

    def uinput_events(self, name: str) -> list[Event]:
        """Fetches and forgets what readers of a uinput device wrote to it (LEDs)."""
        return self._virtual[name].take()

    def uinput_wait_events(self, name: str, count: int) -> list[Event]:
        """Waits until `count` events were written to a uinput device, then fetches and forgets all."""
        return self._wait_count(self._virtual[name], count)

    def uinput_destroy(self, name: str) -> None:
        """Unplugs a uinput device."""
        self._virtual.pop(name).close()

    def _recorder(self, device: str) -> "Recorder[evdev.InputDevice[str]]":
        """The recorder of a node, which may be unplugged by now."""
        for path, recorder in self._recorders.items():
            if device in (path, recorder.source.name):
                return recorder
        raise LookupError(f"{device} is not being recorded")

    def _wait_count(self, recorder: Recorder[Any], count: int) -> list[Event]:
        self._wait(recorder, lambda: len(recorder.events) >= count, f"{count} events")
        return recorder.take()

    def _wait(self, recorder: Recorder[Any], condition: Callable[[], bool], what: str) -> None:
        self._loop.wait(lambda: condition() or recorder.gone, f"{what}; recorded: {recorder.events}")
        if not condition():
            raise RuntimeError(f"the device went away before {what}; recorded: {recorder.events}")


def find(device: str) -> str:
    """The path of the device with this path or name; empty if there is none."""
    for path in evdev.list_devices():
        if device == path or device == evdev.InputDevice(path).name:
            return path
    return ""


def path_of(device: str) -> str:
    """The path of the device with this path or name. Raises LookupError."""
    path = find(device)
    if not path:
        raise LookupError(f"there is no input device {device}")
    return path


def list_devices() -> list[dict[str, Any]]:
    """Describes every input device."""
    return [describe(path) for path in sorted(evdev.list_devices())]


def describe(device: str) -> dict[str, Any]:
    """What the kernel says about a device; `events` maps types to codes, `absinfo` axes to ranges."""
    with closing(evdev.InputDevice(path_of(device))) as node:
        capabilities = node.capabilities(absinfo=False)
        axes = capabilities.get(ecodes.EV_ABS, [])
        return {
            "path": node.path,
            "name": node.name,
            "phys": node.phys,
            "uniq": node.uniq,
            **node.info._asdict(),
            "properties": node.input_props(),
            "events": capabilities,
            "absinfo": {axis: node.absinfo(axis)._asdict() for axis in axes},
        }


def state(device: str) -> dict[str, Any]:
    """The keys that are down and the LEDs that are on."""
    with closing(evdev.InputDevice(path_of(device))) as node:
        return {"keys": node.active_keys(), "leds": node.leds()}


def is_grabbed(device: str) -> bool:
    """Whether somebody else has grabbed the device."""
    with closing(evdev.InputDevice(path_of(device))) as node:
        try:
            node.grab()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return True
        return False


def write_events(device: str, events: Sequence[Event]) -> None:
    """Writes events to a node (LEDs, sounds); nothing is added to them."""
    with closing(evdev.InputDevice(path_of(device))) as node:
        write_all(node, events)


def repeat(device: str, delay: int | None = None, rate: int | None = None) -> list[int]:
    """The auto-repeat's delay and period in ms (EVIOCGREP), after setting them if given."""
    with closing(evdev.InputDevice(path_of(device))) as node:
        if delay is not None and rate is not None:
            node.repeat = evdev.device.KbdInfo(delay, rate)
        return list(node.repeat)


def write_all(target: "evdev.InputDevice[str] | evdev.UInput", events: Sequence[Event]) -> None:
    """Writes the events one by one."""
    for kind, code, value in events:
        target.write(kind, code, value)


def uinput_capabilities(description: dict[str, Any]) -> dict[int, Any]:
    """A description's events in the form that evdev.UInput takes."""
    capabilities: dict[int, Any] = dict(description["events"])
    capabilities.pop(ecodes.EV_SYN, None)  # every device has it
    absinfo = description.get("absinfo", {})
    if ecodes.EV_ABS in capabilities:
        capabilities[ecodes.EV_ABS] = [
            (axis, evdev.AbsInfo(**absinfo[axis])) for axis in capabilities[ecodes.EV_ABS]
        ]
    return capabilities
