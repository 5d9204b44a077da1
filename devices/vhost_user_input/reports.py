"""Cuts a stream of single events into whole reports, packed for the eventq."""

from vhost_user_input.description import Description
from vhost_user_input.events import (
    EV_KEY,
    EV_SYN,
    EVENT,
    KEY_REPEATED,
    STATUS_TYPES,
    SYN_REPORT,
    SYN_REPORT_EVENT,
    BadEvent,
)

# In events: sixty contacts with ten values each fit. A report that never ends must not fill the memory.
MAX_REPORT = 1024


class Reports:
    """Collects events until their report is complete.

    Some events are left out. The driver sets LEDs, sounds and repeat rates; an echo of them could make both
    sides set them again for ever. A guest that repeats held keys by itself gets no repeated key events, since
    it would see them twice.
    """

    def __init__(self, description: Description) -> None:
        self._guest_repeats = description.repeats
        self._partial = bytearray()
        self._overlong = False

    @property
    def incomplete(self) -> int:
        """How many events wait for their SYN_REPORT."""
        return len(self._partial) // EVENT.size

    def add(self, kind: int, code: int, value: int) -> bytes:
        """Takes one event; returns the report that it completes, or b"".

        Raises BadEvent for the first event above MAX_REPORT; then the whole report is dropped.
        """
        if kind == EV_SYN and code == SYN_REPORT:
            return self._complete()
        if kind in STATUS_TYPES or self._overlong:
            return b""
        if kind == EV_KEY and value == KEY_REPEATED and self._guest_repeats:
            return b""
        if self.incomplete >= MAX_REPORT - 1:
            self._overlong = True
            raise BadEvent(f"the report has more than {MAX_REPORT} events")
        self._partial += EVENT.pack(kind, code, value)
        return b""

    def clear(self) -> None:
        """Drops the incomplete report."""
        self._partial.clear()
        self._overlong = False

    def _complete(self) -> bytes:
        empty = not self._partial or self._overlong
        report = b"" if empty else bytes(self._partial) + SYN_REPORT_EVENT
        self.clear()
        return report
