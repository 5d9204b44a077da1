import struct

import pytest

from vhost_user_gpu.edid import edid
from vhost_user_gpu.outputs import Outputs

MODE = struct.Struct("<IIIIII")  # x, y, width, height, enabled, flags
NONE = bytes(MODE.size)
THEIRS = MODE.pack(5, 6, 1920, 1080, 1, 0) + NONE * 2 + MODE.pack(0, 0, 640, 480, 1, 9) + NONE * 12


@pytest.mark.parametrize("count", [1, 2, 16])
def test_monitors_of_our_own_stand_side_by_side(count: int) -> None:
    outputs = Outputs(count, 1280, 800)
    ours = [MODE.pack(1280 * i, 0, 1280, 800, 1, 0) for i in range(count)]
    assert outputs.for_driver() == b"".join(ours) + NONE * (16 - count)
    assert outputs.enabled == list(range(count))


def test_what_the_front_end_says_counts() -> None:
    outputs = Outputs(2, 1280, 800)
    outputs.set_modes(THEIRS)
    assert outputs.for_driver() == THEIRS
    assert outputs.enabled == [0, 3]


@pytest.mark.parametrize(("number", "size"), [(0, (1920, 1080)), (3, (640, 480)), (1, (1280, 800))])
def test_an_edid_is_of_the_mode_unless_the_front_end_has_one(number: int, size: tuple[int, int]) -> None:
    outputs = Outputs(2, 1280, 800)
    assert outputs.edid(number) == edid(1280, 800, serial=number + 1)
    outputs.set_modes(THEIRS)
    assert outputs.edid(number) == edid(*size, serial=number + 1)
    outputs.set_edid(number, b"")
    assert outputs.edid(number) == edid(*size, serial=number + 1)
    outputs.set_edid(number, b"theirs")
    assert outputs.edid(number) == b"theirs"
    outputs.set_modes(THEIRS)
    assert outputs.edid(number) == edid(*size, serial=number + 1)


@pytest.mark.parametrize("size", [(1, 1), (1 << 14, 1), (0, 1080), (1920, 0), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_an_edid_that_a_front_end_cannot_make_absurd(size: tuple[int, int]) -> None:
    outputs = Outputs(1, 1280, 800)
    outputs.set_modes(MODE.pack(0, 0, *size, 1, 0) + NONE * 15)
    made = outputs.edid(0)
    assert made.startswith(b"\x00\xff\xff\xff\xff\xff\xff\x00")
    assert len(made) % 128 == sum(made[:128]) % 256 == 0


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ((0, 0, 1 << 31, 16385, 1, 0), (0, 0, 16384, 16384, 1, 0)),
        ((1, 2, 800, 600, 0xFFFF_FFFF, 3), (1, 2, 800, 600, 1, 3)),
        ((0, 0, 0, 600, 1, 0), (0, 0, 0, 600, 0, 0)),
    ],
)
def test_modes_are_made_sane(said: tuple[int, ...], told: tuple[int, ...]) -> None:
    outputs = Outputs(1, 1280, 800)
    outputs.set_modes(struct.pack("<6I", *said) + bytes(15 * 24))
    assert outputs.for_driver()[:24] == struct.pack("<6I", *told)


def test_news() -> None:
    outputs = Outputs(1, 1280, 800)
    outputs.set_modes(THEIRS)
    assert not outputs.news, "the driver has not asked yet"
    outputs.for_driver()
    outputs.set_modes(THEIRS)
    assert not outputs.news, "they are the same"
    outputs.set_modes(THEIRS[: 15 * MODE.size] + MODE.pack(0, 0, 1, 1, 1, 0))
    assert outputs.news
    outputs.set_modes(THEIRS)
    assert not outputs.news, "they are the same again"
    outputs.set_modes(NONE * 16)
    assert outputs.news
    outputs.reset()
    assert not outputs.news, "there is another driver"
    assert outputs.for_driver() == NONE * 16
