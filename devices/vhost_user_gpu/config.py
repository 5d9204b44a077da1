"""The config space (virtio 1.3, 5.7.4)."""

from vhostd import Layout, RefusedRequest, u32

EVENT_DISPLAY = 1  # the monitors have changed: the driver is to ask for them again
EVENTS_CLEAR = 4  # its offset
EVENTS_CLEAR_END = 8


class VirtioGpuConfig(Layout):
    """struct virtio_gpu_config; the last field is of virtio 1.4, for a feature that is not offered here.

    Front-ends ask for as many bytes as they know, and for no more than there are.
    """

    events_read: u32
    events_clear: u32
    num_scanouts: u32
    num_capsets: u32
    blob_alignment: u32


class Config:
    """The number of scan-outs, and the events that the driver has yet to take note of."""

    def __init__(self, scanouts: int) -> None:
        self._scanouts = scanouts
        self.events = 0

    def read(self) -> bytes:
        """The whole space."""
        return VirtioGpuConfig(self.events, 0, self._scanouts, 0, 0).pack()

    def write(self, offset: int, data: bytes) -> None:
        """Clears the events that are set in `events_clear`; the rest is ignored: QEMU writes all of it back.

        Raises RefusedRequest, and changes nothing, if that field is not written as a whole.
        """
        field = data[EVENTS_CLEAR - offset : EVENTS_CLEAR_END - offset] if offset <= EVENTS_CLEAR else b""
        if len(field) < EVENTS_CLEAR_END - EVENTS_CLEAR:
            raise RefusedRequest(
                f"{len(data)} bytes at {offset} of the config space: not all of events_clear"
            )
        self.events &= ~int.from_bytes(field, "little")
