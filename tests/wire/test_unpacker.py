"""Bytes of an untrusted origin are taken apart, or refused."""

import pytest

from vhostd.errors import RefusedRequest
from vhostd.wire.layout import Layout, u8, u16
from vhostd.wire.unpacker import Unpacker


class Pair(Layout):
    """One byte and two."""

    first: u8
    second: u16


def test_parts_come_one_after_the_other() -> None:
    unpacker = Unpacker(b"\1\2\0rest")
    assert unpacker.unpack(Pair) == Pair(1, 2)
    assert bytes(unpacker.take(0)) == b""
    assert bytes(unpacker.take(4)) == b"rest"
    unpacker.end()


@pytest.mark.parametrize("size", [-1, 4, 1 << 70])
def test_more_than_there_is(size: int) -> None:
    unpacker = Unpacker(b"abc")
    with pytest.raises(RefusedRequest):
        unpacker.take(size)
    assert bytes(unpacker.take(3)) == b"abc"


def test_a_struct_that_is_cut() -> None:
    with pytest.raises(RefusedRequest):
        Unpacker(b"\1\2").unpack(Pair)


def test_bytes_at_the_end() -> None:
    with pytest.raises(RefusedRequest, match="1 bytes are left"):
        Unpacker(b"a").end()
