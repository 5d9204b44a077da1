"""Console: the console device as a device."""

import argparse
import asyncio
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Self

from vhost_user_console import MANIFEST
from vhost_user_console.control import Control
from vhost_user_console.options import PortOption, open_ports, port_option
from vhost_user_console.port import Port
from vhost_user_console.protocol import EMERG_WR, ConsoleFeature, VirtioConsoleConfig
from vhost_user_console.saved import GUEST_OPEN, load, save, told_by
from vhostd import (
    Device,
    DeviceType,
    Grants,
    Handler,
    RefusedRequest,
    Signals,
    Virtqueue,
)

log = logging.getLogger(__name__)

CONSOLE = 0  # the number of the port that each driver knows
MULTIPORT = 1 << ConsoleFeature.MULTIPORT
SIZE = 1 << ConsoleFeature.SIZE
EMERG_WRITE = 1 << ConsoleFeature.EMERG_WRITE


class Console(Device):
    """consoles and serial ports for the guest (virtio-console)

    With nothing but a console it has two queues, and is what every driver knows. With more ports it offers
    MULTIPORT.
    """

    kind = DeviceType.of(MANIFEST.type)

    def __init__(self, ports: Iterable[Port]) -> None:
        """Owns the ports, one of each number."""
        self._ports = {port.number: port for port in ports}
        self._max_nr_ports = max(self._ports) + 1
        self._control = Control(self._ports)
        self._is_plain = set(self._ports) == {CONSOLE} and self._ports[CONSOLE].is_console
        self.features = 0 if self._is_plain else MULTIPORT
        if (console := self._console) is not None:
            console.resized = self.config_changed
            self.features |= EMERG_WRITE
        if any(port.size is not None for port in self._ports.values()):
            self.features |= SIZE

    @property
    def queues(self) -> Sequence[Handler]:
        """Two for port 0, two for control messages, and two for each further port (5.3.2)."""
        first = [partial(self._receiveq, CONSOLE), partial(self._transmitq, CONSOLE)]
        if self._is_plain:
            return first
        control = [self._control.receiveq, self._control.transmitq]
        rest = range(1, self._max_nr_ports)
        pairs = ((partial(self._receiveq, each), partial(self._transmitq, each)) for each in rest)
        return [*first, *control, *(handler for pair in pairs for handler in pair)]

    @property
    def _console(self) -> Port | None:
        return self._ports.get(CONSOLE)

    async def _receiveq(self, number: int, queue: Virtqueue) -> None:
        """Fills the driver's buffers; those of a port that is not there wait for ever."""
        if (port := self._ports.get(number)) is not None:
            if number == CONSOLE and not self.negotiated & MULTIPORT:
                port.guest_opens(on=True)  # such a driver does not say so
            await port.receiveq(queue)

    async def _transmitq(self, number: int, queue: Virtqueue) -> None:
        """Takes what the driver sends; what it sends to a port that is not there goes nowhere."""
        if (port := self._ports.get(number)) is not None:
            await port.transmitq(queue)
        async for chain in queue:
            queue.push(chain)

    def read_config(self) -> bytes:
        console = self._console
        cols, rows = (console.size if console is not None else None) or (0, 0)
        return VirtioConsoleConfig(cols, rows, self._max_nr_ports, 0).pack()

    def write_config(self, offset: int, data: bytes) -> None:
        """Writes a character to the console at once, even if no ring runs (5.3.4.1)."""
        console = self._console
        if console is None or not offset <= EMERG_WR < offset + len(data):
            raise RefusedRequest(f"byte {offset} of the config space is read-only, as all but emerg_wr")
        console.outlet.take(data[EMERG_WR - offset :][:1])

    async def run(self) -> None:
        """Sees who comes to the ports' lines, and who goes."""
        for port in self._ports.values():
            log.info("port %d is %s", port.number, port.line.place)
        await asyncio.gather(*(port.line.run() for port in self._ports.values()))

    def resume(self) -> None:
        """Tells a driver of all ports anew. Nobody knows to which it listens: it gets what comes to any."""
        if self.negotiated & MULTIPORT:
            self._control.begin()
            for port in self._ports.values():
                port.guest_opens(on=True)

    def save(self) -> bytes:
        """What the driver was told of the ports, and which it has open."""
        return save(self._ports, is_ready=self._control.is_ready)

    def load(self, state: bytes, version: int) -> None:
        """Goes on for a driver of another program; the driver hears of what is different here."""
        is_ready, states = load(state, self._ports)
        self._control.is_ready = is_ready
        for number, port in self._ports.items():
            port.told = told_by(states[number])
            port.guest_opens(on=bool(states[number].flags & GUEST_OPEN))

    def reset(self) -> None:
        """The driver knows of no port."""
        self._control.reset()

    async def finish(self) -> None:
        """Lets files have what the guest has written."""
        await asyncio.gather(*(port.outlet.drained() for port in self._ports.values()))

    def close(self) -> None:
        """Closes the ports."""
        for port in self._ports.values():
            port.close()

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument_group("console").add_argument(
            "--port",
            metavar="[name=NAME,]KIND[,...]",
            type=port_option,
            action="append",
            help="a port: pty[,link=PATH], socket=PATH[,mode=MODE,group=GROUP], file=PATH or stdio; with a "
            "name a serial port, else a console; keep=SIZE: for whoever comes next; default: pty",
        )

    @classmethod
    def from_options(cls, options: argparse.Namespace) -> Self:
        return cls(open_ports(options.port or [PortOption("pty")]))

    def grants(self) -> Grants:
        """What the lines need, and to write to them from guest memory."""
        lines = (port.line.grants() for port in self._ports.values())
        return Grants.together((Grants(system_calls=("pwritev2",)), *lines))

    def signals(self) -> Signals:
        """Those of the lines."""
        return {name: call for port in self._ports.values() for name, call in port.line.signals().items()}
