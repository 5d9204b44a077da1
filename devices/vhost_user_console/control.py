"""The control queues: what driver and device tell each other of ports (virtio 1.3, 5.3.6.2)."""

import asyncio
import logging
from collections.abc import Mapping

from vhost_user_console.port import Port
from vhost_user_console.protocol import Event, VirtioConsoleControl, VirtioConsoleResize
from vhost_user_console.told import News, Told
from vhostd import BadRequest, Chain, Virtqueue

log = logging.getLogger(__name__)

HEADER = VirtioConsoleControl.SIZE


class Control:
    """Tells the driver what is new, and hears it. Messages that make no sense are ignored."""

    def __init__(self, ports: Mapping[int, Port]) -> None:
        self.is_ready = False  # the driver may be told of ports
        self._ports = ports
        self._has_news = asyncio.Event()
        for port in ports.values():
            port.changed = self.look

    async def receiveq(self, queue: Virtqueue) -> None:
        """Tells the driver what is new."""
        while await queue.ready():
            self.look()
            await self._has_news.wait()
            if (found := self._news()) and (chain := queue.pop()) is not None:
                port, news = found
                _write(chain, port, news)
                port.told.tell(news)
                queue.push(chain)
            # Neither of the waits above lets others run if there is nothing to wait for.
            await asyncio.sleep(0)

    async def transmitq(self, queue: Virtqueue) -> None:
        """Hears the driver."""
        async for chain in queue:
            self._hear(chain)
            queue.push(chain)

    def look(self) -> None:
        """There may be news."""
        if self._news():
            self._has_news.set()
        else:
            self._has_news.clear()

    def begin(self) -> None:
        """The driver may be told of ports, and of all of them anew."""
        self.is_ready = True
        for port in self._ports.values():
            port.told = Told()
        self.look()

    def reset(self) -> None:
        """The driver knows nothing, and listens to no port."""
        self.is_ready = False
        for port in self._ports.values():
            port.told = Told()
            port.guest_opens(on=False)
        self.look()

    def _news(self) -> tuple[Port, News] | None:
        if self.is_ready:
            for port in self._ports.values():
                if news := port.news():
                    return port, news
        return None

    def _hear(self, chain: Chain) -> None:
        if chain.readable < HEADER:
            log.warning("a control message of %d bytes is ignored", chain.readable)
            return
        message = chain.unpack(VirtioConsoleControl)
        on = message.value == 1
        port = self._ports.get(message.id)
        if message.event == Event.DEVICE_READY:
            self._hear_of_device(on=on)
        elif port is None:
            log.warning("a control message for port %d, which is not there, is ignored", message.id)
        elif message.event == Event.PORT_READY:
            self._hear_of_port(port, on=on)
        elif message.event == Event.PORT_OPEN:
            port.guest_opens(on=on)
        else:
            log.warning("port %d: a control message of type %d is ignored", message.id, message.event)

    def _hear_of_device(self, *, on: bool) -> None:
        if on:
            self.begin()
        else:
            log.warning("the guest's driver could not set the device up")

    def _hear_of_port(self, port: Port, *, on: bool) -> None:
        """The driver has set a port up, perhaps once more: then it is told all that it does not ask for."""
        if not on:
            log.warning("the guest's driver could not set port %d up", port.number)
        port.told.is_ready = on
        self.look()


def _write(chain: Chain, port: Port, news: News) -> None:
    """Writes a message into a buffer; a name that is too long for it is cut."""
    if chain.writable < HEADER:
        raise BadRequest(f"a buffer of {chain.writable} bytes for a control message")
    data = b""
    if news.event == Event.PORT_NAME:
        data = port.name.encode()
    elif news.size is not None:
        data = VirtioConsoleResize(*news.size).pack()
    message = VirtioConsoleControl(port.number, news.event, news.value).pack() + data
    chain.write(message[: chain.writable])
