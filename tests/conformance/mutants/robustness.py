"""Faults that show when a front-end fails."""

import os
import signal
import time
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.vhost_user.dispatch import Dispatcher
from vhostd.vhost_user.session import Session
from vhostd.vhost_user.vring import Vring
from vhostd.wire.channel import Channel

KEPT: list[Any] = []
DIED = "was ended by signal 9"


def die() -> None:
    """Ends the program."""
    signal.raise_signal(signal.SIGKILL)


@breaks("ROB-1", DIED)
def dies_with_memory() -> None:
    """A front-end that goes without a ring, but with memory, ends the program."""

    def close(before: Any, self: Session) -> Any:
        if self._memory.map.regions and not self.state.is_running:
            die()
        return before(self)

    replace(Session, "_close", close)


@breaks("ROB-2", DIED)
def dies_with_rings() -> None:
    """A front-end that goes while rings run ends the program."""

    def close(before: Any, self: Session) -> Any:
        if self.state.is_running:
            die()
        return before(self)

    replace(Session, "_close", close)


@breaks("ROB-3", DIED)
def dies_of_a_reply() -> None:
    """A reply that cannot be sent ends the program."""

    async def send(before: Any, self: Dispatcher, message: Any, reply: Any) -> bool:
        try:
            done: bool = await before(self, message, reply)
        except BaseException:
            die()
            raise
        if not done:
            die()
        return done

    replace(Dispatcher, "_send", send)


@breaks("ROB-6", "fds, and after 20 front-ends", patience=5.0)
def leaves_fds() -> None:
    """Each session leaves an fd behind."""

    def close(before: Any, self: Session) -> Any:
        KEPT.append(os.open("/dev/null", os.O_RDONLY))
        return before(self)

    replace(Session, "_close", close)


@breaks("ROB-7", "its memory has grown by")
def leaves_memory() -> None:
    """Each session leaves memory behind."""

    def close(before: Any, self: Session) -> Any:
        KEPT.append(os.urandom(1 << 16))
        return before(self)

    replace(Session, "_close", close)


@breaks("ROB-17", "afterwards it served no new front-end", patience=SILENCE)
def kicks_first() -> None:
    """Too many kicks keep it from all else."""
    count: list[None] = []

    def kicked(before: Any, self: Vring) -> None:
        count.append(None)
        if len(count) > 50:
            time.sleep(3600)
        before(self)

    replace(Vring, "_kicked", kicked)


@breaks("ROB-11", DIED)
def features_once() -> None:
    """Features that change while a ring runs end the program."""
    from vhostd.vhost_user.negotiation import Negotiation

    def set_features(before: Any, self: Negotiation, *arguments: Any) -> Any:
        if self._state.is_running:
            die()
        return before(self, *arguments)

    replace(Negotiation, "set_features", set_features)


@breaks("ROB-15", DIED)
def dies_of_nonsense() -> None:
    """A request that is refused ends the program."""

    async def handle(before: Any, self: Dispatcher, message: Any) -> Any:
        try:
            return await before(self, message)
        except RefusedRequest:
            die()

    replace(Dispatcher, "_handle", handle)


@breaks("ROB-10", DIED)
def order_matters() -> None:
    """A ring that is not known well enough to be started ends the program."""
    from vhostd.vhost_user.rings import Rings

    def set_vring_kick(before: Any, self: Rings, *arguments: Any) -> Any:
        try:
            return before(self, *arguments)
        except RefusedRequest:
            die()

    replace(Rings, "set_vring_kick", set_vring_kick)


@breaks("ROB-14", DIED)
def dies_of_noise() -> None:
    """What is no message ends the program."""

    async def receive(before: Any, self: Channel) -> Any:
        try:
            return await before(self)
        except MalformedMessage:
            die()

    replace(Channel, "receive", receive)
