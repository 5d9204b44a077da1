import pytest

from vhostd.host.ioctls import Ioctl


@pytest.mark.parametrize(
    ("ioctl", "number"),
    [
        (Ioctl.writing("E", 0x90, 4), 0x4004_4590),  # EVIOCGRAB
        (Ioctl.writing("u", 0x43, 8), 0x4008_7543),  # UDMABUF_CREATE_LIST
        (Ioctl.reading("E", 0x02, 8), 0x8008_4502),  # EVIOCGID
        (Ioctl(0x1277), 0x1277),  # BLKDISCARD
    ],
)
def test_whole_numbers_are_those_of_c(ioctl: Ioctl, number: int) -> None:
    assert ioctl == (number, 0xFFFF_FFFF)


def granted(ioctl: Ioctl, number: int) -> bool:
    """As the filter compares it."""
    return ioctl.number & ioctl.mask == number & ioctl.mask


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0x8060_4518, True),  # EVIOCGKEY(96)
        (0x8001_4518, True),
        (0x8060_4519, False),  # EVIOCGLED(96)
        (0x8060_5418, False),  # of another type
        (0x4060_4518, False),  # in the other direction
    ],
)
def test_one_of_any_size(number: int, expected: bool) -> None:  # noqa: FBT001
    assert granted(Ioctl.reading("E", 0x18), number) == expected
    assert Ioctl.reading("E", 0x18).sized(96) == 0x8060_4518


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0x8018_4540, True),  # EVIOCGABS(0)
        (0x8018_457F, True),  # EVIOCGABS(63)
        (0x8018_4580, False),
        (0x8018_453F, False),
        (0x8008_4540, False),  # of another size
    ],
)
def test_several_numbers(number: int, expected: bool) -> None:  # noqa: FBT001
    assert granted(Ioctl.reading("E", 0x40, 24, count=0x40), number) == expected
