import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhost_user_input.config import Config
from vhost_user_input.description import AbsInfo, Description, Ids, keyboard
from vhost_user_input.evemu import parse
from vhostd import RefusedRequest

RECORDINGS = Path(__file__).parent / "recordings"

DEVICE = Description(
    name="Tüte",
    serial="s-1",
    ids=Ids(3, 0x46D, 0xC05A, 0x111),
    properties=frozenset((0, 9)),
    codes={
        0: frozenset((0, 3)),
        1: frozenset((0x110, 0x2FF)),
        3: frozenset((0, 0x3F)),
        0x15: frozenset((80,)),
    },
    axes={0: AbsInfo(-5, 1000, 1, 2, 40), 0x3F: AbsInfo(0, 7)},
)


def answer(config: Config, select: int, subsel: int = 0) -> bytes:
    config.write(0, bytes((select, subsel)))
    space = config.read()
    assert len(space) == 136
    assert space[:2] == bytes((select, subsel))
    assert not any(space[3:8])
    size = space[2]
    assert not any(space[8 + size :])
    return space[8 : 8 + size]


def bits(data: bytes) -> set[int]:
    return {8 * byte + bit for byte in range(len(data)) for bit in range(8) if data[byte] >> bit & 1}


def test_strings_have_no_terminator() -> None:
    config = Config(DEVICE)
    assert answer(config, 1) == b"T\xc3\xbcte"
    assert answer(config, 2) == b"s-1"


def test_devids() -> None:
    assert answer(Config(DEVICE), 3) == bytes.fromhex("0300 6d04 5ac0 1101")


def test_bitmaps_are_trimmed() -> None:
    config = Config(DEVICE)
    assert answer(config, 0x10) == bytes.fromhex("01 02")
    assert answer(config, 0x11, 0) == bytes.fromhex("09")
    assert bits(answer(config, 0x11, 1)) == {0x110, 0x2FF}
    assert len(answer(config, 0x11, 1)) == 96
    assert bits(answer(config, 0x11, 0x15)) == {80}
    assert answer(config, 0x11, 2) == b""


def test_axes() -> None:
    config = Config(DEVICE)
    assert answer(config, 0x12, 0) == struct.pack("<5i", -5, 1000, 1, 2, 40)
    assert answer(config, 0x12, 0x3F) == struct.pack("<5i", 0, 7, 0, 0, 0)
    assert answer(config, 0x12, 1) == b""


def test_every_other_selector_has_no_answer() -> None:
    config = Config(DEVICE)
    answered = {
        (select, subsel) for select in range(256) for subsel in range(256) if answer(config, select, subsel)
    }
    assert answered == {
        *((1, 0), (2, 0), (3, 0), (0x10, 0)),
        *((0x11, kind) for kind in DEVICE.codes),
        *((0x12, axis) for axis in DEVICE.axes),
    }


@pytest.mark.parametrize("name", ["keyboard", "mouse", "tablet", "touchscreen"])
def test_a_driver_reads_back_the_recorded_device(name: str) -> None:
    path = RECORDINGS / f"{name}.evemu"
    device = parse(path.read_text(), path.name).description
    config = Config(device)
    assert answer(config, 1).decode() == device.name
    assert struct.unpack("<4H", answer(config, 3)) == device.ids
    assert bits(answer(config, 0x10)) == device.properties
    codes = {kind: bits(answer(config, 0x11, kind)) for kind in range(256)}
    assert {kind: found for kind, found in codes.items() if found} == device.codes
    for axis, info in device.axes.items():
        assert struct.unpack("<5i", answer(config, 0x12, axis)) == (
            *(info.minimum, info.maximum, info.fuzz, info.flat, info.resolution),
        )


def test_the_selectors_can_be_written_one_by_one() -> None:
    config = Config(DEVICE)
    config.write(0, b"\x11")
    config.write(1, b"\x03")
    assert bits(config.read()[8:]) == {0, 0x3F}
    config.write(0, b"")
    assert config.read()[:2] == b"\x11\x03"
    config.reset()
    assert config.read() == bytes(136)


@pytest.mark.parametrize(("offset", "size"), [(2, 1), (8, 4), (135, 1), (2000, 1)])
def test_nothing_else_can_be_written(offset: int, size: int) -> None:
    config = Config(DEVICE)
    before = config.read()
    with pytest.raises(RefusedRequest, match=str(offset)):
        config.write(offset, b"\x01" * size)
    assert config.read() == before


def test_the_whole_space_written_back_selects() -> None:
    """QEMU passes each of the driver's writes on as all 136 bytes."""
    config = Config(DEVICE)
    config.write(0, b"\x11\x03" + b"\xff" * 134)
    assert config.read()[:2] == b"\x11\x03"
    assert bits(config.read()[8:]) == {0, 0x3F}


@given(st.text(max_size=200))
def test_long_names_are_cut_between_characters(name: str) -> None:
    name = name.encode("utf-8", "ignore").decode()
    cut = answer(Config(Description(name=name)), 1)
    whole = name.encode()
    assert whole.startswith(cut)
    assert name.startswith(cut.decode())
    assert len(cut) == len(whole) if len(whole) <= 128 else 124 < len(cut) <= 128


def test_bytes_that_are_no_utf8_stay() -> None:
    assert answer(Config(Description(name=b"a\xffb".decode("utf-8", "surrogateescape"))), 1) == b"a\xffb"
    stray = (b"\x80" * 200).decode("utf-8", "surrogateescape")
    assert len(answer(Config(Description(name=stray)), 1)) <= 128


def test_the_keyboard() -> None:
    config = Config(keyboard())
    assert answer(config, 1) == b"vhostd virtual keyboard"
    assert {1, 30, 57, 183, 248} < bits(answer(config, 0x11, 1))
    assert bits(answer(config, 0x11, 0x11)) == {0, 1, 2}
    assert answer(config, 0x11, 0x14)
    assert bits(answer(config, 0x11, 4)) == {4}
    assert answer(config, 2) == b""
