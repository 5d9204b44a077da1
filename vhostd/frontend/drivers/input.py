"""A guest's virtio-input driver to script: what the device is, its events, and its LEDs (virtio 1.3, 5.8).

The numbers are written down here once more, so that a device of ours and this driver check each other.
"""

import struct
from typing import NamedTuple, Self

from vhostd.errors import DeviceError
from vhostd.frontend.frontend import Frontend
from vhostd.frontend.memory import SharedMemory
from vhostd.frontend.queue import Queue

ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS, EV_BITS, ABS_INFO = 0x01, 0x02, 0x03, 0x10, 0x11, 0x12  # `select`
EVENT = struct.Struct("<HHi")
DEVIDS = struct.Struct("<HHHH")
ABSINFO = struct.Struct("<iiiii")
UNION = 8  # the offset of `u`, the answer, in the config space
CONFIG_SIZE = UNION + 128


class Event(NamedTuple):
    """struct virtio_input_event, with the numbers of linux/input-event-codes.h."""

    type: int
    code: int
    value: int


class DevIds(NamedTuple):
    """struct virtio_input_devids."""

    bustype: int
    vendor: int
    product: int
    version: int


class AbsInfo(NamedTuple):
    """struct virtio_input_absinfo."""

    min: int
    max: int
    fuzz: int
    flat: int
    res: int


class InputDriver:
    """Drives an input device over its eventq and its statusq, which it owns.

    Raises DeviceError for what no device may say, and what `Queue.used` raises.
    """

    def __init__(
        self, frontend: Frontend, eventq: Queue, statusq: Queue, *, buffers: int | None = None
    ) -> None:
        """Gives the device so many buffers for events; by default the eventq is full of them."""
        self.frontend = frontend
        self.eventq = eventq
        self.statusq = statusq
        for _ in range(eventq.size if buffers is None else buffers):
            eventq.add(room=EVENT.size)
        eventq.kick()

    @classmethod
    async def start(
        cls, frontend: Frontend, memory: SharedMemory, *, size: int = 64, buffers: int | None = None
    ) -> Self:
        """Starts both queues, of `size` descriptors."""
        eventq = await frontend.start(memory, 0, size)
        return cls(frontend, eventq, await frontend.start(memory, 1, size), buffers=buffers)

    async def stop(self) -> None:
        """Stops both rings, as at a guest's reset, and closes."""
        for queue in (self.eventq, self.statusq):
            await self.frontend.stop(queue)
        self.close()

    def close(self) -> None:
        """Closes the queues."""
        self.eventq.close()
        self.statusq.close()

    # --- Events -----------------------------------------------------------------------------------------

    async def event(self, *, refill: bool = True) -> Event:
        """The next event. Its buffer goes back to the device, unless there is to be no `refill`."""
        _, data = await self.eventq.used()
        if len(data) != EVENT.size:
            raise DeviceError(f"an event of {len(data)} bytes")
        if refill:
            self.eventq.add(room=EVENT.size)
            self.eventq.kick()
        return Event(*EVENT.unpack(data))

    async def events(self, count: int, *, refill: bool = True) -> list[Event]:
        """So many events."""
        return [await self.event(refill=refill) for _ in range(count)]

    async def send(self, *events: Event) -> None:
        """Sends the device events, for its LEDs for example, in one chain; returns when they are taken."""
        if written := await self.statusq.request(b"".join(EVENT.pack(*event) for event in events)):
            raise DeviceError(f"{len(written)} bytes written on the statusq")

    # --- The config space -------------------------------------------------------------------------------

    async def ask(self, select: int, subsel: int = 0) -> bytes:
        """What the device says of itself; nothing for what it does not have."""
        await self.frontend.write_config(0, bytes((select, subsel)))
        space = await self.frontend.read_config(0, CONFIG_SIZE)
        if len(space) < UNION or space[2] > len(space) - UNION:
            raise DeviceError(f"an answer of {len(space)} bytes to the query {select:#x}, {subsel:#x}")
        return space[UNION : UNION + space[2]]

    async def name(self) -> str:
        """The device's name."""
        return (await self.ask(ID_NAME)).rstrip(b"\0").decode(errors="replace")

    async def serial(self) -> str:
        """Its serial number."""
        return (await self.ask(ID_SERIAL)).rstrip(b"\0").decode(errors="replace")

    async def devids(self) -> DevIds | None:
        """Bus, vendor, product and version, if it has them."""
        return DevIds(*_unpack(DEVIDS, data)) if (data := await self.ask(ID_DEVIDS)) else None

    async def properties(self) -> set[int]:
        """Its properties (INPUT_PROP_*)."""
        return _bits(await self.ask(PROP_BITS))

    async def codes(self, event_type: int) -> set[int]:
        """The codes of a type of events that it can send, or, of LEDs and sounds, take."""
        return _bits(await self.ask(EV_BITS, event_type))

    async def axis(self, code: int) -> AbsInfo | None:
        """The range of an absolute axis, if it has that one."""
        return AbsInfo(*_unpack(ABSINFO, data)) if (data := await self.ask(ABS_INFO, code)) else None


def _bits(bitmap: bytes) -> set[int]:
    return {bit for bit in range(8 * len(bitmap)) if bitmap[bit // 8] >> bit % 8 & 1}


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) != layout.size:
        raise DeviceError(f"an answer of {len(data)} bytes where {layout.size} are due")
    return layout.unpack(data)
