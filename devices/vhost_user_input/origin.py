"""One origin of the guest's reports: an evdev node, a recording, or a client of the event socket."""

from typing import Protocol

from vhost_user_input.events import ABS_MT_SLOT, EV_ABS, EVENT
from vhost_user_input.state import State


class Carrier(Protocol):
    """Takes the reports of all origins."""

    origins: "set[Origin]"

    @property
    def state(self) -> State:
        """The state that all reports so far lead to."""

    def deliver(self, reports: bytes) -> None:
        """Takes whole reports, packed. They reach the guest if its driver listens."""

    def replace(self, state: State) -> None:
        """Takes the device's present state, after reports were lost."""


class Origin:
    """Hands on reports, and knows which keys, buttons and contacts they hold down.

    Its maker must call `leave` in the end, so that nothing stays down in the guest.
    """

    def __init__(self, carrier: Carrier, *, slots: bool) -> None:
        self.state = State(slots=slots)
        self._carrier = carrier
        carrier.origins.add(self)

    def deliver(self, reports: bytes) -> None:
        """Hands on whole reports, packed. They begin in the slot that this origin has selected last."""
        if reports and self.state.slot != self._carrier.state.slot:
            reports = EVENT.pack(EV_ABS, ABS_MT_SLOT, self.state.slot) + reports
        self.state.apply(reports)
        self._carrier.deliver(reports)

    def change(self, state: State) -> None:
        """Brings the guest to this state by reports; no report was lost."""
        self._carrier.deliver(self.state.until(state))
        self.state = state

    def replace(self, state: State) -> None:
        """Takes the present state of the origin, after reports were lost."""
        self.state = state
        self._carrier.replace(state.released(()))

    def release(self) -> None:
        """Lifts the keys and contacts that this origin holds, except those that another one holds too."""
        others = [each.state.held() for each in self._carrier.origins if each is not self]
        now = self._carrier.state
        down = now.held()
        mine = [
            element
            for element, value in self.state.held().items()
            if down.get(element) == value and not any(each.get(element) == value for each in others)
        ]
        self.state = self.state.released()
        self._carrier.deliver(now.until(now.released(mine)))

    def leave(self) -> None:
        """Releases, and reports nothing any more."""
        self.release()
        self._carrier.origins.discard(self)
