"""The messages about the device status and the reset."""

from vhostd.errors import RefusedRequest
from vhostd.vhost_user.messages import GET_STATUS, RESET_DEVICE, RESET_OWNER, SET_STATUS
from vhostd.vhost_user.rings import Rings
from vhostd.virtio.state import VirtioState
from vhostd.wire.calls import Call, answer
from vhostd.wire.rows import U64, Empty


class Status:
    """Keeps the status byte, and resets the device."""

    def __init__(self, state: VirtioState, rings: Rings) -> None:
        self._state = state
        self._rings = rings
        self.calls: tuple[Call, ...] = (
            answer(RESET_OWNER, self.reset_owner),
            answer(RESET_DEVICE, self.reset_device),
            answer(SET_STATUS, self.set_status),
            answer(GET_STATUS, self.get_status),
        )

    def reset_owner(self, _: Empty) -> None:
        """Disables all rings. The message is deprecated; the specification recommends only this."""
        self._state.enable_all(on=False)

    async def reset_device(self, _: Empty) -> None:
        self._state.enable_all(on=False)
        await self._rings.stop_all()
        self._reset()

    async def set_status(self, status: U64) -> None:
        if status.value > 0xFF:
            raise RefusedRequest(f"SET_STATUS {status.value:#x} is more than a byte")
        if status.value:
            self._state.set_status(status.value)
        else:
            await self._rings.stop_all()
            self._reset()

    def get_status(self, _: Empty) -> U64:
        return U64(self._state.status)

    def _reset(self) -> None:
        self._rings.forget_inflight()
        self._state.reset()
