import pytest

from vhost_user_gpu.config import EVENT_DISPLAY, Config
from vhostd import RefusedRequest


def test_the_space() -> None:
    config = Config(16)
    assert config.read() == bytes.fromhex("00000000 00000000 10000000 00000000 00000000")
    config.events |= EVENT_DISPLAY
    assert config.read() == bytes.fromhex("01000000 00000000 10000000 00000000 00000000")


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (4, "01000000"),
        (4, "ffffffff"),
        (4, "01000000 ff000000"),
        (0, "ffffffff 01000000"),
        (0, "00000000 01000000 10000000 00000000 00000000"),  # QEMU passes each write on as the whole space
        (3, "00 01000000 00"),
    ],
)
def test_events_are_cleared(offset: int, data: str) -> None:
    config = Config(2)
    config.events = EVENT_DISPLAY
    config.write(offset, bytes.fromhex(data))
    assert config.read() == bytes.fromhex("00000000 00000000 02000000 00000000 00000000")


@pytest.mark.parametrize("data", ["00000000", "feffffff"])
def test_other_events_are_not(data: str) -> None:
    config = Config(1)
    config.events = EVENT_DISPLAY
    config.write(4, bytes.fromhex(data))
    assert config.events == EVENT_DISPLAY


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 0), (0, 4), (0, 7), (1, 4), (4, 0), (4, 1), (4, 3), (5, 3), (5, 11), (8, 4), (12, 4), (16, 0)],
)
def test_nothing_else_can_be_written(offset: int, size: int) -> None:
    config = Config(1)
    config.events = EVENT_DISPLAY
    before = config.read()
    with pytest.raises(RefusedRequest, match=str(offset)):
        config.write(offset, b"\xff" * size)
    assert config.read() == before
