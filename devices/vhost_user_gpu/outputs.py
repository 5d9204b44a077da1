"""The monitors: the mode and the EDID of each scan-out."""

from vhost_user_gpu.commands import MAX_SCANOUTS, Mode
from vhost_user_gpu.edid import MAX_SIDE
from vhost_user_gpu.edid import edid as make_edid

OFF = Mode(0, 0, 0, 0, enabled=0)


class Outputs:
    """The modes and EDIDs of all possible scan-outs: the front-end's, or this program's own.

    Until a front-end describes its monitors, the first `count` scan-outs have one of `width` x `height` each.
    """

    def __init__(self, count: int, width: int, height: int) -> None:
        self._default = (width, height)
        self._own_modes = [
            Mode(number * width, 0, width, height, enabled=1) if number < count else OFF
            for number in range(MAX_SCANOUTS)
        ]
        self._modes = self._own_modes
        self._edids: dict[int, bytes] = {}
        self.read_by_driver: list[Mode] | None = None  # the modes that the driver has read last

    @property
    def news(self) -> bool:
        """Whether the modes have changed since the driver asked for them."""
        return self.read_by_driver not in (None, self._modes)

    def for_driver(self) -> bytes:
        """All modes, as in the response to GET_DISPLAY_INFO. Notes that the driver knows them."""
        self.read_by_driver = self._modes
        return b"".join(mode.pack() for mode in self._modes)

    def reset(self) -> None:
        """Notes that a new driver knows no modes yet."""
        self.read_by_driver = None

    @property
    def enabled(self) -> list[int]:
        """The numbers of the scan-outs that have a monitor."""
        return [number for number, mode in enumerate(self._modes) if mode.enabled]

    def edid(self, number: int) -> bytes:
        """A scan-out's EDID."""
        return self._edids.get(number) or self._own_edid(number)

    def set_modes(self, modes: bytes) -> None:
        """Takes the front-end's modes, `MAX_SCANOUTS` times 24 bytes. Its EDIDs must be set after this."""
        self._modes = [
            _limited(Mode.unpack(modes[at : at + Mode.SIZE])) for at in range(0, len(modes), Mode.SIZE)
        ]
        self._edids.clear()

    def forget_front_end(self) -> None:
        """Goes back to this program's own monitors."""
        self._modes = self._own_modes
        self._edids.clear()

    def set_edid(self, number: int, edid: bytes) -> None:
        """Takes the front-end's EDID of a scan-out. An empty one selects this program's own."""
        self._edids[number] = edid

    def _own_edid(self, number: int) -> bytes:
        mode = self._modes[number]
        width, height = (mode.width, mode.height) if mode.width and mode.height else self._default
        return make_edid(width, height, serial=number + 1)


def _limited(mode: Mode) -> Mode:
    """The mode with sides of at most MAX_SIDE pixels; disabled if a side is 0."""
    width, height = min(mode.width, MAX_SIDE), min(mode.height, MAX_SIDE)
    return Mode(mode.x, mode.y, width, height, int(bool(mode.enabled and width and height)), mode.flags)
