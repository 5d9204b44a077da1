"""What a driver and a device have agreed on, and the queues that run: the same on every transport."""

import asyncio
from collections.abc import Callable, Iterable

from vhostd.errors import RefusedRequest
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.virtio.vocabulary import Feature, mask

RING_FEATURES = mask(Feature.VERSION_1, Feature.EVENT_IDX, Feature.INDIRECT_DESC)


class VirtioState:
    """One driver's use of a device, from the day that its transport has it to the end.

    `failed` is called with an exception of the device that is not the guest's fault; the queues stand still
    then, until they are stopped.
    """

    def __init__(
        self,
        device: Device,
        failed: Callable[[Exception], None],
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
    ) -> None:
        """`leftovers` is what earlier uses of the device have left behind, and this one may."""
        leftovers = Leftovers() if leftovers is None else leftovers
        self.device = device
        self.features = 0  # what the driver has accepted
        self.status = 0  # the device status field (2.1)
        self.queues = [
            QueueRunner(index, handler, failed, make_queue, leftovers)
            for index, handler in enumerate(device.queues)
        ]
        self._patience: float | None = None  # seconds that `end` waits, when somebody is in a hurry
        self._giving_up: asyncio.TimerHandle | None = None

    @property
    def offered(self) -> int:
        """The features that the driver may accept, a mask; a transport may have more of its own (2.2)."""
        return RING_FEATURES | self.device.features

    def accept(self, features: int) -> None:
        """Takes the driver's choice of features; those of the device it is told of."""
        self.features = features
        self.device.negotiated = features & self.device.features

    # --- Config space (2.5) -----------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of the config space; what no field lies in is zeroes. RefusedRequest beyond all fields."""
        space = self.device.read_config()
        if offset >= len(space):
            raise RefusedRequest(f"GET_CONFIG of bytes {offset} to {offset + size} of {len(space)}")
        return space[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Gives the device what the driver wrote; raises RefusedRequest if it may not."""
        size, end = len(self.device.read_config()), offset + len(data)
        if end > size:
            raise RefusedRequest(f"SET_CONFIG of bytes {offset} to {end} of {size}")
        self.device.write_config(offset, data)

    # --- Queues -----------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """Whether any ring is between its start and its stop."""
        return any(queue.started for queue in self.queues)

    def enable_all(self, *, on: bool) -> None:
        """Lets all handlers have chains, or none."""
        for queue in self.queues:
            queue.enable(on=on)

    async def stop(self, queues: Iterable[QueueRunner]) -> None:
        """Stops rings, one after the other, however long that takes."""
        for queue in queues:
            await queue.stop()

    async def end(self, patience: float) -> None:
        """Stops all rings; gives up what is in flight after so many seconds."""
        self._give_up_after(patience if self._patience is None else self._patience)
        try:
            await asyncio.gather(*(queue.stop() for queue in self.queues))
        finally:
            self._call_off()

    def hurry(self, patience: float) -> None:
        """Has `end`, now or later, wait for so many seconds at most."""
        self._patience = patience
        if self._giving_up is not None:
            self._give_up_after(patience)

    def reset(self) -> None:
        """Returns the device to its initial state (2.4); no ring may run."""
        self.status = 0
        self.device.reset()

    def leave(self) -> None:
        """The driver, or its front-end, has gone: the device is as if there had been none."""
        self.device.negotiated = 0
        self.reset()

    def _give_up_after(self, seconds: float) -> None:
        self._call_off()
        self._giving_up = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        for queue in self.queues:
            queue.give_up()

    def _call_off(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
