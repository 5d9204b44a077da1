import re
import struct
import subprocess
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_user_gpu.edid import edid

USUAL = [
    (640, 480),
    (800, 600),
    (1024, 768),
    (1280, 800),
    (1366, 768),
    (1920, 1080),
    (2560, 1440),
    (3840, 2160),
]
TALL = [(2160, 3840), (2560, 2880)]  # whose front porch is longer than a detailed timing can say
ODD = [(1023, 767), (1921, 1081), (4095, 3), (3, 4095)]
TINY = [(16, 16), (1, 1), (320, 200), (64, 64)]
HUGE = [
    (5120, 2880),
    (7680, 4320),
    (4096, 16),
    (16, 4096),
    (4095, 4095),
    (9637, 4000),
    (16384, 16384),
    (16384, 1),
]
ALL = USUAL + TALL + ODD + TINY + HUGE

TIMING_V_FRONT = 63  # the most that fits; further lines are in the back porch

sides = st.integers(1, 16384) | st.integers(1, 700)


class Mode(NamedTuple):
    """A detailed timing as a guest reads it."""

    width: int
    height: int
    h_blank: int
    h_front: int
    h_sync: int
    v_blank: int
    v_front: int
    v_sync: int
    clock_khz: int

    @property
    def refresh(self) -> float:
        return self.clock_khz * 1000 / (self.width + self.h_blank) / (self.height + self.v_blank)


def size_of(mode: Mode) -> tuple[int, int]:
    return mode.width, mode.height


def detailed(block: bytes) -> tuple[Mode, tuple[int, int]]:
    """The first block's detailed timing, and the size in millimetres (E-EDID 3.10.2)."""
    clock, *field = struct.unpack("<H16B", block[54:72])
    mode = Mode(
        width=field[0] + (field[2] >> 4) * 256,
        h_blank=field[1] + (field[2] & 15) * 256,
        height=field[3] + (field[5] >> 4) * 256,
        v_blank=field[4] + (field[5] & 15) * 256,
        h_front=field[6] + (field[9] >> 6) * 256,
        h_sync=field[7] + (field[9] >> 4 & 3) * 256,
        v_front=(field[8] >> 4) + (field[9] >> 2 & 3) * 16,
        v_sync=(field[8] & 15) + (field[9] & 3) * 16,
        clock_khz=clock * 10,
    )
    assert field[13:] == [0, 0, 0x1A]
    return mode, (field[10] + (field[12] >> 4) * 256, field[11] + (field[12] & 15) * 256)


def data_blocks(block: bytes) -> dict[int, bytes]:
    """Those of a DisplayID extension."""
    assert block[:5] == bytes((0x70, 0x13, 121, 3, 0))
    assert sum(block[1:127]) % 256 == 0
    section = block[5:126]
    found = {}
    while section[:3].strip(b"\0"):
        tag, revision, size = section[:3]
        assert revision == 0
        found[tag] = section[3 : 3 + size]
        section = section[3 + size :]
    assert not any(section)
    return found


def type_1(data: bytes) -> Mode:
    """A DisplayID detailed timing, which is the preferred one (DisplayID 1.3, 4.4.1)."""
    width, h_blank, h_front, h_sync, height, v_blank, v_front, v_sync = struct.unpack("<8H", data[4:])
    assert data[3] == 0x88
    assert h_front & 0x8000
    assert not v_front & 0x8000
    return Mode(
        width=width + 1,
        height=height + 1,
        h_blank=h_blank + 1,
        h_front=(h_front & 0x7FFF) + 1,
        h_sync=h_sync + 1,
        v_blank=v_blank + 1,
        v_front=v_front + 1,
        v_sync=v_sync + 1,
        clock_khz=(int.from_bytes(data[:3], "little") + 1) * 10,
    )


def preferred(data: bytes) -> Mode:
    """What a guest that reads all blocks takes for the preferred mode."""
    return type_1(data_blocks(data[128:])[3]) if data[126] else detailed(data)[0]


def checked(data: bytes) -> str:
    """What edid-decode says of it: no failure and no warning."""
    said = conforming(data)
    assert "Warnings:" not in said, said
    return said


def conforming(data: bytes) -> str:
    """What edid-decode says of it: no failure."""
    command = ["edid-decode", "--check", "--preferred-timings", "--native-resolution", "--skip-hex-dump"]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    said = done.stdout.decode()
    assert said.endswith("\n\nEDID conformity: PASS\n"), said
    return said


@pytest.mark.parametrize(("width", "height"), ALL)
def test_edid_decode_finds_nothing_wrong(width: int, height: int) -> None:
    said = checked(edid(width, height))
    mode = re.findall(r"^Preferred Video Timing.*\n.*?(\d+)x(\d+) +([\d.]+) Hz", said, re.MULTILINE)
    assert [(int(mode[-1][0]), int(mode[-1][1]))] == [(width, height)]
    assert float(mode[-1][2]) == pytest.approx(60, abs=0.05)
    assert f"{width}x{height}" in said.rpartition("Native Video Resolution")[2]


@settings(max_examples=50)
@given(sides, sides)
def test_any_size_conforms(width: int, height: int) -> None:
    """Later versions of edid-decode warn of an odd one, a fraction of which has not quite its shape."""
    conforming(edid(width, height))


@pytest.mark.parametrize(("width", "height"), [*USUAL, *TALL, (1023, 767), (5120, 2880), (7680, 4320)])
def test_timings_are_those_of_cvt(width: int, height: int) -> None:
    """Version 2 of reduced blanking as edid-decode computes it; clocks are rounded to 10 kHz."""
    arguments = f"w={width},h={height},fps=60,rb=2"
    said = subprocess.run(
        ["edid-decode", "--cvt", arguments], capture_output=True, text=True, check=True
    ).stdout
    h_front, h_sync, h_back = re.findall(r"H(?:front|sync|back) +(\d+)", said)
    v_front, v_sync, v_back = re.findall(r"V(?:front|sync|back) +(\d+)", said)
    mode = preferred(edid(width, height))
    assert (mode.h_front, mode.h_sync) == (int(h_front), int(h_sync))
    assert mode.h_blank == int(h_front) + int(h_sync) + int(h_back)
    assert mode.v_front in (int(v_front), TIMING_V_FRONT)
    assert mode.v_sync == int(v_sync)
    assert mode.v_blank == int(v_front) + int(v_sync) + int(v_back)
    assert mode.clock_khz == pytest.approx(float(re.findall(r"([\d.]+) MHz", said)[0]) * 1000, abs=6)


@given(sides, sides)
def test_the_preferred_mode_is_the_one_asked_for(width: int, height: int) -> None:
    data = edid(width, height)
    mode = preferred(data)
    assert size_of(mode) == (width, height)
    assert mode.refresh == pytest.approx(60, abs=0.05)
    assert mode.h_front + mode.h_sync < mode.h_blank
    assert mode.v_front + mode.v_sync < mode.v_blank
    assert mode.v_front > 0


@given(sides, sides)
def test_blocks_are_whole(width: int, height: int) -> None:
    data = edid(width, height)
    assert data[:8] == bytes.fromhex("00ffffffffffff00")
    assert data[18:20] == b"\1\4"
    assert len(data) == 128 * (1 + data[126]) <= 1024
    assert [sum(data[at : at + 128]) % 256 for at in range(0, len(data), 128)] == [0] * (1 + data[126])


@pytest.mark.parametrize(("width", "height"), USUAL + TALL + ODD + TINY)
def test_most_modes_are_in_the_first_block(width: int, height: int) -> None:
    data = edid(width, height)
    mode, _ = detailed(data)
    assert len(data) == 128
    assert size_of(mode) == (width, height)
    assert mode.clock_khz >= 10_000
    assert data[24] & 2


@pytest.mark.parametrize(
    ("size", "fraction"),
    [
        ((5120, 2880), (2560, 1440)),
        ((7680, 4320), (3840, 2160)),
        ((4095, 4095), (2047, 2047)),
        ((4096, 1), (2048, 1)),
        ((16384, 16384), (2730, 2730)),
    ],
)
def test_of_others_it_has_a_fraction(size: tuple[int, int], fraction: tuple[int, int]) -> None:
    data = edid(*size)
    assert size_of(detailed(data)[0]) == fraction
    assert not data[24] & 2
    parameters = data_blocks(data[128:])[1]
    assert struct.unpack("<2H", parameters[4:8]) == size


def test_the_vendor_and_the_numbers() -> None:
    data = edid(800, 600, serial=0xDEADBEEF)
    letters = int.from_bytes(data[8:10], "big")
    assert bytes(64 + (letters >> shift & 31) for shift in (10, 5, 0)) == b"VHO"
    assert struct.unpack("<HI", data[10:16]) == (1, 0xDEADBEEF)


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("vhostd", b"vhostd\n      "),
        ("x", b"x\n" + b" " * 11),
        ("a Monitor #12", b"a Monitor #12"),
        ("a" * 12, b"a" * 12 + b"\n"),
    ],
)
def test_the_name(name: str, field: bytes) -> None:
    data = edid(800, 600, name=name)
    descriptors = {data[at + 3]: data[at + 5 : at + 18] for at in (72, 90, 108)}
    assert descriptors[0xFC] == field
    assert f"Display Product Name: '{name}'" in checked(data)


@pytest.mark.parametrize(
    ("size", "centimetres", "millimetres"),
    [
        ((1920, 1080), (50, 28), (508, 286)),
        ((377, 377), (10, 10), (100, 100)),
        ((375, 3000), (0, 0), (0, 0)),
        ((9637, 4000), (255, 105), (2550, 1058)),
        ((9676, 4000), (0, 0), (0, 0)),
        ((16, 16), (0, 0), (0, 0)),
    ],
)
def test_the_physical_size(
    size: tuple[int, int], centimetres: tuple[int, int], millimetres: tuple[int, int]
) -> None:
    data = edid(*size)
    assert tuple(data[21:23]) == centimetres
    assert detailed(data)[1] == millimetres


def test_smaller_modes() -> None:
    everything = checked(edid(2560, 1600))
    for mode in (
        "640x480",
        "800x600",
        "1024x768",
        "1280x720",
        "1280x1024",
        "1680x1050",
        "1920x1080",
        "1920x1200",
    ):
        assert re.search(rf"DMT 0x..: +{mode} ", everything)
    few = checked(edid(1000, 700))
    assert re.findall(r"DMT 0x..: +(\w+) ", few) == ["640x480", "800x600"]
    assert re.findall(r"DMT 0x..: +(\w+) ", checked(edid(16, 16))) == ["640x480"]


def test_range_limits_are_left_out_if_they_cannot_be_told() -> None:
    assert "30-267 kHz H, max dotclock 2070 MHz" in checked(edid(7680, 4320))
    assert "Monitor ranges" not in checked(edid(16384, 8192))


@pytest.mark.parametrize(("width", "height"), [(0, 600), (800, 0), (-1, 600), (16385, 600), (800, 1 << 32)])
def test_other_sizes_are_refused(width: int, height: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        edid(width, height)


@pytest.mark.parametrize(
    "name", ["", " ", "trailing ", "fourteen chars", "Bildschirmgerät", "Tüte", "a\nb", "\0"]
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="named"):
        edid(800, 600, name=name)


@pytest.mark.parametrize("serial", [-1, 1 << 32])
def test_other_serial_numbers_are_refused(serial: int) -> None:
    with pytest.raises(ValueError, match="serial number"):
        edid(800, 600, serial=serial)
