import struct
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostd.wire.layout import Layout, array, s32, u8, u16, u32, u64


class Little(Layout):
    first: u8
    second: u16
    third: u32
    fourth: u64
    signed: s32
    data: Annotated[bytes, array(3)] = b""


class Native(Layout, byteorder="="):
    first: u8
    second: u32


class Big(Layout, byteorder=">"):
    value: u16


def test_fields_stand_in_order_without_padding_little_endian() -> None:
    packed = Little(1, 0x0203, 0x04050607, 0x08090A0B0C0D0E0F, -2, b"abc").pack()
    assert packed == bytes.fromhex("01 0302 07060504 0f0e0d0c0b0a0908 feffffff 616263")
    assert len(packed) == Little.SIZE == 22
    assert Little.FIELDS == ("first", "second", "third", "fourth", "signed", "data")


def test_the_byte_order_can_be_chosen_and_never_brings_padding() -> None:
    assert Native(1, 2).pack() == struct.pack("=BI", 1, 2)
    assert Native.SIZE == 5
    assert Big(0x0102).pack() == b"\1\2"


@given(st.binary(min_size=Little.SIZE, max_size=Little.SIZE))
def test_unpacking_and_packing_give_the_same_bytes(data: bytes) -> None:
    assert Little.unpack(data).pack() == data
    assert Little.unpack(bytearray(data)) == Little.unpack(memoryview(data)) == Little.unpack(data)


@pytest.mark.parametrize("size", [0, Little.SIZE - 1, Little.SIZE + 1])
def test_unpacking_needs_exactly_its_size(size: int) -> None:
    with pytest.raises(struct.error):
        Little.unpack(bytes(size))


@pytest.mark.parametrize("value", [-1, 0x10000])
def test_packing_refuses_a_number_that_does_not_fit(value: int) -> None:
    with pytest.raises(struct.error):
        Big(value).pack()


def test_packing_fills_up_short_bytes_and_refuses_long_ones() -> None:
    assert Little(0, 0, 0, 0, 0, b"a").pack().endswith(b"a\0\0")
    with pytest.raises(struct.error):
        Little(0, 0, 0, 0, 0, b"abcd").pack()


def test_fields_may_be_named_and_have_defaults() -> None:
    made = Little(1, 2, fourth=4, third=3, signed=5)
    assert made == Little(1, 2, 3, 4, 5, b"")
    assert made.data == b""


def test_wrong_fields_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="Big needs value"):
        Big()  # type: ignore[call-arg]  # what is tested
    with pytest.raises(TypeError, match="Big has 1 fields, not 2"):
        Big(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Big has no colour"):
        Big(1, colour=2)  # type: ignore[call-arg]


def test_equal_by_type_and_value() -> None:
    class Other(Layout, byteorder=">"):
        value: u16

    assert Big(1) == Big(1)
    assert len({Big(1), Big(1), Big(2)}) == 2
    assert Big(1) != Big(2)
    assert Big(1) != Other(1)
    assert Big(1) != b"\0\1"


def test_shown_with_the_names_of_the_fields_and_large_numbers_in_hexadecimal() -> None:
    assert str(Little(1, 2, 65535, 65536, -5, b"x")) == (
        "first=1 second=2 third=65535 fourth=0x10000 signed=-5 data=b'x'"
    )
    assert repr(Big(1)) == "Big(value=1)"


def test_a_layout_without_fields_is_empty() -> None:
    class Nothing(Layout):
        pass

    assert Nothing.SIZE == 0
    assert Nothing().pack() == b""
    assert Nothing.unpack(b"") == Nothing()
