"""Faults that show when a front-end fails."""

import asyncio
import fcntl
import os
import select
import signal
import termios
import time
from array import array
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.program.server import Server, _hung_up
from vhostd.vhost_user import link, vring
from vhostd.vhost_user.dispatch import Dispatcher
from vhostd.vhost_user.notification import Notification, _Eventfd
from vhostd.vhost_user.session import Session
from vhostd.vhost_user.vring import Vring
from vhostd.wire.channel import Channel
from vhostd.wire.framing import Message

KEPT: list[Any] = []
DIED = "was ended by SIGKILL"


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


@breaks("ROB-4", "requests that were sent at once, ", patience=SILENCE)
def answers_the_last() -> None:
    """A request behind which another waits has no reply."""

    async def send(before: Any, self: Dispatcher, message: Any, reply: Any) -> bool:
        waiting = array("i", [0])
        fcntl.ioctl(self._channel._socket, termios.FIONREAD, waiting)
        done: bool = bool(waiting[0]) or await before(self, message, reply)
        return done

    replace(Dispatcher, "_send", send)


@breaks("ROB-5", "is kept open", patience=SILENCE)
def waits_for_more() -> None:
    """A front-end that says no more is waited for, until it goes."""

    async def receive(before: Any, self: Channel) -> Any:
        message = await before(self)
        if message is None:
            end = select.poll()
            end.register(self._socket, select.POLLHUP)
            while not end.poll(0):
                await asyncio.sleep(0.01)
        return message

    replace(Channel, "receive", receive)


@breaks("ROB-6", "fds, and after 20 front-ends", patience=3.0)
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


@breaks("ROB-9", "a second front-end hears nothing", patience=SILENCE)
def leaves_it_waiting() -> None:
    """A second front-end is let in, and has no answer."""

    def accept(before: Any, self: Server) -> None:
        if self._current is None or _hung_up(self._current):
            before(self)
        else:
            KEPT.append(self._endpoint.socket.accept())

    replace(Server, "_accept", accept)


@breaks("ROB-12", DIED)
def eventfds_only() -> None:
    """An fd that carries no notifications ends the program."""

    def make(before: Any, fd: Any) -> Any:
        try:
            return before(fd)
        except RefusedRequest:
            die()

    replace(vring, "notification", make)


@breaks("ROB-13", DIED)
def few_fds() -> None:
    """More than 8 fds end the program."""

    async def answer(before: Any, self: Dispatcher, message: Message) -> Any:
        if len(message.fds) > 8:
            die()
        return await before(self, message)

    replace(Dispatcher, "_answer", answer)


@breaks("ROB-16", DIED)
def replies_or_death() -> None:
    """A socket for requests that ends has the program end."""

    async def take_replies(before: Any, caller: Any) -> None:
        await before(caller)
        die()

    replace(link, "_take_replies", take_replies)


@breaks("ROB-18", "a request that was made available was not used", patience=SILENCE)
def room_for_interrupts() -> None:
    """A call fd that is full is a fault of the program's own."""

    def tell(before: Any, self: Notification) -> None:
        if _is_full(self):
            raise BlockingIOError("planted")
        before(self)

    replace(_Eventfd, "signal", tell)


@breaks("ROB-19", "afterwards it served no new front-end", patience=SILENCE)
def patient_interrupts() -> None:
    """A call fd is written to, however long that takes."""

    def tell(before: Any, self: Notification) -> None:
        if _is_full(self):
            os.write(self.fileno(), (1).to_bytes(8, "little"))
        before(self)

    replace(_Eventfd, "signal", tell)


def _is_full(notification: Notification) -> bool:
    room = select.poll()
    room.register(notification, select.POLLOUT)
    return not room.poll(0)


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
