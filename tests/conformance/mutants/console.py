"""Faults of a console device. Bytes take no shortcut where a fault is in their way."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from vhost_user_console import control
from vhost_user_console.control import Control
from vhost_user_console.device import Console
from vhost_user_console.port import Port
from vhost_user_console.protocol import Event, VirtioConsoleConfig, VirtioConsoleControl
from vhost_user_console.told import Facts, News, Told
from vhostd import Chain, RefusedRequest, Virtqueue

HEADER = VirtioConsoleControl.SIZE


def change_news(new: Any) -> None:
    """Has the device say something else: `new` gets what it was told, the facts, and what it would say."""
    replace(Told, "news", lambda before, self, facts: new(self, facts, before(self, facts)))


def when_ignored(new: Callable[[], object]) -> None:
    """Calls `new` for each message of the driver that is ignored since it makes no sense."""
    replace(control.log, "warning", lambda _before, *_message: new())


def die() -> bool:
    """As by a fault of memory."""
    signal.raise_signal(signal.SIGKILL)
    return False


@breaks("PORT-1", "a write to emerg_wr was refused", program="console")
def emergency_needs_a_ring() -> None:
    """emerg_wr is read-only."""

    def write_config(_before: Any, _self: Console, offset: int, _data: bytes) -> None:
        raise RefusedRequest(f"byte {offset} is read-only")

    replace(Console, "write_config", write_config)


@breaks("PORT-2", "max_nr_ports is 512, and there are 6 queues", program="console")
def more_ports_than_queues() -> None:
    """max_nr_ports is what QEMU has there."""
    replace(Console, "read_config", lambda _, self: VirtioConsoleConfig(0, 0, 512, 0).pack())


@breaks("PORT-3", "PORT_ADD did not come after DEVICE_READY", program="console")
def not_ready_ever() -> None:
    """DEVICE_READY is not heard."""
    replace(Control, "_hear_of_device", lambda _before, _self, *, on: None)


@breaks("PORT-4", "port 2 was added, and max_nr_ports is 2", program="console")
def ports_from_one() -> None:
    """Ports count from 1 in its messages."""

    def write(before: Any, chain: Chain, port: Port, news: News) -> None:
        before(chain, Port(port.number + 1, port.line, name=port.name), news)

    replace(control, "_write", write)


@breaks("PORT-5", "message 1 came before DEVICE_READY", program="console")
def ready_at_once() -> None:
    """Ports are added as soon as there is room to say so."""

    async def receiveq(before: Any, self: Control, queue: Virtqueue) -> None:
        self.begin()
        await before(self, queue)

    replace(Control, "receiveq", receiveq)


@breaks("PORT-6", "PORT_READY of port 0 has no answer", program="console")
def ports_without_description() -> None:
    """Ports are added, and that is all."""
    change_news(lambda told, facts, news: news and (news if news.event == Event.PORT_ADD else None))


@breaks("PORT-7", "port 1 has a name without a character", program="console")
def empty_name() -> None:
    """A name is announced, and not told."""

    def write(before: Any, chain: Chain, port: Port, news: News) -> None:
        if news.event != Event.PORT_NAME:
            before(chain, port, news)
        else:
            chain.write(VirtioConsoleControl(port.number, news.event, 1).pack())

    replace(control, "_write", write)


@breaks("PORT-7", "a message of type 3 came, which no device sends", program="console")
def echo_of_ready() -> None:
    """PORT_READY is the answer to PORT_READY."""

    def write(before: Any, chain: Chain, port: Port, news: News) -> None:
        event = Event.PORT_READY if news.event == Event.PORT_NAME else news.event
        before(chain, port, news._replace(event=event))

    replace(control, "_write", write)


@breaks("PORT-7", "it says no end of messages", program="console")
def same_name_again() -> None:
    """It forgets that it has told a name."""

    def tell(before: Any, self: Told, news: News) -> None:
        before(self, news)
        self.has_name = False

    replace(Told, "tell", tell)


@breaks("PORT-8", "port 2 was removed, and never added", program="console")
def next_port_is_removed() -> None:
    """With the last port its neighbour is removed, whether it is there or not."""
    removed = []

    def hear(before: Any, self: Control, port: Port, *, on: bool) -> None:
        if not on and port.number == 1:
            removed.append(port.told)
        before(self, port, on=on)

    def write(before: Any, chain: Chain, port: Port, news: News) -> None:
        if news.event == Event.PORT_REMOVE:
            removed.clear()
            chain.write(VirtioConsoleControl(port.number + 1, news.event, 0).pack())
        else:
            before(chain, port, news)

    def news(told: Told, _facts: Facts, news: News | None) -> News | None:
        return News(Event.PORT_REMOVE) if told in removed else news

    replace(Control, "_hear_of_port", hear)
    replace(control, "_write", write)
    change_news(news)


@breaks("PORT-9", "the program was ended by SIGKILL", program="console")
def cut_message() -> None:
    """A message is read without a look at its size."""

    def hear(before: Any, self: Control, chain: Chain) -> None:
        if chain.readable >= HEADER or die():
            before(self, chain)

    replace(Control, "_hear", hear)


@breaks("PORT-10", "the program was ended by SIGKILL", program="console")
def port_as_an_index() -> None:
    """The number of a port is trusted."""
    when_ignored(die)


@breaks("PORT-11", "message 0x7777 of port 0x0 was not taken", program="console", patience=SILENCE)
def unknown_messages_stay() -> None:
    """A message that it does not know is not given back."""

    ignored: list[bool] = []
    when_ignored(lambda: ignored.append(True))

    async def transmitq(_before: Any, self: Control, queue: Virtqueue) -> None:
        async for chain in queue:
            self._hear(chain)
            if not ignored:
                queue.push(chain)

    replace(Control, "transmitq", transmitq)


@breaks("PORT-12", "the program was ended by SIGKILL", program="console")
def no_room_is_no_matter() -> None:
    """A message is written without a look at the room."""

    def write(before: Any, chain: Chain, port: Port, news: News) -> None:
        if chain.writable >= HEADER or die():
            before(chain, port, news)

    replace(control, "_write", write)


@breaks("PORT-13", "ports [0, 1] were added first, and [] when it was set up again", program="console")
def ports_are_added_once() -> None:
    """What the first driver was told the next one is not told."""
    replace(Control, "reset", lambda _, self: None)

    def begin(before: Any, self: Control) -> None:
        if not self.is_ready:
            before(self)

    replace(Control, "begin", begin)


@breaks("PORT-14", "was not taken while bytes waited", program="console", patience=SILENCE)
def one_for_all() -> None:
    """One task serves all queues, and a port that takes nothing keeps it."""
    _keep_bytes()
    replace(Control, "transmitq", _after_bytes)


@breaks("PORT-15", "64 buffers of 4 KiB did not come back", program="console", patience=SILENCE)
def bytes_wait_for_a_reader() -> None:
    """What a driver sends waits until somebody reads it."""
    _keep_bytes()


@breaks("PORT-16", "the program was ended by SIGKILL", program="console")
def nothing_to_read() -> None:
    """Bytes are taken to be there."""

    async def transmitq(_before: Any, _self: Port, queue: Virtqueue) -> None:
        async for chain in queue:
            if chain.readable or die():
                queue.push(chain)

    replace(Port, "transmitq", transmitq)


_has_bytes = asyncio.Event()


def _keep_bytes() -> None:
    """What a driver sends is never given back."""

    async def transmitq(_before: Any, _self: Port, queue: Virtqueue) -> None:
        kept = []
        async for chain in queue:
            kept.append(chain)
            _has_bytes.set()

    replace(Port, "transmitq", transmitq)


async def _after_bytes(_before: Any, self: Control, queue: Virtqueue) -> None:
    """Hears messages until there are bytes."""
    async for chain in queue:
        if _has_bytes.is_set():
            await asyncio.Future()
        self._hear(chain)
        queue.push(chain)
