"""Input: the input device as a device."""

import argparse
import asyncio
import struct
from collections.abc import Sequence
from typing import Self

from vhost_user_input import MANIFEST
from vhost_user_input.backlog import Backlog
from vhost_user_input.config import SELECTORS, Config
from vhost_user_input.description import VIRTUAL, Description
from vhost_user_input.evdev_source import EvdevSource
from vhost_user_input.evemu_source import EvemuSource
from vhost_user_input.event_socket import EventSocket
from vhost_user_input.events import EVENT, STATUS_TYPES, SYN_REPORT_EVENT
from vhost_user_input.feed import Feed
from vhost_user_input.source import Source
from vhostd import (
    Chain,
    Device,
    DeviceType,
    Grants,
    Handler,
    Link,
    RefusedRequest,
    Unpacker,
    UsageError,
    Virtqueue,
    socket_group,
    socket_mode,
)

EVENT_SIZE = 8  # bytes of a struct virtio_input_event
STATE = struct.Struct(f"<{SELECTORS}sI")  # of a saved state: what is selected, and how many events were set
STATUS_BURST = 64  # status events that the sources get in one report
DEVICES = ("keyboard", "mouse", "tablet", "touchscreen")  # that the event socket may be, by itself
NEEDS = {
    "no_grab": "evdev_path",
    "grab_toggle": "evdev_path",
    "wait": "evdev_path",
    "event_socket_mode": "event_socket",
    "event_socket_group": "event_socket",
    "event_device": "event_socket",
}


class Input(Device):
    """keyboards, mice, tablets and touchscreens for the guest (virtio-input)

    The device is described and fed by its sources, which it owns.
    """

    kind = DeviceType.of(MANIFEST.type)
    state_limit = 1 << 18  # the contacts in all slots of a large touch screen take the most

    def __init__(self, description: Description, sources: Sequence[Source]) -> None:
        self._description = description
        self._sources = sources
        self._config = Config(description)
        self._feed = Feed(Backlog(slots=description.slots > 0), description)
        self._status: dict[tuple[int, int], int] = {}  # what the driver has set: values by type and code

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Adds the sources, of which there must be one, and what may be changed of them."""
        add = parser.add_argument_group("input").add_argument
        add("-p", "--evdev-path", metavar="PATH", help="take this evdev node, and its events")
        add("-n", "--no-grab", action="store_true", help="let the host go on using the evdev node")
        add(
            "--grab-toggle", action="store_true", help="both Control keys give the node to the host, and back"
        )
        add("--wait", action="store_true", help="wait for an evdev node that is not plugged in")
        add(
            "--evemu-path",
            metavar="FILE",
            action="append",
            help="take the device of an evemu recording, and play it; further ones may have events only",
        )
        add("--event-socket", metavar="PATH", help="take evemu's E: lines from clients of this unix socket")
        add("--event-socket-mode", metavar="MODE", type=socket_mode, help="that socket's mode, such as 0660")
        add("--event-socket-group", metavar="GROUP", type=socket_group, help="that socket's group")
        add(
            "--event-device",
            choices=DEVICES,
            help="the device without an evemu description; default: keyboard",
        )
        add("--name", help="the device's name in the guest")
        add("--serial", help="the device's serial number in the guest")

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        """Opens the sources; raises UsageError unless the options name them sensibly."""
        live = options.evdev_path is not None
        scripted = options.evemu_path is not None or options.event_socket is not None
        if live and scripted:
            raise UsageError("--evdev-path cannot go with --evemu-path or --event-socket")
        if not live and not scripted:
            raise UsageError("one of --evdev-path, --evemu-path and --event-socket is needed")
        _check_dependents(options)
        sources = _open_sources(options)
        given = {"name": options.name, "serial": options.serial}
        changes = {what: text for what, text in given.items() if text is not None}
        return cls(sources[0].description._replace(**changes), sources)

    def grants(self) -> Grants:
        """What its sources need."""
        return Grants.together(source.grants() for source in self._sources)

    def places(self) -> Sequence[str]:
        """The event socket, if there is one."""
        sockets = (source for source in self._sources if isinstance(source, EventSocket))
        return [f"events are taken at {source.path}" for source in sockets]

    @property
    def queues(self) -> Sequence[Handler]:
        """The eventq and the statusq (virtio 1.3, 5.8.2)."""
        return [self._feed.serve, self.statusq]

    async def statusq(self, queue: Virtqueue) -> None:
        """Hands the driver's LEDs, sounds and repeat rates to the sources, a burst at a time."""
        while await queue.ready():
            self._write_back(queue)
            await asyncio.sleep(0)

    def read_config(self) -> bytes:
        """The answer to what the driver has selected."""
        return self._config.read()

    def write_config(self, offset: int, data: bytes) -> None:
        """Selects; raises RefusedRequest for anything but `select` and `subsel`."""
        self._config.write(offset, data)

    def save(self) -> bytes:
        """What the driver has selected and set, and what it has been told."""
        status = b"".join(EVENT.pack(*element, value) for element, value in self._status.items())
        return STATE.pack(self._config.selected, len(self._status)) + status + self._feed.save()

    def load(self, state: bytes, version: int) -> None:
        """Goes on for a driver of another program. The sources get the LEDs and the like that it has set."""
        unpacker = Unpacker(state)
        selected, count = STATE.unpack(unpacker.take(STATE.size))
        status = bytes(unpacker.take(count * EVENT.size))
        for kind, code, _value in EVENT.iter_unpack(status):
            if not self._is_status(kind, code):
                raise RefusedRequest(f"type {kind:04x} code {code:04x} is nothing that a driver sets here")
        self._feed.load(unpacker)
        self._config.selected = selected
        self._status.clear()
        self._tell_sources(status)

    async def run(self) -> None:
        """Lets the sources feed the guest; raises SetupError when one that is needed is gone."""
        await asyncio.gather(*(source.run(self._feed) for source in self._sources))

    def attach(self, link: Link) -> None:
        """Another virtual machine has come."""
        super().attach(link)
        for source in self._sources:
            source.greet()

    def resume(self) -> None:
        """Lets the eventq say all that a driver may have been told wrongly by another program."""
        self._feed.doubt()

    async def finish(self) -> None:
        """Releases what is held: nobody would release it later."""
        await self._feed.end()

    def reset(self) -> None:
        """Forgets what the driver had selected and set. What it knows of keys and axes the eventq knows."""
        self._config.reset()
        self._status.clear()

    def close(self) -> None:
        """Closes the sources."""
        for source in self._sources:
            source.close()

    def _write_back(self, queue: Virtqueue) -> None:
        events = bytearray()
        for _ in range(STATUS_BURST):
            if (chain := queue.pop()) is None:
                break
            events += self._status_event(chain)
            queue.push(chain)
        self._tell_sources(bytes(events))

    def _tell_sources(self, events: bytes) -> None:
        """Hands the sources what the driver has set, and keeps it for another program."""
        if events:
            self._status |= {(kind, code): value for kind, code, value in EVENT.iter_unpack(events)}
            for source in self._sources:
                source.write(events + SYN_REPORT_EVENT)

    def _status_event(self, chain: Chain) -> bytes:
        """The status event in a chain; nothing if it is none, or none that the device has.

        Linux also echoes events of the eventq here, such as scan codes; they must not go back to the source.
        """
        if chain.readable != EVENT_SIZE:
            return b""
        event = chain.read(EVENT_SIZE)
        kind, code, _value = EVENT.unpack(event)
        return event if self._is_status(kind, code) else b""

    def _is_status(self, kind: int, code: int) -> bool:
        return kind in STATUS_TYPES and self._description.has(kind, code)


def _check_dependents(options: argparse.Namespace) -> None:
    """Raises UsageError for an option that means nothing without another, or beside it."""
    given = vars(options)
    for option, needed in NEEDS.items():
        if given[option] is not None and given[option] is not False and given[needed] is None:
            raise UsageError(f"{_flag(option)} needs {_flag(needed)}")
    for option, other in (("grab_toggle", "no_grab"), ("event_device", "evemu_path")):
        if given[option] and given[other]:
            raise UsageError(f"{_flag(option)} cannot go with {_flag(other)}")


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _open_sources(options: argparse.Namespace) -> list[Source]:
    """The sources that the options name; the first one describes the device. On failure none stays open."""
    if options.evdev_path is not None:
        return [
            EvdevSource(
                options.evdev_path,
                grab=not options.no_grab,
                toggle=options.grab_toggle,
                wait=options.wait,
            )
        ]
    sources: list[Source] = []
    if options.evemu_path is not None:
        sources.append(EvemuSource(*options.evemu_path))
    if options.event_socket is not None:
        description = sources[0].description if sources else VIRTUAL[options.event_device or DEVICES[0]]()
        mode, group = options.event_socket_mode, options.event_socket_group
        sources.append(EventSocket(options.event_socket, description, mode=mode, group=group))
    return sources
