"""An evemu file as the source: its device, and its events with their original timing."""

import asyncio
import logging
import os
import stat

from vhost_user_input.evemu import Event, Recording, format_event, parse
from vhost_user_input.events import EV_SW, EVENT, BadEvent
from vhost_user_input.origin import Origin
from vhost_user_input.reports import Reports
from vhost_user_input.source import Sink
from vhost_user_input.state import State
from vhostd import Grants, SetupError

log = logging.getLogger(__name__)


class EvemuSource:
    """Plays a recording once, from the moment when the guest's driver first listens.

    A guest that stops listening makes the replay wait: the time until it listens again does not count.
    """

    def __init__(self, path: str, *further: str) -> None:
        """The first file describes the device; further files have events only."""
        recording = parse(_read(path), path, *((_read(each), each) for each in further))
        self.description = recording.description
        self._switches = recording.switches
        self._reports = _timed_reports(recording, (path, *further)[-1])

    def greet(self) -> None:
        """Has no effect: a recording is played once."""

    def grants(self) -> Grants:
        """Nothing: the recording has been read already."""
        return Grants()

    async def run(self, sink: Sink) -> None:
        """Plays the recording and returns at its end. Keys that it leaves pressed are released."""
        origin = sink.origin()
        try:
            if self._switches:
                origin.replace(self._initial_state())
            await self._play(sink, origin)
        finally:
            origin.leave()

    def _initial_state(self) -> State:
        state = State(slots=self.description.slots > 0)
        for switch in self._switches:
            state.set(EV_SW, switch, 1)
        return state

    async def _play(self, sink: Sink, origin: Origin) -> None:
        loop = asyncio.get_running_loop()
        await sink.room()
        began = loop.time()
        for offset, report in self._reports:
            if (delay := began + offset - loop.time()) > 0:
                await asyncio.sleep(delay)
            asked = loop.time()
            await sink.room()
            began += loop.time() - asked
            origin.deliver(report)
        if self._reports:
            log.info("the recording has been played")

    def write(self, events: bytes) -> None:
        """Logs the events, since no real device is there to take them."""
        for event in EVENT.iter_unpack(events):
            log.info("from the driver: %s", format_event((0, *event)))

    def close(self) -> None:
        """Has no effect: nothing is held open."""


def _read(path: str) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SetupError(f"--evemu-path={path}: not a regular file, which alone is sure to end")
        # A name may be in any encoding; its bytes are kept as they are.
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise SetupError(f"--evemu-path={path}: {error.strerror}") from error


def _timed_reports(recording: Recording, path: str) -> list[tuple[float, bytes]]:
    """The whole reports of a recording with their times, in seconds after its first event."""
    reports = Reports(recording.description)
    timed = []
    for event in recording.events:
        try:
            report = reports.add(*event[1:])
        except BadEvent as error:
            raise SetupError(f"{path}: {error}, at {_seconds(event, recording):.6f} seconds") from None
        if report:
            timed.append((_seconds(event, recording), report))
    if reports.incomplete:
        log.warning("%s: the last %d events have no SYN_REPORT and are not played", path, reports.incomplete)
    return timed


def _seconds(event: Event, recording: Recording) -> float:
    return (event[0] - recording.events[0][0]) / 1_000_000
