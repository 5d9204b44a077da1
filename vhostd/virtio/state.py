"""A virtio device's state, on any transport: negotiated features, status, config space and queues."""

import asyncio
from collections.abc import Callable, Iterable

from vhostd.errors import RefusedRequest
from vhostd.ring import WriteLog
from vhostd.virtio.device import Device
from vhostd.virtio.leftovers import Leftovers
from vhostd.virtio.queue_runner import QueueRunner
from vhostd.virtio.virtqueue import MakeQueue, Virtqueue
from vhostd.virtio.vocabulary import DeviceStatus, Feature, mask

RING_FEATURES = mask(
    Feature.VERSION_1, Feature.EVENT_IDX, Feature.INDIRECT_DESC, Feature.RING_PACKED, Feature.IN_ORDER
)


class VirtioState:
    """The use of a device by one driver, or by one connection of its transport.

    `failed` is called with an exception of the device that is not the guest's fault. Then the queues stand
    still until they are stopped.
    """

    def __init__(
        self,
        device: Device,
        failed: Callable[[Exception], None],
        make_queue: MakeQueue = Virtqueue,
        leftovers: Leftovers | None = None,
    ) -> None:
        """`leftovers` has the requests that earlier uses gave up, and takes those of this one."""
        leftovers = Leftovers() if leftovers is None else leftovers
        self.device = device
        self.features = 0  # the features that the driver has accepted
        self.status = 0  # the device status field (2.1)
        self._leftovers = leftovers
        self.queues = [
            QueueRunner(index, handler, failed, self._broke, make_queue, leftovers)
            for index, handler in enumerate(device.queues)
        ]
        self._patience: float | None = None  # seconds that `end` waits, if `hurry` has set them
        self._give_up_timer: asyncio.TimerHandle | None = None

    @property
    def offered(self) -> int:
        """The features that the driver may accept, as a mask. A transport may add its own (2.2)."""
        return RING_FEATURES | self.device.features

    def accept(self, features: int) -> None:
        """Takes the driver's choice of features, and tells the device those of its own."""
        self.features = features
        self.device.negotiated = features & self.device.features

    # --- Status (2.1) -----------------------------------------------------------------------------------

    def set_status(self, status: int) -> None:
        """Takes the bits that the driver has set; for no bits there is `reset`."""
        was_ready = self.status & DeviceStatus.DRIVER_OK
        self.status = status | self.status & DeviceStatus.DEVICE_NEEDS_RESET
        if not was_ready:
            self._tell_of_reset()

    def _broke(self) -> None:
        """A ring goes on only after the driver has reset the device."""
        self.status |= DeviceStatus.DEVICE_NEEDS_RESET
        self._tell_of_reset()

    def _tell_of_reset(self) -> None:
        """Has the driver look at the status, if it must know, and if it is one that has said it is ready."""
        told = DeviceStatus.DRIVER_OK | DeviceStatus.DEVICE_NEEDS_RESET
        if self.status & told == told:
            self.device.config_changed()

    # --- Config space (2.5) -----------------------------------------------------------------------------

    def read_config(self, offset: int, size: int) -> bytes:
        """Bytes of the config space; zeroes after its last field. RefusedRequest if all are after it."""
        space = self.device.read_config()
        if offset >= len(space):
            raise RefusedRequest(f"GET_CONFIG of bytes {offset} to {offset + size} of {len(space)}")
        return space[offset : offset + size].ljust(size, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Gives the driver's bytes to the device; raises RefusedRequest if they may not be written."""
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
        """Gives chains to all handlers, or to none."""
        for queue in self.queues:
            queue.enable(on=on)

    def log_writes(self, log: WriteLog | None) -> None:
        """Has a log told of all that the device writes from now on; None ends that."""
        for queue in self.queues:
            queue.log_writes(log)

    def uses(self, first: int, last: int) -> bool:
        """Whether the device works on anything at these I/O virtual addresses."""
        queues = [runner.queue for runner in self.queues if runner.queue is not None]
        return any(queue.ring.uses(first, last) for queue in queues) or self._leftovers.use(first, last)

    async def let_go(self, first: int, last: int) -> None:
        """Waits until the device works on nothing at these I/O virtual addresses any more."""
        for runner in self.queues:
            if runner.queue is not None:
                await runner.queue.let_go(first, last)
        await self._leftovers.let_go(first, last)

    async def stop(self, queues: Iterable[QueueRunner]) -> None:
        """Stops rings, one after the other, without a time limit."""
        for queue in queues:
            await queue.stop()

    async def end(self, patience: float) -> None:
        """Stops all rings; after `patience` seconds gives up the requests in flight."""
        self._give_up_after(patience if self._patience is None else self._patience)
        try:
            await asyncio.gather(*(queue.stop() for queue in self.queues))
        finally:
            self._cancel_give_up()

    def hurry(self, patience: float) -> None:
        """Limits the wait in `end` to `patience` seconds, in a running call or a later one."""
        self._patience = patience
        if self._give_up_timer is not None:
            self._give_up_after(patience)

    def reset(self) -> None:
        """Returns the device to its initial state (2.4); no ring may run."""
        self.status = 0
        self.device.reset()

    def leave(self) -> None:
        """Resets the device and its negotiated features, since the driver or its front-end has gone."""
        self.device.negotiated = 0
        self.reset()

    def _give_up_after(self, seconds: float) -> None:
        self._cancel_give_up()
        self._give_up_timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def _give_up(self) -> None:
        for queue in self.queues:
            queue.give_up()

    def _cancel_give_up(self) -> None:
        if self._give_up_timer is not None:
            self._give_up_timer.cancel()
            self._give_up_timer = None
