"""The reports that the guest has yet to get.

Whole reports wait here, packed and in order, until the driver has buffers for them. Two states are kept with
them. The *device's* state follows every report as it comes in. The *guest's* state follows every event that
was delivered. When reports get lost, the difference between the two states brings the guest up to date:

    the backlog is full              new reports are dropped until it has drained; the guest gets
                                     SYN_DROPPED, then the difference, then newer reports
    the source itself lost events    the same, with the state that the source has read anew
    no driver listens                nothing waits; the driver gets the difference when it starts
    the guest goes elsewhere         both states go with it, and another program makes the difference
    the program ends                 what waits is dropped; the guest is told that everything is released
"""

from vhost_user_input.description import Description
from vhost_user_input.events import EVENT, SYN_DROPPED_REPORT, SYN_REPORT_EVENT
from vhost_user_input.state import State
from vhostd import Unpacker

CAPACITY = 16384  # events: some seconds of the fastest devices, 128 KiB


class Backlog:
    """The queue between a source of reports and the eventq; sizes are in events."""

    def __init__(self, *, slots: bool, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.listening = False
        self._waiting = bytearray()
        self.device = State(slots=slots)
        self._guest = State(slots=slots)
        self._behind = True  # reports were lost, and `_waiting` does not have the difference yet
        self._dropped = False  # ... and the driver listened: it must get SYN_DROPPED
        self._torn = False  # the last delivered event was not the end of a report

    def __len__(self) -> int:
        return len(self._waiting) // EVENT.size

    def start(self) -> None:
        """A driver listens from now on. The changes that it missed are queued for it."""
        if not self.listening:
            self.listening = True
            self._catch_up()

    def stop(self) -> None:
        """No driver listens any more. What waits is dropped, even the rest of a report.

        The guest may reboot, rebind its driver or only pause; the device cannot tell. So every value of the
        guest's state that is not at rest becomes unknown. A driver ignores an event that changes nothing.
        """
        self.listening = False
        self._waiting.clear()
        self._guest.doubt()
        self._behind = True
        self._dropped = False

    def doubt(self, description: Description) -> None:
        """Makes the guest's whole state unknown: an earlier program may have sent it anything.

        No driver may listen.
        """
        self._guest.doubt_all(description, self.device)

    def save(self) -> bytes:
        """What another program needs to go on, as bytes; no driver listens."""
        return bytes([self._torn]) + self._guest.pack() + self.device.pack()

    def load(self, unpacker: Unpacker, description: Description) -> None:
        """Goes on for another program's guest, with what `save` gave there; no driver listens.

        Keys, switches and contacts are as they are here: what was held there is held no more. Axes stay where
        they were until one here moves. RefusedRequest, and nothing has changed, if the bytes are wrong, or
        not the last that the unpacker has.
        """
        (torn,) = unpacker.take(1)
        guest, device = (State.unpack(unpacker, description) for _ in range(2))
        unpacker.end()
        guest.doubt()  # as at the ring's stop
        self._torn = bool(torn)
        self._guest = guest
        self.device = device.moved_to(self.device)

    def end(self) -> None:
        """Drops what waits, and releases everything that is held. A guest that listens gets only that."""
        self._waiting.clear()
        self.device = self._guest.released()
        self._behind = True
        self._dropped = False
        self._catch_up()

    def add(self, reports: bytes) -> None:
        """Takes whole reports. Either all of them are delivered or none."""
        self.device.apply(reports)
        if not self.listening:
            return
        if self._behind or len(self._waiting) + len(reports) > self.capacity * EVENT.size:
            self._lose()
        else:
            self._waiting += reports

    def replace(self, state: State) -> None:
        """Takes a state that the source has read anew, because reports before it were lost."""
        self.device = state
        self._lose()

    def head(self, limit: int) -> bytes:
        """The first events that wait, packed, at most `limit`. They wait on until `delivered` is called."""
        return bytes(self._waiting[: limit * EVENT.size])

    def delivered(self, events: bytes) -> None:
        """Removes the first events, since the guest has got them."""
        if events:
            del self._waiting[: len(events)]
            self._guest.apply(events)
            self._torn = not events.endswith(SYN_REPORT_EVENT)
            self._catch_up()

    def _lose(self) -> None:
        self._behind = True
        self._dropped = self.listening
        self._catch_up()

    def _catch_up(self) -> None:
        # While events wait, the guest's state still changes. So the difference needs an empty backlog.
        if not self._behind or self._waiting or not self.listening:
            return
        if self._dropped:
            self._waiting += SYN_DROPPED_REPORT
        self._waiting += self._guest.until(self.device)
        if self._torn and not self._waiting:
            # If the guest only paused, it still waits for the end of the report that `stop` cut.
            self._waiting += SYN_REPORT_EVENT
        self._behind = self._dropped = False
