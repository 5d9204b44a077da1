"""A saved state says whose it is; what is no such state, or of a newer program, is refused."""

import pytest

from tests.sessions import Echo
from vhostd.errors import RefusedRequest
from vhostd.virtio import saved_state
from vhostd.virtio.saved_state import MAGIC, Header
from vhostd.virtio.vocabulary import DeviceType


class Rich(Echo):
    """A device with a state in its second format."""

    state_version = 2
    state_limit = 10

    def save(self) -> bytes:
        return b"state"


def test_a_state_and_its_header() -> None:
    head, content = saved_state.save(Rich())
    assert (head, content) == (
        b"vhostd\0\1" + bytes((3, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0)),
        b"state",
    )
    saved_state.check(Header.unpack(head), Rich())


def test_a_device_without_a_state_has_an_empty_one() -> None:
    head, content = saved_state.save(Echo())
    assert Header.unpack(head) == Header(MAGIC, DeviceType.CONSOLE, 1, 0)
    Echo().load(content, 1)
    with pytest.raises(RefusedRequest):
        Echo().load(b"x", 1)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [0, 10])
def test_what_may_be_loaded(version: int, size: int) -> None:
    saved_state.check(Header(MAGIC, DeviceType.CONSOLE, version, size), Rich())


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (Header(b"vhostd\0\2", DeviceType.CONSOLE, 1, 0), "begins with"),
        (Header(b"\x7fELF", DeviceType.CONSOLE, 1, 0), "begins with"),
        (Header(MAGIC, DeviceType.RNG, 1, 0), "of type RNG, not CONSOLE"),
        (Header(MAGIC, 0xFFFF_FFFF, 1, 0), "of type 4294967295, not CONSOLE"),
        (Header(MAGIC, DeviceType.CONSOLE, 0, 0), "of version 0, and this program knows 1 to 2"),
        (Header(MAGIC, DeviceType.CONSOLE, 3, 0), "of version 3, and this program knows 1 to 2"),
        (Header(MAGIC, DeviceType.CONSOLE, 2, 11), "11 bytes, and this device takes 10 at most"),
        (Header(MAGIC, DeviceType.CONSOLE, 2, (1 << 64) - 1), "takes 10 at most"),
    ],
    ids=str,
)
def test_what_may_not(header: Header, why: str) -> None:
    with pytest.raises(RefusedRequest, match=why):
        saved_state.check(header, Rich())
