"""How messages are shown, from their bytes."""

import struct

import pytest

from vhostd.trace.decoding import Decoder
from vhostd.trace.entries import Head, Line, Message, Note, Piece, Rings, Side
from vhostd.trace.passed import PassedFd
from vhostd.trace.text import line_of

MIB = 1 << 20
FRONT, BACK = Side.FRONT_END, Side.BACK_END
EVENTFD = PassedFd(kind="eventfd")
MEMFD = PassedFd(kind="memfd", size=512 * MIB)
U64 = struct.Struct("=Q").pack
REGION = struct.pack("=4Q", 0, 512 * MIB, 0x7F00_0000_0000, 0)
CONFIG = struct.pack("=3I", 4, 8, 0)
CURSOR = struct.pack("=5I", 0, 1, 2, 3, 4) + bytes(16384)

LINES = [
    (FRONT, 1, 1, b"", (), "-> GET_FEATURES"),
    (
        BACK,
        *(1, 5, U64(1 << 32 | 1 << 30 | 1 << 9 | 1 << 3), ()),
        "<- GET_FEATURES            value=0x140000208 bit3 FLUSH PROTOCOL_FEATURES VERSION_1",
    ),
    (FRONT, 16, 9, U64(8), (), "-> SET_PROTOCOL_FEATURES   value=8 REPLY_ACK need_reply"),
    (BACK, 16, 5, U64(0), (), "<- SET_PROTOCOL_FEATURES   ack=0"),
    (BACK, 16, 5, U64(1), (), "<- SET_PROTOCOL_FEATURES   ack=1"),
    (
        FRONT,
        *(5, 1, struct.pack("=II", 1, 0) + REGION, (MEMFD,)),
        "-> SET_MEM_TABLE           regions=[guest_addr=0 size=0x20000000 user_addr=0x7f0000000000 "
        "mmap_offset=0] [memfd 512 MiB]",
    ),
    (FRONT, 12, 1, U64(3), (EVENTFD,), "-> SET_VRING_KICK          index=3 [eventfd]"),
    (FRONT, 13, 1, U64(0x103), (), "-> SET_VRING_CALL          index=3 polled=yes"),
    (
        FRONT,
        39,
        1,
        U64(0x0F),
        (),
        "-> SET_STATUS              value=15 ACKNOWLEDGE DRIVER DRIVER_OK FEATURES_OK",
    ),
    (BACK, 24, 5, CONFIG + bytes(8), (), "<- GET_CONFIG              offset=4 size=8 data=0000000000000000"),
    (FRONT, 24, 1, CONFIG + bytes(8), (), "-> GET_CONFIG              offset=4 size=8"),
    (BACK, 24, 5, b"", (), "<- GET_CONFIG              refused=yes"),
    (
        FRONT,
        25,
        1,
        struct.pack("=3I", 0, 0, 1),
        (),
        "-> SET_CONFIG              offset=0 size=0 flags=1 data=",
    ),
    (
        FRONT,
        *(22, 1, struct.pack("=3QBB6x", 0x1000, 4096, 0x7F00_0000_0000, 3, 2), ()),
        "-> IOTLB_MSG               iova=4096 size=4096 user_addr=0x7f0000000000 permission=3 type=UPDATE",
    ),
    (FRONT, 8, 1, b"\0", (), "-> SET_VRING_NUM           malformed="),
    (FRONT, 77, 1, b"abc", (), "-> request 77              payload=616263"),
    (FRONT, 77, 1, bytes(100), (), f"-> request 77              payload={'00' * 32}... (100 bytes)"),
    (FRONT, 1, 5, U64(2), (), "-> GET_FEATURES            value=2 SIZE_MAX flags=0x5"),
    (BACK, 4, 1, b"", (), "<- RESET_OWNER             flags=0x1"),
]


def message(
    sender: Side, request: int, flags: int, payload: bytes, fds: tuple[PassedFd, ...], line: Line = Line.MAIN
) -> Message:
    return Message(
        time=1.5,
        connection=1,
        line=line,
        sender=sender,
        request=request,
        flags=flags,
        size=len(payload),
        payload=payload,
        fds=fds,
    )


@pytest.mark.parametrize(("sender", "request_", "flags", "payload", "fds", "expected"), LINES)
def test_a_line(
    sender: Side, request_: int, flags: int, payload: bytes, fds: tuple[PassedFd, ...], expected: str
) -> None:
    shown = line_of(Decoder("block").decode(message(sender, request_, flags, payload, fds)))
    if "malformed" in expected:
        assert shown.startswith(f"   1.500000 {expected}")
    else:
        assert shown == f"   1.500000 {expected}"


@pytest.mark.parametrize(
    ("line", "sender", "request_", "flags", "payload", "expected"),
    [
        (Line.BACKEND, BACK, 2, 9, b"", "<- backend.CONFIG_CHANGE_MSG  need_reply"),
        (Line.BACKEND, FRONT, 2, 5, U64(0), "-> backend.CONFIG_CHANGE_MSG  ack=0"),
        (
            Line.DISPLAY,
            BACK,
            7,
            0,
            struct.pack("=3I", 0, 800, 600),
            "<- display.SCANOUT         scanout_id=0 width=800 height=600",
        ),
        (Line.DISPLAY, FRONT, 1, 4, U64(3), "-> display.GET_PROTOCOL_FEATURES  value=3 EDID DMABUF2"),
        (
            *(Line.DISPLAY, BACK, 6, 0, CURSOR),
            f"<- display.CURSOR_UPDATE   scanout_id=0 x=1 y=2 hot_x=3 hot_y=4 "
            f"data={'00' * 32}... (16384 bytes)",
        ),
    ],
)
def test_a_line_of_another_socket(
    line: Line, sender: Side, request_: int, flags: int, payload: bytes, expected: str
) -> None:
    shown = line_of(Decoder().decode(message(sender, request_, flags, payload, (), line)))
    assert shown == f"   1.500000 {expected}"


def test_features_of_every_device_are_named_without_a_type() -> None:
    decoded = Decoder().decode(message(BACK, 1, 5, U64(1 << 32 | 1), ()))
    assert decoded.fields["bits"] == ["bit0", "VERSION_1"]


def test_what_is_no_message() -> None:
    assert line_of(Note(time=0, connection=1, note="hello")) == "   0.000000 -- hello"
    rings = Rings(
        time=2,
        connection=1,
        ring=1,
        event="kick",
        chains=2,
        done=7,
        memory=(Piece(addr=0, data=b"12"), Piece(addr=9, data=b"3")),
    )
    assert line_of(rings) == "   2.000000 -> kick                    ring=1 chains=2 done=7, 3 bytes"
    rings.cut = True
    assert line_of(rings).endswith(", not all of them kept")
    assert "from the front-end" in line_of(Head(vhostd_trace=1, started=""))
