"""The config space (virtio 1.3, 5.7.4)."""

from vhostd import Layout, RefusedRequest, u32

EVENT_DISPLAY = 1  # the monitors have changed, so the driver should ask for them again
EVENTS_CLEAR = 4  # offset of `events_clear`
EVENTS_CLEAR_END = 8


class VirtioGpuConfig(Layout):
    """struct virtio_gpu_config; the last field is from virtio 1.4, for a feature that is not offered here.

    Front-ends ask for as many bytes as they know, and for no more than there are.
    """

    events_read: u32
    events_clear: u32
    num_scanouts: u32
    num_capsets: u32
    blob_alignment: u32


class Config:
    """The numbers of scan-outs and of capability sets, and the events that the driver has not cleared yet."""

    def __init__(self, scanouts: int, capsets: int = 0) -> None:
        self._scanouts = scanouts
        self._capsets = capsets
        self.events = 0

    def read(self) -> bytes:
        """The whole space."""
        return VirtioGpuConfig(self.events, 0, self._scanouts, self._capsets, 0).pack()

    def write(self, offset: int, data: bytes) -> None:
        """Clears the events that `events_clear` names. Ignores other fields: QEMU writes all of them back.

        Raises RefusedRequest, and changes nothing, if `events_clear` is not written as a whole.
        """
        field = data[EVENTS_CLEAR - offset : EVENTS_CLEAR_END - offset] if offset <= EVENTS_CLEAR else b""
        if len(field) < EVENTS_CLEAR_END - EVENTS_CLEAR:
            raise RefusedRequest(
                f"{len(data)} bytes at {offset} of the config space: not all of events_clear"
            )
        self.events &= ~int.from_bytes(field, "little")
