"""The monitors: what each scan-out should show, and what it says of itself (EDID)."""

from vhost_user_gpu.commands import MAX_SCANOUTS, Mode
from vhost_user_gpu.edid import MAX_SIDE
from vhost_user_gpu.edid import edid as make_edid

OFF = Mode(0, 0, 0, 0, enabled=0)


class Outputs:
    """The modes of all possible scan-outs, and their EDIDs, ours or the front-end's.

    Without a front-end that knows better the first `count` have a monitor of `width` x `height` each.
    """

    def __init__(self, count: int, width: int, height: int) -> None:
        self._default = (width, height)
        self._own_modes = [
            Mode(number * width, 0, width, height, enabled=1) if number < count else OFF
            for number in range(MAX_SCANOUTS)
        ]
        self._modes = self._own_modes
        self._edids: dict[int, bytes] = {}
        self._known: list[Mode] | None = None  # to the driver

    @property
    def news(self) -> bool:
        """Whether the driver has asked for the modes, and they are others now."""
        return self._known not in (None, self._modes)

    def for_driver(self) -> bytes:
        """All modes, as in the response to GET_DISPLAY_INFO; now the driver knows them."""
        self._known = self._modes
        return b"".join(mode.pack() for mode in self._modes)

    def reset(self) -> None:
        """There is another driver, which knows nothing."""
        self._known = None

    @property
    def enabled(self) -> list[int]:
        """The numbers of the scan-outs that have a monitor."""
        return [number for number, mode in enumerate(self._modes) if mode.enabled]

    def edid(self, number: int) -> bytes:
        """A scan-out's EDID."""
        return self._edids.get(number) or self._own_edid(number)

    def set_modes(self, modes: bytes) -> None:
        """Takes the front-end's modes, of `MAX_SCANOUTS` times 24 bytes; its EDIDs are to follow."""
        self._modes = [
            _sane(Mode.unpack(modes[at : at + Mode.SIZE])) for at in range(0, len(modes), Mode.SIZE)
        ]
        self._edids.clear()

    def forget_front_end(self) -> None:
        """There are our own monitors again."""
        self._modes = self._own_modes
        self._edids.clear()

    def set_edid(self, number: int, edid: bytes) -> None:
        """Takes the front-end's EDID of a scan-out; an empty one means ours."""
        self._edids[number] = edid

    def _own_edid(self, number: int) -> bytes:
        mode = self._modes[number]
        width, height = (mode.width, mode.height) if mode.width and mode.height else self._default
        return make_edid(width, height, serial=number + 1)


def _sane(mode: Mode) -> Mode:
    """The mode as a driver can be expected to take it."""
    width, height = min(mode.width, MAX_SIDE), min(mode.height, MAX_SIDE)
    return Mode(mode.x, mode.y, width, height, int(bool(mode.enabled and width and height)), mode.flags)
