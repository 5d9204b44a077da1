"""One of those whose reports come to the guest: an evdev node, a recording, a client of the event socket."""

from typing import Protocol

from vhost_user_input.events import ABS_MT_SLOT, EV_ABS, EVENT
from vhost_user_input.state import State


class Carrier(Protocol):
    """What takes the reports of all origins."""

    origins: "set[Origin]"

    @property
    def state(self) -> State:
        """What all reports so far come to."""

    def deliver(self, reports: bytes) -> None:
        """Takes whole reports, packed; they reach the guest if its driver listens."""

    def replace(self, state: State) -> None:
        """The device is in this state now, whatever was delivered before."""


class Origin:
    """Hands on reports, and knows what is held by them: keys, buttons and contacts that are down.

    Whoever makes one releases it in the end, so that nothing stays down in the guest.
    """

    def __init__(self, carrier: Carrier, *, slots: bool) -> None:
        self.state = State(slots=slots)
        self._carrier = carrier
        carrier.origins.add(self)

    def deliver(self, reports: bytes) -> None:
        """Hands on whole reports, packed; they are about the slot that this origin has named last."""
        if reports and self.state.slot != self._carrier.state.slot:
            reports = EVENT.pack(EV_ABS, ABS_MT_SLOT, self.state.slot) + reports
        self.state.apply(reports)
        self._carrier.deliver(reports)

    def change(self, state: State) -> None:
        """Has come to this state without any reports, of which the guest has missed nothing."""
        self._carrier.deliver(self.state.until(state))
        self.state = state

    def replace(self, state: State) -> None:
        """Is in this state, and reports were lost."""
        self.state = state
        self._carrier.replace(state.released(()))

    def release(self) -> None:
        """Lifts what nobody else holds."""
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
        """Releases, for good."""
        self.release()
        self._carrier.origins.discard(self)
