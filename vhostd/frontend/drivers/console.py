"""A guest's virtio-console driver to script: ports, and control messages (virtio 1.3, 5.3).

The numbers are written down here once more, so that a device of ours and this driver check each other.
"""

import struct
from typing import NamedTuple, Self

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.queue import Queue

# Feature bits of the device.
SIZE, MULTIPORT, EMERG_WRITE = range(3)

DEVICE_READY, PORT_ADD, PORT_REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, PORT_OPEN, PORT_NAME = range(8)

NO_PORT = 0xFFFF_FFFF  # in messages about the whole device
HEADER = struct.Struct("<IHH")  # id, event, value
WINDOW = struct.Struct("<HH")  # columns, rows
CONFIG = struct.Struct("<HHII")  # columns, rows, max_nr_ports, emerg_wr
EMERG_WR = 8  # the offset of `emerg_wr`
BUFFER = 4096  # bytes: as Linux's
CONTROL = 2  # the first of the two control queues


class Config(NamedTuple):
    """struct virtio_console_config."""

    cols: int
    rows: int
    max_nr_ports: int
    emerg_wr: int


class Message(NamedTuple):
    """A control message; `data` is a name, or a size."""

    port: int
    event: int
    value: int
    data: bytes = b""


class ConsoleDriver:
    """Drives a console over the queues of its ports, which it owns.

    Raises DeviceError for what no device may say, and what `Queue.used` raises.
    """

    def __init__(self, queues: dict[int, Queue]) -> None:
        """Gives the device as many buffers as the queues have room for."""
        self.queues = queues
        self._heard: dict[int, bytes] = {}
        for index, queue in queues.items():
            if not index % 2:
                _fill(queue)

    @classmethod
    async def start(cls, frontend: Frontend, memory: SharedMemory, *, ports: int = 1, size: int = 16) -> Self:
        """Starts the queues of so many ports, and, with MULTIPORT, those for control messages."""
        has_control = bool(frontend.features >> MULTIPORT & 1)
        count = 2 * ports + 2 if has_control else 2
        return cls({index: await frontend.start(memory, index, size) for index in range(count)})

    async def stop(self, frontend: Frontend) -> None:
        """Stops all rings, as at a guest's reset, and closes."""
        for queue in self.queues.values():
            await frontend.stop(queue)
        self.close()

    def close(self) -> None:
        """Closes the queues; idempotent."""
        for queue in self.queues.values():
            queue.close()

    # --- Bytes ------------------------------------------------------------------------------------------

    async def read(self, size: int, port: int = 0) -> bytes:
        """So many bytes that came to a port."""
        heard = self._heard.pop(port, b"")
        while len(heard) < size:
            heard += await _taken(self.queues[first_queue(port)])
        self._heard[port] = heard[size:]
        return heard[:size]

    async def write(self, data: bytes, port: int = 0) -> None:
        """Sends bytes to a port, and waits until the device has taken them."""
        await self.queues[first_queue(port) + 1].request(data)

    # --- Control messages -------------------------------------------------------------------------------

    async def message(self) -> Message:
        """The next message of the device's."""
        data = await _taken(self.queues[CONTROL])
        if len(data) < HEADER.size:
            raise DeviceError(f"a control message of {len(data)} bytes")
        port, event, value = HEADER.unpack_from(data)
        return Message(port, event, value, data[HEADER.size :])

    async def send(self, event: int, value: int = 1, port: int = NO_PORT) -> None:
        """Sends the device a message, and waits until it is taken."""
        await self.queues[CONTROL + 1].request(HEADER.pack(port, event, value))

    async def begin(self) -> list[Message]:
        """Does what a driver does first: what the device tells of its ports, until they are all set up."""
        await self.send(DEVICE_READY)
        ports = len(self.queues) // 2 - 1
        told: list[Message] = []
        while not _knows_all(told, ports):
            told.append(await self.message())
            if told[-1].event == PORT_ADD:
                await self.send(PORT_READY, port=told[-1].port)
        return told


async def read_config(frontend: Frontend) -> Config:
    """The config space."""
    return Config(*CONFIG.unpack(await frontend.read_config(0, CONFIG.size)))


def first_queue(port: int) -> int:
    """The receiveq of a port; its transmitq is the next (5.3.2)."""
    return 2 * port + 2 if port else 0


def _knows_all(told: list[Message], ports: int) -> bool:
    """Whether the first of what belongs to each port has come: that it is a console, or its name."""
    return sum(message.event in (CONSOLE_PORT, PORT_NAME) for message in told) >= ports


def _fill(queue: Queue) -> None:
    for _ in range(queue.size):
        queue.add(room=BUFFER)
    queue.kick()


async def _taken(queue: Queue) -> bytes:
    """What the device wrote into the next buffer, which it gets again."""
    _, data = await queue.used()
    queue.add(room=BUFFER)
    queue.kick()
    return data
