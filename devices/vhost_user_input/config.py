"""The config space: answers that the driver selects one at a time (virtio 1.3, 5.8.4 and 5.8.5)."""

from collections.abc import Iterable, Iterator
from typing import Annotated

from vhost_user_input.description import AbsInfo, Description
from vhost_user_input.events import EV_ABS
from vhostd import Layout, RefusedRequest, array, s32, u8, u16

UNION_SIZE = 128
SELECTORS = 2  # the driver may write the first two bytes, select and subsel


class Select:
    """What the driver asks for."""

    UNSET = 0x00
    ID_NAME = 0x01
    ID_SERIAL = 0x02
    ID_DEVIDS = 0x03
    PROP_BITS = 0x10
    EV_BITS = 0x11
    ABS_INFO = 0x12


class VirtioInputConfig(Layout):
    """struct virtio_input_config; `u` is the union."""

    select: u8
    subsel: u8
    size: u8
    reserved: Annotated[bytes, array(5)]
    u: Annotated[bytes, array(UNION_SIZE)]


class VirtioInputDevids(Layout):
    """struct virtio_input_devids."""

    bustype: u16
    vendor: u16
    product: u16
    version: u16


class VirtioInputAbsinfo(Layout):
    """struct virtio_input_absinfo."""

    min: s32
    max: s32
    fuzz: s32
    flat: s32
    res: s32


class Config:
    """A device's config space. The driver writes `select` and `subsel`; they decide the other fields."""

    def __init__(self, description: Description) -> None:
        self._answers = dict(_answers(description))
        self.selected = bytes(SELECTORS)  # `select` and `subsel`

    def read(self) -> bytes:
        """The whole config space as it is now; `size` is 0 for what the device does not have."""
        select, subsel = self.selected
        answer = self._answers.get((select, subsel), b"")
        return VirtioInputConfig(select, subsel, len(answer), b"", answer).pack()

    def write(self, offset: int, data: bytes) -> None:
        """Takes `select`, `subsel` or both. Ignores the bytes after them: QEMU writes the whole space back.

        Raises RefusedRequest, and changes nothing, if neither is written.
        """
        if offset >= SELECTORS:
            raise RefusedRequest(
                f"byte {offset} of the config space is read-only, as all but select and subsel"
            )
        taken = data[: SELECTORS - offset]
        self.selected = self.selected[:offset] + taken + self.selected[offset + len(taken) :]

    def reset(self) -> None:
        """Selects nothing."""
        self.selected = bytes(SELECTORS)


def _answers(description: Description) -> Iterator[tuple[tuple[int, int], bytes]]:
    yield (Select.ID_NAME, 0), _string(description.name)
    yield (Select.ID_SERIAL, 0), _string(description.serial)
    yield (Select.ID_DEVIDS, 0), VirtioInputDevids(*description.ids).pack()
    yield (Select.PROP_BITS, 0), _bitmap(description.properties)
    for kind, codes in description.codes.items():
        yield (Select.EV_BITS, kind), _bitmap(codes)
    for axis in description.codes.get(EV_ABS, ()):
        yield (Select.ABS_INFO, axis), _axis(description.axes.get(axis, AbsInfo())).pack()


def _string(text: str) -> bytes:
    """The text in UTF-8 without a terminator, cut between two characters if it is longer than the union."""
    data = text.encode("utf-8", "surrogateescape")
    end = min(len(data), UNION_SIZE)
    while end < len(data) and end and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


def _bitmap(bits: Iterable[int]) -> bytes:
    """Bit n of byte m stands for number 8*m+n; trailing zero bytes are left out."""
    number = sum(1 << bit for bit in bits if bit < 8 * UNION_SIZE)
    return number.to_bytes((number.bit_length() + 7) // 8, "little")


def _axis(info: AbsInfo) -> VirtioInputAbsinfo:
    return VirtioInputAbsinfo(info.minimum, info.maximum, info.fuzz, info.flat, info.resolution)
