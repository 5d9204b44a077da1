"""The messages about the config space, which the front-end passes between driver and device."""

from vhostd.errors import RefusedDriver, RefusedRequest
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.messages import GET_CONFIG, SET_CONFIG, ConfigSpace, ProtocolFeature
from vhostd.virtio.state import VirtioState
from vhostd.wire.calls import Call, answer


class Config:
    """Reads and writes the device's config space, and notices a driver that was set up before."""

    def __init__(self, state: VirtioState, agreed: Agreed) -> None:
        self._state = state
        self._agreed = agreed
        self._was_read = False
        self._has_begun = False
        self.calls: tuple[Call, ...] = (
            answer(GET_CONFIG, self.get_config),
            answer(SET_CONFIG, self.set_config),
        )

    def resume(self, *, anew: bool, known: bool) -> None:
        """Call it before the first ring starts. Resumes the device for a driver that was set up before.

        The driver was set up before if the front-end has never read the config space in this session, as
        after a restart of this program, or if rings do not begin `anew`, as after a migration. Then the
        driver may know old values, so it is told that the config space has changed. The device does no more
        if it is `known` what the driver knows, because its state was loaded.
        """
        first, self._has_begun = not self._has_begun, True
        if first and self._agreed.has(ProtocolFeature.CONFIG) and not (self._was_read and anew):
            device = self._state.device
            device.config_changed()
            if not known:
                device.resume()

    def get_config(self, wanted: ConfigSpace) -> ConfigSpace:
        self._was_read = True
        size = len(wanted.data)
        # SPDK reads all 256 bytes: bytes beyond the device's fields are zeroes.
        if wanted.offset + size > ConfigSpace.MAX_SIZE:
            raise RefusedRequest(f"GET_CONFIG of bytes {wanted.offset} to {wanted.offset + size}")
        return ConfigSpace(wanted.offset, self._state.read_config(wanted.offset, size), wanted.flags)

    def set_config(self, config: ConfigSpace) -> None:
        try:
            self._state.write_config(config.offset, config.data)
        except RefusedRequest as error:
            raise RefusedDriver(str(error)) from None
