"""Two transports without a socket: what each does for a device, and no more than that.

`OneByOne` starts and stops each ring by itself, as vhost-user does. `Registers` has a status register, and
starts all rings when the driver is ready, as virtio over PCI does (virtio 1.3, 4.1.4.3).
"""

import asyncio

from vhostd.frontend import SharedMemory
from vhostd.frontend.queue import Queue
from vhostd.ring import Ring, ring_format
from vhostd.virtio.device import Device
from vhostd.virtio.link import Link
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.state import VirtioState

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8  # of the status (2.1)
QUEUE_SIZE = 16


class Line(Link):
    """A device's interrupt line: for queues, and for its configuration."""

    def __init__(self) -> None:
        self.raised = asyncio.Event()
        self.config = asyncio.Event()
        self.is_broken = False

    def config_changed(self) -> None:
        self.config.set()

    def interrupt(self) -> None:
        self.raised.set()

    def broke(self) -> None:
        self.is_broken = True

    def stopped(self) -> None:
        pass


class Driver:
    """The guest's side of one queue: where its ring lies, and what is in it."""

    def __init__(self, memory: SharedMemory, index: int, features: int) -> None:
        self.queue = Queue(memory, index, QUEUE_SIZE, features)

    def ring(self, features: int, base: int | None = None) -> Ring:
        """The device's end of it, in the format that was negotiated; by default it is at its start."""
        memory, driver = self.queue.memory, self.queue.driver
        base = driver.base if base is None else base
        desc_size, avail_size, used_size = ring_format(features).footprint(QUEUE_SIZE)
        desc = memory.map.guest(driver.desc_addr, desc_size)
        avail = memory.map.guest(driver.avail_addr, avail_size)
        used = memory.map.guest(driver.used_addr, used_size)
        return ring_format(features)(QUEUE_SIZE, desc, avail, used, memory.map, features=features, base=base)

    async def request(self, runner: QueueRunner, line: Line, data: bytes, room: int) -> bytes:
        """Sends a request, and waits for the interrupt that says that it was served."""
        self.queue.add(data, room)
        assert runner.queue is not None
        runner.queue.kicked()
        while (answer := self.queue.poll()) is None:
            line.raised.clear()
            if not self.queue.driver.arm():
                await line.raised.wait()
        return answer[1]


class OneByOne:
    """As vhost-user: a ring starts when it is kicked for the first time, and stops when it is asked to."""

    def __init__(self, device: Device, memory: SharedMemory) -> None:
        self.line = Line()
        self.state = VirtioState(device, failed=_raise)
        self.memory = memory
        device.attach(self.line)

    def negotiate(self, unwanted: int = 0) -> None:
        self.state.accept(self.state.offered & ~unwanted)

    def start(self, index: int) -> Driver:
        driver = Driver(self.memory, index, self.state.features)
        self.go_on(driver, index)
        return driver

    def go_on(self, driver: Driver, index: int, base: int | None = None) -> None:
        runner = self.state.queues[index]
        runner.start(driver.ring(self.state.features, base), self.line)
        runner.enable(on=True)

    async def stop(self, index: int) -> int:
        """Where the ring may go on."""
        runner = self.state.queues[index]
        assert runner.queue is not None
        ring = runner.queue.ring
        await self.state.stop([runner])
        return ring.base

    async def close(self) -> None:
        self.state.device.detach()
        await self.state.end(patience=1.0)
        self.state.leave()


class Registers:
    """As virtio over PCI: the driver writes features, queues and a status; all rings start at DRIVER_OK."""

    def __init__(self, device: Device, memory: SharedMemory) -> None:
        self.line = Line()
        self.state = VirtioState(device, failed=_raise)
        self.memory = memory
        self.drivers: list[Driver] = []
        device.attach(self.line)

    @property
    def device_features(self) -> int:
        return self.state.offered

    @property
    def config_generation(self) -> int:
        return self.state.device.generation & 0xFF

    @property
    def status(self) -> int:
        return self.state.status

    def write_driver_features(self, features: int) -> None:
        self.state.accept(features & self.state.offered)

    async def write_status(self, status: int) -> None:
        if not status:
            await self.state.end(patience=1.0)
            self.state.reset()
            self.drivers.clear()
            return
        if status & DRIVER_OK and not self.state.status & DRIVER_OK:
            self._start_all()
        self.state.set_status(status)

    def _start_all(self) -> None:
        self.state.enable_all(on=True)
        for runner in self.state.queues:
            driver = Driver(self.memory, runner.index, self.state.features)
            self.drivers.append(driver)
            runner.start(driver.ring(self.state.features), self.line)

    async def close(self) -> None:
        await self.write_status(0)
        self.state.device.detach()
        self.state.leave()


def _raise(error: Exception) -> None:
    raise error
