"""What the guest is still to be told.

Whole reports wait here, packed and in order, until the driver has buffers for them. Two states run beside
them: the *device's*, which follows every report as it comes in, and the *guest's*, which follows every event
that was delivered. Wherever reports get lost, the difference of the two is what brings the guest up to date:

    the backlog is full              new reports are dropped until it has drained; the guest is told
                                     SYN_DROPPED, then the difference, then newer reports
    the source itself lost events    the same, with the state that the source has read anew
    no driver listens                nothing waits; the driver is told the difference when it starts
    the program ends                 what waits is dropped; the guest is told that nothing is held any more
"""

from vhost_user_input.description import Description
from vhost_user_input.events import EVENT, SYN_DROPPED_REPORT, SYN_REPORT_EVENT
from vhost_user_input.state import State

CAPACITY = 16384  # events: some seconds of the fastest devices, 128 KiB


class Backlog:
    """The queue between a source of reports and the eventq; sizes are in events."""

    def __init__(self, *, slots: bool, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self.listening = False
        self._waiting = bytearray()
        self.device = State(slots=slots)
        self._guest = State(slots=slots)
        self._behind = True  # reports were lost and the difference is not yet in `_waiting`
        self._dropped = False  # ... and a driver that listened is to know it
        self._torn = False  # the last delivered event was not the end of a report

    def __len__(self) -> int:
        return len(self._waiting) // EVENT.size

    def start(self) -> None:
        """A driver listens from now on; what it cannot know waits for it."""
        if not self.listening:
            self.listening = True
            self._catch_up()

    def stop(self) -> None:
        """Nobody listens any more: what waits is dropped, and be it the rest of a report.

        Whether the guest reboots, rebinds its driver or only pauses is unknown here, and so is from now on
        what it believes of anything that is not at rest. A driver ignores what it hears twice.
        """
        self.listening = False
        self._waiting.clear()
        self._guest.doubt()
        self._behind = True
        self._dropped = False

    def doubt(self, description: Description) -> None:
        """Another program, or another life of this one, may have told the guest anything. Nobody listens."""
        self._guest.doubt_all(description, self.device)

    def end(self) -> None:
        """Nothing is held any more, and a guest that listens is to know no more than that."""
        self._waiting.clear()
        self.device = self._guest.released()
        self._behind = True
        self._dropped = False
        self._catch_up()

    def add(self, reports: bytes) -> None:
        """Takes whole reports; all or none of them are to be delivered."""
        self.device.apply(reports)
        if not self.listening:
            return
        if self._behind or len(self._waiting) + len(reports) > self.capacity * EVENT.size:
            self._lose()
        else:
            self._waiting += reports

    def replace(self, state: State) -> None:
        """The device is in this state, whatever it reported before."""
        self.device = state
        self._lose()

    def head(self, limit: int) -> bytes:
        """The first events that wait, packed, at most `limit` of them; they go on waiting."""
        return bytes(self._waiting[: limit * EVENT.size])

    def delivered(self, events: bytes) -> None:
        """The guest has got these events, which were the first to wait."""
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
        # Only an empty backlog tells what the guest knows: all that was delivered, and nothing else.
        if not self._behind or self._waiting or not self.listening:
            return
        if self._dropped:
            self._waiting += SYN_DROPPED_REPORT
        self._waiting += self._guest.until(self.device)
        if self._torn and not self._waiting:
            # A guest that only paused still waits for the end of the report that `stop` cut.
            self._waiting += SYN_REPORT_EVENT
        self._behind = self._dropped = False
