"""An evdev node of the host as the source. By default the guest has it alone (EVIOCGRAB)."""

import asyncio
import errno
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial

from vhost_user_input import grab
from vhost_user_input.chord import Chord
from vhost_user_input.evdev_node import (
    INPUT_EVENT,
    READ_SIZE,
    Node,
    describe,
    drain,
    grants,
    held_keys,
    lit_leds,
    open_node,
    open_same,
    read_state,
    reason,
    write_events,
)
from vhost_user_input.events import EV_LED, EV_SYN, EVENT, SYN_DROPPED, SYN_REPORT, SYN_REPORT_EVENT, BadEvent
from vhost_user_input.origin import Origin
from vhost_user_input.reports import Reports
from vhost_user_input.source import Sink
from vhostd import Grants, SetupError, Threads, pause

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.1  # seconds until the next try, while a device is not plugged in or cannot be taken
ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class EvdevSource:
    """Reads a node in bulk; owns its fd. When the kernel loses events, the state is read anew.

    The guest has the node while its driver listens. It gets the node at a moment when no key is down, since
    keys that were pressed before are the host's. With `toggle`, both Control keys give the node to the host,
    and back. With `wait`, a device that is unplugged is waited for, and the guest keeps its input device.
    """

    def __init__(self, path: str, *, grab: bool, toggle: bool = False, wait: bool = False) -> None:
        self._path = path
        self._alone = grab
        self._wait = wait
        self._chord = Chord() if toggle else None
        self._node: Node | None = None
        self._node = node = _open(path, wait=wait)
        try:
            self.description = describe(node)
        except OSError as error:
            node.close()
            raise SetupError(f"{path}: {reason(error)}") from error
        self._reports = Reports(self.description)
        self._leds: dict[int, int] = {}  # their values, as the driver set them
        self._hosts_leds: dict[int, int] = {}  # their values before the guest had the node
        self._listening = False
        self._lent_to_host = False  # by the chord
        self._guest_has_it = False
        self._lossy = False  # events were lost: those that come are ignored until the state has been read
        self._last_logged = ""
        self._retry: asyncio.TimerHandle | None = None  # the next try to take the node over
        self._origin: Origin | None = None
        self._gone: asyncio.Future[str] | None = None
        self._threads = Threads(name="evdev")

    def grants(self) -> Grants:
        """The node's ioctls; with `wait` also what is needed to open it again."""
        return grants(reopened=self._wait)

    def greet(self) -> None:
        """Forgets a chord: the user of another virtual machine gave the node to the host."""
        self._lent_to_host = False

    async def run(self, sink: Sink) -> None:
        """Reads until the node is gone; then raises SetupError, or with `wait` waits for the node."""
        assert self._node is not None  # it is open until `close`
        node = self._node
        self._origin = origin = sink.origin()
        sink.watch(self._driver_listens)
        try:
            while True:
                why = await self._read(node)
                if not self._wait:
                    raise SetupError(f"{self._path}: the input device is gone: {why}")
                log.warning("%s: the input device is gone, and waited for: %s", self._path, why)
                node.close()
                node = self._node = await self._wait_for_device()
                log.info("%s: the input device is back", self._path)
        finally:
            origin.leave()

    def write(self, events: bytes) -> None:
        """Writes the events to the node while the guest has it. LEDs are set later, when the guest gets it.

        The host finds its LEDs as they were when it gets a grabbed node back.
        """
        self._leds |= {code: value for kind, code, value in EVENT.iter_unpack(events) if kind == EV_LED}
        if self._guest_has_it and self._node is not None:
            try:
                write_events(self._node, events)
            except OSError as error:
                log.warning("%s: the driver's status cannot be written: %s", self._path, error.strerror)

    def close(self) -> None:
        """Closes the node, which ends the grab; idempotent."""
        self._threads.close()
        if self._node is not None:
            self._node.close()
            self._node = None

    # --- Who has the node -------------------------------------------------------------------------------

    def _driver_listens(self, listening: bool) -> None:  # noqa: FBT001 (what a sink calls)
        self._listening = listening
        self._update_owner()

    def _update_owner(self) -> None:
        """Gives the node to the guest or to the host, as soon as possible."""
        self._cancel_retry()
        if self._node is None or self._gone is None or self._gone.done():
            return
        due = self._listening and not self._lent_to_host
        try:
            if due and not self._guest_has_it:
                self._take_over(self._node)
            elif self._guest_has_it and not due:
                self._hand_back(self._node)
        except OSError as error:
            self._set_gone(reason(error))

    def _take_over(self, node: Node) -> None:
        if why_not := grab.take(node, alone=self._alone):
            self._log_once(f"the guest gets it later: {why_not}")
            self._retry = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._update_owner)
            return
        self._guest_has_it = True
        self._log_once("the guest has it")
        drain(node)
        self._restart_from_state(node)
        lit = lit_leds(node)
        self._hosts_leds = {code: code in lit for code in self.description.codes.get(EV_LED, ())}
        _set_leds(node, self._leds)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _hand_back(self, node: Node) -> None:
        self._guest_has_it = False
        self._log_once("the host has it")
        if self._alone:
            grab.give(node)
            with suppress(OSError):  # it is gone
                _set_leds(node, self._hosts_leds)  # last: the kernel sets its console's LEDs on ungrab
        if self._origin is not None:
            self._origin.release()

    def _log_once(self, what: str) -> None:
        if what != self._last_logged:
            log.info("%s: %s", self._path, what)
        self._last_logged = what

    # --- Its events -------------------------------------------------------------------------------------

    async def _read(self, node: Node) -> str:
        """Reads until the node is gone; returns the reason."""
        loop = asyncio.get_running_loop()
        self._gone = loop.create_future()
        loop.add_reader(node.fd, self._readable, node)
        try:
            self._driver_listens(self._listening)
            return await self._gone
        finally:
            loop.remove_reader(node.fd)
            self._cancel_retry()
            if self._guest_has_it:
                self._hand_back(node)

    def _readable(self, node: Node) -> None:
        try:
            if data := os.read(node.fd, READ_SIZE):
                self._take_events(data, node)
                self._update_owner()
            else:
                self._set_gone("end of file")
        except BlockingIOError:
            pass
        except OSError as error:
            self._set_gone(reason(error))

    def _take_events(self, data: bytes, node: Node) -> None:
        """Hands the guest its events, up to the end of a chord."""
        if not self._guest_has_it and self._chord is None:
            return
        reports = bytearray()
        last = (EV_SYN, SYN_REPORT)
        try:
            for _, _, kind, code, value in INPUT_EVENT.iter_unpack(data):
                last = (kind, code)
                if last == (EV_SYN, SYN_DROPPED):
                    self._lossy = True
                elif not self._lossy:
                    reports += self._reports.add(kind, code, value)
                    if self._completes_chord(kind, code, value):
                        self._lent_to_host = not self._lent_to_host
                        break
        except BadEvent as error:
            log.warning("%s: %s", self._path, error)
            self._lossy = True
        if self._guest_has_it and self._origin is not None:
            self._origin.deliver(bytes(reports))
        # Reading the state makes the kernel drop key events that are still queued. So no event that is older
        # than the state may be used after it: go on only where a report begins.
        if self._lossy and last == (EV_SYN, SYN_REPORT):
            log.warning("%s: events were lost, the state is read anew", self._path)
            self._restart_from_state(node, lossy=True)

    def _completes_chord(self, kind: int, code: int, value: int) -> bool:
        """Whether this event completes a chord. Without a guest that listens, no chord counts."""
        return self._chord is not None and self._chord.follow(kind, code, value) and self._listening

    def _restart_from_state(self, node: Node, *, lossy: bool = False) -> None:
        """Reads the node's state and goes on from it; the events before it are dropped."""
        self._lossy = False
        self._reports.clear()
        if self._chord is not None:
            self._chord.begin(held_keys(node))
        if self._guest_has_it and self._origin is not None:
            state = read_state(node, self.description)
            self._origin.replace(state) if lossy else self._origin.change(state)

    def _set_gone(self, why: str) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(why)

    async def _wait_for_device(self) -> Node:
        """Waits until the same device is plugged in again."""
        said = ""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                return await self._threads.run(partial(open_same, self._path, self.description))
            except (OSError, SetupError) as error:
                why = reason(error) if isinstance(error, OSError) else str(error)
                if why != said:
                    log.info("%s: %s", self._path, why)
                said = why


def _set_leds(node: Node, leds: Mapping[int, int]) -> None:
    """Sets LEDs; raises OSError."""
    if leds:
        write_events(node, b"".join(EVENT.pack(EV_LED, *led) for led in leds.items()) + SYN_REPORT_EVENT)


def _open(path: str, *, wait: bool) -> Node:
    """Opens a node. Without one: SetupError, or with `wait` tries again until a signal ends the program."""
    said = False
    while True:
        try:
            return open_node(path)
        except OSError as error:
            if not wait or error.errno not in ABSENT:
                raise SetupError(f"{path}: {reason(error)}") from error
        if not said:
            log.info("%s: the input device is waited for", path)
        said = True
        pause(LOOK_INTERVAL)
