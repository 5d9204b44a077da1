"""An evdev node of the host as the source, which the guest has alone, unless that is not wanted."""

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

LOOK_INTERVAL = 0.1  # seconds between looks for a device that is not plugged in, or not to be had
ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


class EvdevSource:
    """Reads a node in bulk; owns its fd. What the kernel loses is made up for by reading the state anew.

    The guest has the node while its driver listens, from a moment on at which no key is down: what was typed
    before is the host's. With `toggle`, both Control keys give it to the host, and back. With `wait`, a
    device that is not plugged in is waited for, and the guest keeps its own meanwhile.
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
        self._leds: dict[int, int] = {}  # as the driver set them
        self._hosts_leds: dict[int, int] = {}  # as they were before
        self._listening = False
        self._lent = False  # to the host, by the chord
        self._ours = False  # the guest has the node
        self._lossy = False  # events were lost: what comes is no use until the state has been read
        self._said = ""
        self._again: asyncio.TimerHandle | None = None  # to look whether nothing is in the way any more
        self._origin: Origin | None = None
        self._gone: asyncio.Future[str] | None = None
        self._threads = Threads(name="evdev")

    def grants(self) -> Grants:
        """What the node needs, which may come back as another one if it is waited for."""
        return grants(reopened=self._wait)

    def greet(self) -> None:
        """What the host was lent, it was lent by the user of another virtual machine."""
        self._lent = False

    async def run(self, sink: Sink) -> None:
        """Reads until the node is gone, which raises SetupError unless it is to be waited for."""
        assert self._node is not None  # it is open until `close`
        node = self._node
        self._origin = origin = sink.origin()
        sink.watch(self._attend)
        try:
            while True:
                why = await self._read(node)
                if not self._wait:
                    raise SetupError(f"{self._path}: the input device is gone: {why}")
                log.warning("%s: the input device is gone, and waited for: %s", self._path, why)
                node.close()
                node = self._node = await self._find()
                log.info("%s: the input device is back", self._path)
        finally:
            origin.leave()

    def write(self, events: bytes) -> None:
        """Writes the events to the node, while the guest has it; LEDs are made up for when it gets it.

        A host that does without the node meanwhile gets its LEDs back as they were.
        """
        self._leds |= {code: value for kind, code, value in EVENT.iter_unpack(events) if kind == EV_LED}
        if self._ours and self._node is not None:
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

    # --- Whose it is ------------------------------------------------------------------------------------

    def _attend(self, listening: bool) -> None:  # noqa: FBT001 (what a sink calls)
        self._listening = listening
        self._settle()

    def _settle(self) -> None:
        """Gives the node to whom it is due, as soon as that can be."""
        self._call_off()
        if self._node is None or self._gone is None or self._gone.done():
            return
        due = self._listening and not self._lent
        try:
            if due and not self._ours:
                self._take_over(self._node)
            elif self._ours and not due:
                self._hand_back(self._node)
        except OSError as error:
            self._end(reason(error))

    def _take_over(self, node: Node) -> None:
        if why_not := grab.take(node, alone=self._alone):
            self._say(f"the guest gets it later: {why_not}")
            self._again = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._settle)
            return
        self._ours = True
        self._say("the guest has it")
        drain(node)
        self._begin(node)
        lit = lit_leds(node)
        self._hosts_leds = {code: code in lit for code in self.description.codes.get(EV_LED, ())}
        _light(node, self._leds)

    def _call_off(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _hand_back(self, node: Node) -> None:
        self._ours = False
        self._say("the host has it")
        if self._alone:
            grab.give(node)
            with suppress(OSError):  # it is gone
                _light(node, self._hosts_leds)  # after the kernel, which sets those of its own console
        if self._origin is not None:
            self._origin.release()

    def _say(self, what: str) -> None:
        if what != self._said:
            log.info("%s: %s", self._path, what)
        self._said = what

    # --- What it says -----------------------------------------------------------------------------------

    async def _read(self, node: Node) -> str:
        """Reads until the node is gone, and says why."""
        loop = asyncio.get_running_loop()
        self._gone = loop.create_future()
        loop.add_reader(node.fd, self._readable, node)
        try:
            self._attend(self._listening)
            return await self._gone
        finally:
            loop.remove_reader(node.fd)
            self._call_off()
            if self._ours:
                self._hand_back(node)

    def _readable(self, node: Node) -> None:
        try:
            if data := os.read(node.fd, READ_SIZE):
                self._take(data, node)
                self._settle()
            else:
                self._end("end of file")
        except BlockingIOError:
            pass
        except OSError as error:
            self._end(reason(error))

    def _take(self, data: bytes, node: Node) -> None:
        """Hands on what is the guest's, up to a chord."""
        if not self._ours and self._chord is None:
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
                    if self._strikes(kind, code, value):
                        self._lent = not self._lent
                        break
        except BadEvent as error:
            log.warning("%s: %s", self._path, error)
            self._lossy = True
        if self._ours and self._origin is not None:
            self._origin.deliver(bytes(reports))
        # Reading the state makes the kernel forget key events that are still queued, so nothing older than
        # the state may be used after it: go on only where a report begins.
        if self._lossy and last == (EV_SYN, SYN_REPORT):
            log.warning("%s: events were lost, the state is read anew", self._path)
            self._begin(node, lossy=True)

    def _strikes(self, kind: int, code: int, value: int) -> bool:
        """Whether a chord that counts ends with this event; while no guest listens none does."""
        return self._chord is not None and self._chord.follow(kind, code, value) and self._listening

    def _begin(self, node: Node, *, lossy: bool = False) -> None:
        """Goes on from the node's state, after events that nobody will have."""
        self._lossy = False
        self._reports.clear()
        if self._chord is not None:
            self._chord.begin(held_keys(node))
        if self._ours and self._origin is not None:
            state = read_state(node, self.description)
            self._origin.replace(state) if lossy else self._origin.change(state)

    def _end(self, why: str) -> None:
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(why)

    async def _find(self) -> Node:
        """Waits until the same device is there again."""
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


def _light(node: Node, leds: Mapping[int, int]) -> None:
    """Sets LEDs; raises OSError."""
    if leds:
        write_events(node, b"".join(EVENT.pack(EV_LED, *led) for led in leds.items()) + SYN_REPORT_EVENT)


def _open(path: str, *, wait: bool) -> Node:
    """Opens a node; SetupError if there is none, which can be waited for until a signal asks for the end."""
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
