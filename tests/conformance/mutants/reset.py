"""Faults of what happens when a guest begins anew."""

import signal
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import MalformedMessage
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.negotiation import Negotiation
from vhostd.vhost_user.status import Status
from vhostd.vhost_user.vring import Vring


@breaks("RST-1", "a valid request was not answered")
def base_stays() -> None:
    """A ring that has run goes on where it was, whatever its new base."""
    replace(Vring, "set_base", lambda before, self, base: before(self, self.base or base))


@breaks("RST-2", "the device did not interrupt for a valid request", patience=SILENCE)
def features_stay() -> None:
    """The first features that are negotiated count."""

    async def set_features(before: Any, self: Negotiation, features: Any) -> None:
        if not self._state.features:
            await before(self, features)

    replace(Negotiation, "set_features", set_features)


@breaks("RST-3", "a valid request was not answered", patience=SILENCE)
def memory_stays() -> None:
    """The first memory that is shared counts."""

    def set_mem_table(before: Any, self: Memory, table: Any, fds: Any) -> None:
        if not self.map.regions:
            before(self, table, fds)

    replace(Memory, "set_mem_table", set_mem_table)


@breaks("RST-4", "a request was answered after RESET_DEVICE")
def reset_is_ignored() -> None:
    """RESET_DEVICE does nothing."""

    async def reset_device(_before: Any, _self: Status, _empty: Any) -> None:
        pass

    replace(Status, "reset_device", reset_device)


@breaks("RST-5", "it closed the connection")
def reset_closes() -> None:
    """RESET_DEVICE ends the connection."""
    replace(Status, "reset_device", _malformed)


@breaks("RST-6", "the program was ended by SIGKILL")
def reset_needs_rings() -> None:
    """RESET_DEVICE relies on rings that were set up."""

    def reset_device(before: Any, self: Status, empty: Any) -> Any:
        if not self._state.is_running:
            signal.raise_signal(signal.SIGKILL)
        return before(self, empty)

    replace(Status, "reset_device", reset_device)


@breaks("RST-7", "RESET_OWNER closed the connection")
def owner_ends_the_connection() -> None:
    """RESET_OWNER is understood as the session's end."""
    replace(Status, "reset_owner", _malformed)


@breaks("RST-8", "a valid request was not answered", patience=SILENCE)
def owner_stops_rings() -> None:
    """RESET_OWNER is a reset of everything."""

    async def reset_owner(_before: Any, self: Status, _empty: Any) -> None:
        await self._rings.stop_all()

    replace(Status, "reset_owner", reset_owner)


def _malformed(*_: Any) -> None:
    raise MalformedMessage("it is not done any more")
