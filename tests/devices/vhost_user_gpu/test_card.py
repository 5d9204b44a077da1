"""Each command against the specification's tables (virtio 1.3, 5.7.6.8 and 5.7.6.10), in hostile guests too.

Whatever is refused leaves everything as it was; `Guest.refuses` sees to that.
"""

import errno
import mmap
import os
import socket
import struct
from uuid import UUID

import pytest

from tests.devices.vhost_user_gpu.guest import (
    BGRA,
    BGRX,
    COMMANDS,
    EDID,
    END,
    EVERYTHING,
    FORMATS,
    GUEST,
    RAM,
    RESOURCE_BLOB,
    RESOURCE_UUID,
    RGBX,
    RING_IDX,
    SEAM,
    Command,
    Guest,
    assign_uuid,
    attach,
    contents,
    create_2d,
    create_blob,
    crop,
    detach,
    flush,
    get_capset,
    get_capset_info,
    get_display_info,
    get_edid,
    make_memory,
    move_cursor,
    noise,
    set_scanout,
    set_scanout_blob,
    shown,
    transfer,
    unref,
    update_cursor,
)
from tests.ring.machine import memfd
from vhost_user_gpu.card import ENTRY_WORK, Request
from vhost_user_gpu.edid import edid
from vhost_user_gpu.pixels import Format, to_wire
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.resource import RANGE_COST, RESOURCE_COST
from vhostd import MemoryLost
from vhostd.frontend.drivers.gpu import (
    ERR_OUT_OF_MEMORY,
    ERR_PARAMETER,
    ERR_RESOURCE,
    ERR_SCANOUT,
    ERR_UNSPEC,
    FENCE,
    HEADER,
    OK,
    OK_DISPLAY_INFO,
    OK_EDID,
    OK_RESOURCE_UUID,
)
from vhostd.wire.fds import Fd

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
SHOWN, BARE, BLOB, CURSOR, UNKNOWN = 1, 2, 3, 4, 99  # resources, see `prepared`
BLOB_SIZE = 4096
BLOB_AT, CURSOR_AT = RAM + 0x1_0000, RAM + 0x2_0000
CURSOR_SIZE = 64 * 64 * 4


def prepared() -> Guest:
    """A guest that shows 8 x 8 pixels; BARE is another such picture, without a backing."""
    guest = Guest()
    guest.picture(SHOWN, 8, 8, pixels=noise(256))
    guest.run(set_scanout(0, SHOWN, (0, 0, 8, 8)), create_2d(BARE, 8, 8))
    guest.memory.write(BLOB_AT, noise(BLOB_SIZE, seed=1))
    guest.run(create_blob(BLOB, BLOB_SIZE, (BLOB_AT, BLOB_SIZE)))
    guest.picture(CURSOR, 64, 64, BGRA, noise(CURSOR_SIZE, seed=2), CURSOR_AT)
    settle(guest)
    return guest


def settle(guest: Guest) -> None:
    """Takes what is news, as a display does."""
    guest.changes.clear()
    for scanout in guest.card.scanouts:
        scanout.replaced = scanout.resized = False
        scanout.take_damage()
        scanout.cursor.take_news()


@pytest.fixture
def guest() -> Guest:
    return prepared()


# One of each command, all of which succeed, with the type and the size of what is answered.
SAMPLES = [
    (get_display_info(), OK_DISPLAY_INFO, 408),
    (create_2d(9, 5, 4, RGBX), OK, 24),
    (unref(SHOWN), OK, 24),
    (set_scanout(1, SHOWN, (1, 2, 3, 4)), OK, 24),
    (flush(SHOWN, (1, 2, 3, 4)), OK, 24),
    (transfer(SHOWN, (1, 2, 3, 4), 20), OK, 24),
    (attach(BARE, (RAM, 100), (SEAM - 50, 156)), OK, 24),
    (detach(SHOWN), OK, 24),
    (get_edid(0), OK_EDID, 24 + 8 + 1024),
    (assign_uuid(SHOWN), OK_RESOURCE_UUID, 40),
    (create_blob(9, 64, (RAM, 10), (SEAM, 54)), OK, 24),
    (set_scanout_blob(2, BLOB, (1, 2, 3, 4), (8, 8), 40, 12, BGRX), OK, 24),
    (update_cursor(0, CURSOR, 5, 6, 7, 8), OK, 24),
    (move_cursor(0, 9, 10, 11), OK, 24),
]
EACH = pytest.mark.parametrize(
    ("command", "code", "size"), SAMPLES, ids=[f"{command.number:#x}" for command, _, _ in SAMPLES]
)


def packed(command: Command, flags: int = 0, fence_id: int = 0) -> bytes:
    return HEADER.pack(command.number, flags, fence_id, 0, 0) + command.body


def gist(guest: Guest) -> object:
    """What a guest has made, in a form that can be compared with another's."""
    resources = [
        (each.number, contents(each), each.backing and len(each.backing)) for each in guest.card.resources
    ]
    scanouts = [
        (each.rect, each.damage, each.framebuffer and shown(each), dict(vars(each.cursor)))
        for each in guest.card.scanouts
    ]
    return guest.used, resources, scanouts


# --- Requests and responses -----------------------------------------------------------------------------


@EACH
def test_response(guest: Guest, command: Command, code: int, size: int) -> None:
    answer = guest.ask(command)
    assert answer[:5] == (code, 0, 0, 0, 0)
    assert len(answer.content) == size - HEADER.size


@EACH
def test_a_command_may_be_cut_anywhere(guest: Guest, command: Command, code: int, size: int) -> None:
    data = packed(command)
    guest.exchange(data)
    wanted = gist(guest)
    for cuts in [*((at,) for at in range(1, len(data))), range(1, len(data))]:
        other = prepared()
        answer = other.exchange(data, cuts=cuts)
        assert (HEADER.unpack_from(answer)[0], len(answer)) == (code, size), cuts
        assert gist(other) == wanted, cuts


@pytest.mark.parametrize("command", [get_display_info(), get_edid(0), assign_uuid(SHOWN), unref(UNKNOWN)])
def test_a_response_may_be_cut_anywhere(guest: Guest, command: Command) -> None:
    whole = guest.exchange(packed(command))
    for at in range(1, len(whole)):
        assert guest.exchange(packed(command), len(whole), room_cuts=(at,)) == whole, at
    assert guest.exchange(packed(command), len(whole), room_cuts=range(1, len(whole), 5)) == whole


@pytest.mark.parametrize("command", [get_display_info(), get_edid(0), assign_uuid(SHOWN), unref(UNKNOWN)])
def test_a_response_is_as_long_as_there_is_room(guest: Guest, command: Command) -> None:
    whole = guest.exchange(packed(command))
    for room in range(len(whole) + 2):
        assert guest.exchange(packed(command), room) == whole[:room], room


@EACH
def test_a_command_is_executed_although_there_is_no_room(
    guest: Guest, command: Command, code: int, size: int
) -> None:
    other = prepared()
    assert guest.exchange(packed(command), 0) == b""
    assert len(other.exchange(packed(command))) == size
    assert gist(guest) == gist(other)


def test_memory_for_a_response_that_is_not_shared(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """The command is executed, and the card goes on."""
    guest.memory.write(COMMANDS, packed(create_2d(77, 8, 8)))
    elsewhere = END + (1 << 30)
    for command in (COMMANDS, elsewhere):
        guest.driver.add([(command, 40, False), (elsewhere, 24, True)])
        chain = guest.ring.pop()
        assert chain is not None
        request = Request(chain)
        answer = guest.card.execute(request, guest.features)
        assert isinstance(answer, tuple)
        request.respond(answer)
        guest.ring.push(chain)
        assert guest.driver.used() is not None
        assert "is share=on missing" in caplog.text
    guest.run(unref(77))


@EACH
def test_a_command_that_is_too_short(guest: Guest, command: Command, code: int, size: int) -> None:
    data = packed(command)
    before = guest.state
    for length in range(len(data)):
        answer = guest.exchange(data[:length])
        wanted = ERR_UNSPEC if length < HEADER.size else ERR_PARAMETER
        assert answer == HEADER.pack(wanted, 0, 0, 0, 0), length
        assert guest.state == before, length


@EACH
def test_what_follows_a_command_is_ignored(guest: Guest, command: Command, code: int, size: int) -> None:
    other = prepared()
    other.exchange(packed(command))
    assert len(guest.exchange(packed(command) + b"\xff" * 50)) == size
    assert gist(guest) == gist(other)


@pytest.mark.parametrize(
    "number",
    [0, 1, 0xFF, 0x10E, 0x10F, *range(0x200, 0x20B), 0x2FF, 0x302, 0x1100, 0x1200, 0x0100_0100, U32],
)
def test_an_unknown_command(guest: Guest, number: int) -> None:
    guest.refuses(Command(number, bytes(200)), ERR_UNSPEC)
    guest.refuses(Command(number, b""), ERR_UNSPEC)


@pytest.mark.parametrize(
    ("command", "feature"),
    [
        (get_edid(0), EDID),
        (assign_uuid(SHOWN), RESOURCE_UUID),
        (create_blob(9, 64, (RAM, 64)), RESOURCE_BLOB),
        (set_scanout_blob(0, BLOB, (0, 0, 8, 8), (8, 8), 32), RESOURCE_BLOB),
    ],
)
def test_a_command_whose_feature_was_not_negotiated(guest: Guest, command: Command, feature: int) -> None:
    guest.features = EVERYTHING & ~feature
    guest.refuses(command, ERR_UNSPEC)
    guest.features = feature
    assert guest.ask(command).type < ERR_UNSPEC


# --- Fences (5.7.6.7) -------------------------------------------------------------------------------------

FENCED = [(get_display_info(), OK_DISPLAY_INFO), (flush(SHOWN, (0, 0, 1, 1)), OK), (unref(99), ERR_RESOURCE)]
FENCED += [(Command(0x200, b""), ERR_UNSPEC), (Command(0x101, b""), ERR_PARAMETER)]


@pytest.mark.parametrize(("command", "code"), FENCED)
def test_a_fence_is_named(guest: Guest, command: Command, code: int) -> None:
    answer = guest.ask(command, FENCE, 0xFEDCBA9876543210, ctx_id=5)
    assert answer[:5] == (code, FENCE, 0xFEDCBA9876543210, 5, 0)
    answer = guest.ask(command, FENCE | RING_IDX, U64, ctx_id=U32, ring_idx=63)
    assert answer[:5] == (code, FENCE | RING_IDX, U64, U32, 63)


@pytest.mark.parametrize(("command", "code"), FENCED)
def test_unknown_flags_are_not_echoed(guest: Guest, command: Command, code: int) -> None:
    assert guest.ask(command, U32, 7)[:3] == (code, FENCE | RING_IDX, 7)


@pytest.mark.parametrize("flags", [0, RING_IDX, U32 & ~FENCE])
@pytest.mark.parametrize(("command", "code"), FENCED)
def test_without_a_fence_none_is_named(guest: Guest, command: Command, code: int, flags: int) -> None:
    assert guest.ask(command, flags, fence_id=7, ctx_id=8, ring_idx=9)[:5] == (code, 0, 0, 0, 0)


# --- Monitors -------------------------------------------------------------------------------------------


def test_display_info() -> None:
    mode = struct.Struct("<IIIIII")
    guest = Guest(monitors=2)
    wanted = mode.pack(0, 0, 1280, 800, 1, 0) + mode.pack(1280, 0, 1280, 800, 1, 0) + bytes(14 * 24)
    assert guest.ask(get_display_info()).content == wanted


@pytest.mark.parametrize("number", [0, 1, 15])
def test_edid(guest: Guest, number: int) -> None:
    wanted = edid(1280, 800, serial=number + 1)
    assert guest.ask(get_edid(number)).content == struct.pack("<II1024s", len(wanted), 0, wanted)


def test_an_edid_of_the_front_ends(guest: Guest) -> None:
    guest.outputs.set_edid(2, bytes(range(256)) * 4)
    assert guest.ask(get_edid(2)).content == struct.pack("<II", 1024, 0) + bytes(range(256)) * 4


def test_the_driver_knows_what_it_was_told(guest: Guest) -> None:
    guest.outputs.set_modes(bytes(16 * 24))
    assert not guest.outputs.news
    guest.ask(get_display_info())
    modes = struct.pack("<IIIIII", 3, 4, 800, 600, 1, 7) * 16
    guest.outputs.set_modes(modes)
    assert guest.outputs.news
    assert guest.ask(get_display_info()).content == modes
    assert not guest.outputs.news


# --- Resources ------------------------------------------------------------------------------------------


def test_uuids(guest: Guest) -> None:
    first = guest.ask(assign_uuid(SHOWN)).content
    assert UUID(bytes=first).version == 4
    assert guest.ask(assign_uuid(SHOWN)).content == first
    assert guest.ask(assign_uuid(BLOB)).content != first
    guest.run(unref(SHOWN), create_2d(SHOWN, 8, 8))
    assert guest.ask(assign_uuid(SHOWN)).content != first


def test_numbers_can_be_used_again(guest: Guest) -> None:
    guest.run(unref(BLOB), create_2d(BLOB, 1, 1), unref(SHOWN), create_blob(SHOWN, 1), create_2d(U32, 1, 1))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_in_each_format(kind: int) -> None:
    guest, pixels = Guest(), noise(5 * 4 * 4)
    guest.picture(1, 5, 4, kind, pixels)
    guest.run(set_scanout(0, 1, (0, 0, 5, 4)))
    assert guest.shown() == to_wire(bytearray(pixels), Format(kind))
    guest.run(set_scanout(0, 1, (1, 1, 3, 2)))
    assert guest.shown() == to_wire(bytearray(crop(pixels, 5, (1, 1, 3, 2))), Format(kind))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_blob_in_each_format(guest: Guest, kind: int) -> None:
    guest.run(set_scanout_blob(0, BLOB, (1, 2, 3, 4), (5, 6), 28, 11, kind))
    blob = noise(BLOB_SIZE, seed=1)
    rows = (blob[start : start + 12] for start in range(11 + 2 * 28 + 4, 11 + 6 * 28, 28))
    assert guest.shown() == to_wire(bytearray().join(rows), Format(kind))


def test_a_transfer_of_a_part(guest: Guest) -> None:
    """The offset is where the rectangle begins in the backing, whose rows are as long as the resource's."""
    guest.memory.write(RAM, noise(256, seed=3))
    guest.run(transfer(SHOWN, (2, 1, 3, 2), 32 + 8))
    new, wanted = noise(256, seed=3), bytearray(noise(256))
    wanted[40:52], wanted[72:84] = new[40:52], new[72:84]
    assert guest.shown() == wanted
    guest.run(transfer(SHOWN, (0, 7, 8, 1), 0))
    wanted[224:256] = new[:32]
    assert guest.shown() == wanted


def test_the_backing_may_be_anywhere(guest: Guest) -> None:
    ranges = [(SEAM - 3, 7), (RAM, 100), (END - 1, 1), (SEAM - 10, 49), (GUEST, 0), (0, 0), (RAM + 7, 99)]
    guest.memory.write(RAM, noise(SEAM + 1000 - RAM, seed=4))
    guest.run(attach(BARE, *ranges), transfer(BARE, (0, 0, 8, 8)), set_scanout(1, BARE, (0, 0, 8, 8)))
    assert guest.shown(1) == b"".join(guest.memory.read(*each) for each in ranges if each[1])


def test_a_transfer_of_nothing(guest: Guest) -> None:
    before = guest.state
    guest.run(transfer(SHOWN, (3, 3, 0, 5), U64), transfer(SHOWN, (8, 8, 0, 0), 257))
    assert guest.state == before


def test_overlapping_and_duplicate_ranges(guest: Guest) -> None:
    guest.memory.write(RAM, noise(256))
    guest.run(attach(BARE, *[(RAM + 1, 64)] * 2, (RAM, 64), (RAM + 32, 64)), transfer(BARE, (0, 0, 8, 8)))
    guest.run(set_scanout(1, BARE, (0, 0, 8, 8)))
    pixels = noise(256)
    assert guest.shown(1) == pixels[1:65] * 2 + pixels[:64] + pixels[32:96]


@pytest.mark.parametrize("ranges", [[(RAM, 0)], [(0, 0), (U64, 0)]])
def test_a_backing_of_nothing(guest: Guest, ranges: list[tuple[int, int]]) -> None:
    guest.run(attach(BARE, *ranges), transfer(BARE, (3, 3, 0, 0)))
    guest.refuses(transfer(BARE, (0, 0, 1, 1)), ERR_PARAMETER)
    guest.refuses(attach(BARE, (RAM, 256)), ERR_UNSPEC)
    guest.run(detach(BARE))


def test_the_most_entries(guest: Guest) -> None:
    guest.refuses(attach(BARE, *[(RAM, 4)] * 65537), ERR_PARAMETER)
    guest.refuses(create_blob(9, 4, *[(RAM, 4)] * 65537), ERR_PARAMETER)
    before = guest.used
    guest.run(attach(BARE, *[(RAM, 4)] * 65536))
    assert guest.used == before + 65536 * RANGE_COST
    guest.memory.write(RAM, b"\1\2\3\4")
    guest.run(transfer(BARE, (0, 0, 8, 8), 65536 * 4 - 256), set_scanout(1, BARE, (0, 0, 8, 8)))
    assert guest.shown(1) == b"\1\2\3\4" * 64
    guest.refuses(transfer(BARE, (0, 0, 8, 8), 65536 * 4 - 255), ERR_PARAMETER)
    guest.run(detach(BARE))
    assert guest.used == before


def test_many_entries_that_meet_are_one(guest: Guest) -> None:
    before = guest.used
    guest.run(attach(BARE, *((RAM + 4 * i, 4) for i in range(1000))))
    assert guest.used == before + RANGE_COST


def test_transfers_into_a_blob_do_nothing(guest: Guest) -> None:
    guest.run(transfer(BLOB, (0, 0, 8, 8)), transfer(BLOB, (U32, U32, U32, U32), U64))
    assert guest.memory.read(BLOB_AT, BLOB_SIZE) == noise(BLOB_SIZE, seed=1)


def test_a_blob_gets_its_memory_later(guest: Guest) -> None:
    guest.run(create_blob(9, 256), set_scanout_blob(0, 9, (0, 0, 8, 8), (8, 8), 32))
    assert guest.shown() == bytes(256)
    guest.run(attach(9, (BLOB_AT, 256)))
    assert guest.shown() == noise(BLOB_SIZE, seed=1)[:256]
    guest.run(detach(9), attach(9, (BLOB_AT, 255)))
    assert guest.shown() == bytes(256), "less than it should be"
    guest.refuses(attach(9, (BLOB_AT, 256)), ERR_UNSPEC)


# --- Scan-outs ------------------------------------------------------------------------------------------


def test_set_scanout_and_flush(guest: Guest) -> None:
    guest.run(set_scanout(0, SHOWN, (2, 3, 4, 5)))
    assert len(guest.changes) == 1
    assert (guest.scanout().resized, guest.scanout().damage) == (True, Rect(0, 0, 4, 5))
    settle(guest)
    guest.run(flush(SHOWN, (0, 0, 3, 4)))
    assert len(guest.changes) == 1
    assert (guest.scanout().resized, guest.scanout().damage) == (False, Rect(0, 0, 1, 1))
    assert guest.shown() == crop(noise(256), 8, (2, 3, 4, 5))


def test_one_picture_on_several_monitors(guest: Guest) -> None:
    guest.run(set_scanout(1, SHOWN, (4, 4, 4, 4)), set_scanout(15, SHOWN, (0, 0, 8, 8)))
    settle(guest)
    guest.run(flush(SHOWN, (5, 0, 3, 8)))
    damage = {each.number: each.damage for each in guest.card.scanouts if each.damage}
    assert damage == {0: Rect(5, 0, 3, 8), 1: Rect(1, 0, 3, 4), 15: Rect(5, 0, 3, 8)}


def test_a_scan_out_is_switched_off(guest: Guest) -> None:
    guest.run(set_scanout(0, 0, (U32, U32, U32, U32)))
    assert guest.scanout().framebuffer is None
    assert guest.scanout().has_news
    guest.run(set_scanout(0, SHOWN, (0, 0, 8, 8)), set_scanout_blob(0, 0, (0, 0, 0, 0), (0, 0), 0))
    assert guest.scanout().framebuffer is None
    assert len(guest.changes) == 3


@pytest.mark.parametrize("number", [BARE, BLOB, CURSOR])
def test_flushing_what_is_not_shown(guest: Guest, number: int) -> None:
    before = guest.state
    guest.run(flush(number, (0, 0, 8, 8)))
    assert guest.state == before
    assert not guest.changes


def test_flushing_a_blob(guest: Guest) -> None:
    guest.run(set_scanout_blob(0, BLOB, (1, 1, 4, 4), (8, 8), 32))
    settle(guest)
    guest.run(flush(BLOB, (U32, U32, U32, U32)), flush(BLOB, (0, 0, 1, 1)))
    assert not guest.scanout().has_news
    guest.run(flush(BLOB, (2, 0, U32, U32)))
    assert guest.scanout().damage == Rect(1, 0, 3, 4)


def test_a_blob_that_just_fits(guest: Guest) -> None:
    guest.run(set_scanout_blob(0, BLOB, (0, 0, 32, 32), (32, 32), 128))
    assert guest.shown() == noise(BLOB_SIZE, seed=1)
    guest.run(set_scanout_blob(0, BLOB, (0, 0, 1, 1), (1, 1), U32, BLOB_SIZE - 4))
    guest.run(set_scanout_blob(0, BLOB, (0, 0, 1, 2), (1, 2), BLOB_SIZE - 4))
    assert guest.shown() == noise(BLOB_SIZE, seed=1)[:4] + noise(BLOB_SIZE, seed=1)[-4:]


def test_unref_of_what_is_shown_while_it_is_being_sent(guest: Guest) -> None:
    ours, theirs = socket.socketpair()
    guest.run(
        set_scanout(1, SHOWN, (0, 0, 4, 4)), set_scanout_blob(2, BLOB, (0, 0, 8, 8), (8, 8), 32), detach(BLOB)
    )
    framebuffers = [scanout.framebuffer for scanout in guest.card.scanouts[:3]]
    guest.run(unref(SHOWN), unref(BLOB))
    assert [scanout.framebuffer for scanout in guest.card.scanouts] == [None] * 16
    assert all(scanout.has_news for scanout in guest.card.scanouts[:3])
    with ours, theirs:
        for framebuffer in framebuffers:
            assert framebuffer is not None
            assert framebuffer.copy(Rect(0, 0, 8, 8)) == bytes(256)
            assert framebuffer.resource.send(ours, 100, 156) == 156
            assert theirs.recv(1000) == bytes(156)


def test_another_backing_of_what_is_shown_is_news(guest: Guest) -> None:
    """A front-end that has the blob's memory as a dmabuf must not go on with memory that it has no more."""
    guest.run(set_scanout_blob(0, BLOB, (0, 0, 8, 8), (8, 8), 32), set_scanout(1, SHOWN, (0, 0, 8, 8)))
    for command in (detach(BLOB), attach(BLOB, (RAM, BLOB_SIZE))):
        settle(guest)
        guest.run(command)
        assert guest.scanout().replaced
        assert guest.changes
        assert not guest.scanout(1).replaced


def test_a_picture_outlives_its_backing(guest: Guest) -> None:
    guest.run(detach(SHOWN), flush(SHOWN, (0, 0, 8, 8)))
    assert guest.shown() == noise(256)


# --- Cursors --------------------------------------------------------------------------------------------


def test_cursor(guest: Guest) -> None:
    cursor = guest.scanout(1).cursor
    guest.run(update_cursor(1, CURSOR, 5, 6, 7, 8))
    assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y) == (5, 6, 7, 8)
    assert cursor.shape == noise(CURSOR_SIZE, seed=2)
    assert cursor.take_news()[1]
    guest.run(move_cursor(1, 9, 10, UNKNOWN))
    assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y) == (9, 10, 7, 8)
    assert cursor.visible, "of the resource only whether there is one counts"
    assert cursor.take_news() == (True, False)
    guest.run(update_cursor(1, 0, 1, 2))
    assert (cursor.x, cursor.y, cursor.visible) == (1, 2, False)
    assert cursor.take_news() == (True, False)
    assert len(guest.changes) == 3
    assert not guest.scanout(0).cursor.has_news


def test_windows_hides_and_shows_a_cursor_by_moving_it(guest: Guest) -> None:
    cursor = guest.scanout().cursor
    guest.run(update_cursor(0, CURSOR), move_cursor(0, 1, 2, 0))
    assert not cursor.visible
    guest.run(move_cursor(0, 3, 4, CURSOR))
    assert (cursor.visible, cursor.shape) == (True, noise(CURSOR_SIZE, seed=2))
    guest.run(move_cursor(0, 3, 4, 0), update_cursor(0, CURSOR))
    assert cursor.visible


def test_a_cursor_is_a_copy(guest: Guest) -> None:
    guest.run(update_cursor(0, CURSOR), unref(CURSOR))
    assert guest.scanout().cursor.shape == noise(CURSOR_SIZE, seed=2)


@pytest.mark.parametrize("place", [(U32, U32 - 63), (0x8000_0000, 0x7FFF_FFFF)])
def test_a_cursor_that_is_partly_outside(guest: Guest, place: tuple[int, int]) -> None:
    cursor = guest.scanout().cursor
    guest.run(update_cursor(0, CURSOR, *place, *place))
    assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y) == place * 2
    guest.run(update_cursor(0, 0), move_cursor(0, *place))
    assert (cursor.x, cursor.y) == place


@pytest.mark.parametrize("setup", [create_2d(9, 64, 64, BGRA), create_blob(9, CURSOR_SIZE)])
def test_a_cursor_without_pixels_is_transparent(guest: Guest, setup: Command) -> None:
    guest.run(setup, update_cursor(0, 9))
    assert guest.scanout().cursor.shape == bytes(CURSOR_SIZE)


# --- What is refused ------------------------------------------------------------------------------------

OUTSIDE = [
    (0, 4),
    (GUEST - 1, 2),
    (GUEST - 1, 1),
    (END - 1, 2),
    (END, 1),
    (SEAM - 4, END - SEAM + 5),
    (GUEST, U32),
    (U64, 1),
    (U64 - 3, 4),
    (U64 - 3, 8),
    (U64, U32),
    (1 << 63, U32),
]
RECTS = [  # that are not inside 8 x 8 pixels
    (0, 0, 9, 1),
    (0, 0, 1, 9),
    (8, 0, 1, 1),
    (0, 8, 1, 1),
    (7, 7, 1, 2),
    (U32 - 3, 0, 8, 8),  # x + width is 4, in 32 bits
    (0, U32 - 3, 8, 8),
    (1, 1, U32, U32),
    (U32, U32, 1, 1),
    (U32, U32, U32, U32),
]
EMPTY = [(0, 0, 0, 0), (0, 0, 8, 0), (0, 0, 0, 8), (8, 8, 0, 0)]
SCANOUTS = [16, 17, 255, 1 << 16, 1 << 31, U32]

REFUSED: dict[str, tuple[int, list[Command]]] = {
    "unknown resources": (
        ERR_RESOURCE,
        [
            command
            for number in (UNKNOWN, U32, SHOWN << 16)
            for command in (
                unref(number),
                attach(number, (RAM, 4)),
                detach(number),
                assign_uuid(number),
                transfer(number, (0, 0, 1, 1)),
                flush(number, (0, 0, 1, 1)),
                set_scanout(0, number, (0, 0, 1, 1)),
                set_scanout_blob(0, number, (0, 0, 1, 1), (1, 1), 4),
                update_cursor(0, number),
            )
        ],
    ),
    "no resource": (
        ERR_RESOURCE,
        [
            create_2d(0, 8, 8),
            create_blob(0, 4, (RAM, 4)),
            create_blob(0, 4),
            unref(0),
            attach(0, (RAM, 4)),
            detach(0),
            assign_uuid(0),
            transfer(0, (0, 0, 1, 1)),
            flush(0, (0, 0, 1, 1)),
        ],
    ),
    "numbers that are taken": (
        ERR_RESOURCE,
        [
            create_2d(SHOWN, 8, 8),
            create_2d(BLOB, 8, 8),
            create_blob(SHOWN, 4, (RAM, 4)),
            create_blob(BLOB, BLOB_SIZE),
        ],
    ),
    "pictures of nothing": (
        ERR_PARAMETER,
        [create_2d(9, *size) for size in ((0, 0), (8, 0), (0, 8), (U32, 0), (0, U32))],
    ),
    "formats": (
        ERR_PARAMETER,
        [create_2d(9, 8, 8, kind) for kind in (0, 5, 66, 69, 135, 1 << 8 | BGRX, U32)]
        + [set_scanout_blob(0, BLOB, (0, 0, 8, 8), (8, 8), 32, 0, kind) for kind in (0, 5, U32)],
    ),
    "pictures that are too large": (
        ERR_OUT_OF_MEMORY,
        [
            create_2d(9, 1024, 1024),  # just the limit, but for what there is already
            create_2d(9, 32767, 32767),
            set_scanout_blob(1, BLOB, (0, 0, 1, 1), (1024, 1025), 4096),
        ],
    ),
    "sides that no picture has": (
        ERR_PARAMETER,
        [
            command
            for size in (
                (32768, 1),
                (1, 32768),
                (1 << 30, 1),  # a row of 2^32 bytes
                (1, 1 << 30),
                (1 << 16, 1 << 16),  # 2^32 pixels
                (1 << 31, 1 << 31),  # 2^64 bytes
                (U32, 1),
                (U32, U32),
            )
            for command in (create_2d(9, *size), set_scanout_blob(1, BLOB, (0, 0, 1, 1), size, U32))
        ],
    ),
    "a second backing": (
        ERR_UNSPEC,
        [attach(SHOWN, (RAM, 256)), attach(BLOB, (RAM, BLOB_SIZE)), attach(SHOWN, count=0)],
    ),
    "no backing": (ERR_UNSPEC, [detach(BARE), transfer(BARE, (0, 0, 8, 8)), transfer(BARE, (0, 0, 0, 0))]),
    "backings outside of memory": (
        ERR_PARAMETER,
        [
            command
            for each in OUTSIDE
            for command in (
                attach(BARE, each),
                attach(BARE, (RAM, 256), each),
                create_blob(9, 1, each),
                create_blob(9, 1, (RAM, 256), each),
            )
        ],
    ),
    "numbers of entries": (
        ERR_PARAMETER,
        [
            command
            for count in (2, 3, 65536, 65537, 1 << 28, (1 << 28) + 1, 1 << 31, U32)
            for command in (attach(BARE, (RAM, 256), count=count), create_blob(9, 4, (RAM, 4), count=count))
        ]
        + [attach(BARE), attach(BARE, (RAM, 256), count=0)],
    ),
    "blobs": (
        ERR_PARAMETER,
        [create_blob(9, 4, (RAM, 4), blob_mem=kind) for kind in (0, 2, 3, 4, U32)]
        + [
            create_blob(9, 0),
            create_blob(9, 0, (RAM, 4)),
            create_blob(9, 5, (RAM, 4)),
            create_blob(9, 9, (RAM, 4), (RAM, 4)),
            create_blob(9, 1 << 32, (RAM, 4)),
            create_blob(9, U64, (RAM, 4)),
            create_blob(9, 1, (RAM, 0)),
        ],
    ),
    "transfers outside of the picture": (
        ERR_PARAMETER,
        [transfer(number, rect) for rect in RECTS for number in (SHOWN, BARE)],
    ),
    "transfers outside of the backing": (
        ERR_PARAMETER,
        [
            transfer(SHOWN, (0, 0, 8, 8), offset)
            for offset in (1, 4, 256, 1 << 32, 1 << 63, U64 - 255, U64 - 3, U64)
        ]
        + [
            transfer(SHOWN, (0, 0, 1, 1), 253),
            transfer(SHOWN, (0, 0, 1, 8), 29),
            transfer(SHOWN, (7, 7, 1, 1), U64),
        ],
    ),
    "flushes outside of the picture": (ERR_PARAMETER, [flush(SHOWN, rect) for rect in RECTS]),
    "scan-outs": (
        ERR_SCANOUT,
        [
            command
            for number in SCANOUTS
            for command in (
                set_scanout(number, SHOWN, (0, 0, 8, 8)),
                set_scanout(number, UNKNOWN, (0, 0, 8, 8)),
                set_scanout(number, 0),
                set_scanout_blob(number, BLOB, (0, 0, 8, 8), (8, 8), 32),
                set_scanout_blob(number, 0, (0, 0, 0, 0), (0, 0), 0),
                get_edid(number),
                update_cursor(number, CURSOR),
                update_cursor(number, 0),
                move_cursor(number, 1, 2),
            )
        ],
    ),
    "parts of pictures": (
        ERR_PARAMETER,
        [set_scanout(1, SHOWN, rect) for rect in (*RECTS, *EMPTY)]
        + [set_scanout_blob(1, BLOB, rect, (8, 8), 32) for rect in (*RECTS, *EMPTY)],
    ),
    "the other kind of resource": (
        ERR_PARAMETER,
        [set_scanout(1, BLOB, (0, 0, 1, 1)), set_scanout_blob(1, SHOWN, (0, 0, 8, 8), (8, 8), 32)],
    ),
    "pictures that are not inside their blob": (
        ERR_PARAMETER,
        [
            set_scanout_blob(1, BLOB, (0, 0, 1, 1), *layout)
            for layout in (
                ((0, 1), 4, 0),
                ((1, 0), 4, 0),
                ((0, 0), 0, 0),
                ((8, 8), 31, 0),
                ((8, 8), 0, 0),
                ((32, 32), 128, 1),
                ((32, 33), 128, 0),
                ((32, 2), BLOB_SIZE - 127, 0),
                ((1, 1), 4, BLOB_SIZE - 3),
                ((1, 1), 4, BLOB_SIZE),
                ((1, 1), 4, U32),
                ((1, 2), U32, 0),
                ((1, 2), U32 - 3, 4),  # 4 bytes at 2^32
                ((1, U32), 4, 0),
                ((1 << 30, 1), 0, 0),  # a row of 2^32 bytes
                ((1 << 30, 1), U32, 0),
                ((1 << 30 | 1, 1), 4, 0),
                ((U32, U32), U32, U32),
                ((1, 1 << 30), 4, 0),
            )
        ],
    ),
    "cursors": (
        ERR_PARAMETER,
        [update_cursor(0, SHOWN), update_cursor(0, BARE), update_cursor(0, BLOB)],
    ),
    "capability sets": (
        ERR_PARAMETER,
        [
            get_capset_info(0),
            get_capset_info(1),
            get_capset_info(U32),
            get_capset(0),
            get_capset(1),
            get_capset(2),
        ],
    ),
}
EACH_REFUSED = [
    pytest.param(command, code, id=f"{name}-{i}")
    for name, (code, commands) in REFUSED.items()
    for i, command in enumerate(commands)
]


@pytest.mark.parametrize(("command", "code"), EACH_REFUSED)
def test_refused(guest: Guest, command: Command, code: int) -> None:
    guest.refuses(command, code)


@pytest.mark.parametrize("number", [SHOWN, BLOB])
def test_use_after_unref(guest: Guest, number: int) -> None:
    guest.run(unref(number))
    for command in (
        unref(number),
        attach(number, (RAM, 4)),
        detach(number),
        assign_uuid(number),
        transfer(number, (0, 0, 1, 1)),
        flush(number, (0, 0, 1, 1)),
        set_scanout(0, number, (0, 0, 1, 1)),
        set_scanout_blob(0, number, (0, 0, 1, 1), (1, 1), 4),
        update_cursor(0, number),
    ):
        guest.refuses(command, ERR_RESOURCE)


def test_fewer_scan_outs(guest: Guest) -> None:
    guest.card.usable = 1
    guest.run(set_scanout(0, BARE, (0, 0, 8, 8)))
    guest.refuses(set_scanout(1, BARE, (0, 0, 8, 8)), ERR_SCANOUT)
    guest.refuses(move_cursor(1, 0, 0), ERR_SCANOUT)
    guest.refuses(get_edid(1), ERR_SCANOUT)


@pytest.mark.parametrize("size", [(1024, 1025), (32767, 33), (32767, 32767), (1 << 28, 1), (U32 >> 2, U32)])
def test_a_blob_cannot_make_us_copy_more_than_the_limit(guest: Guest, size: tuple[int, int]) -> None:
    """A blob costs nothing, however large it is; but what is shown of it is copied, by rows or as a whole."""
    guest.run(create_blob(9, U64))
    answer = guest.do(set_scanout_blob(1, 9, (0, 0, *size), size, 4 * size[0], kind=RGBX))
    assert answer in (ERR_OUT_OF_MEMORY, ERR_PARAMETER)
    guest.run(set_scanout_blob(1, 9, (0, 0, 1024, 1024), (1024, 1024), U32, U32))
    assert not any(guest.shown(1))


# --- Memory -----------------------------------------------------------------------------------------------

PIXELS = 4 * 8 * 8


def test_a_picture_that_just_fits() -> None:
    guest = Guest(limit=RESOURCE_COST + PIXELS)
    guest.refuses(create_2d(1, 8, 9), ERR_OUT_OF_MEMORY)
    guest.run(create_2d(1, 8, 8))
    assert guest.used == RESOURCE_COST + PIXELS
    guest.refuses(create_blob(2, 1), ERR_OUT_OF_MEMORY)
    guest.refuses(attach(1, (RAM, PIXELS)), ERR_OUT_OF_MEMORY)
    guest.run(unref(1), create_2d(1, 8, 8))


def test_a_byte_too_little() -> None:
    Guest(limit=RESOURCE_COST + PIXELS - 1).refuses(create_2d(1, 8, 8), ERR_OUT_OF_MEMORY)
    Guest(limit=RESOURCE_COST - 1).refuses(create_blob(1, 1), ERR_OUT_OF_MEMORY)
    Guest(limit=RESOURCE_COST + RANGE_COST - 1).refuses(create_blob(1, 1, (RAM, 1)), ERR_OUT_OF_MEMORY)


def test_memory_comes_back() -> None:
    guest = Guest(limit=2 * RESOURCE_COST + PIXELS + RANGE_COST)
    for _ in range(3):
        guest.run(create_2d(1, 8, 8), attach(1, (RAM, PIXELS)), create_blob(2, 1))
        assert guest.used == guest.card.resources.limit
        guest.refuses(attach(2, (RAM, 1)), ERR_OUT_OF_MEMORY)
        guest.run(detach(1), attach(2, (RAM, 1)), detach(2))
        guest.run(unref(2), create_blob(2, 1, (RAM, 1)), unref(1), unref(2))
        assert guest.used == 0
        guest.run(create_2d(1, 8, 8), attach(1, (RAM, PIXELS)), create_blob(2, 1))
        guest.card.reset()
        assert guest.used == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "no memory"), MemoryError()])
def test_a_host_without_memory(monkeypatch: pytest.MonkeyPatch, guest: Guest, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    guest.refuses(create_2d(9, 8, 8), ERR_OUT_OF_MEMORY)


def test_reset(guest: Guest) -> None:
    guest.run(update_cursor(0, CURSOR), set_scanout_blob(3, BLOB, (0, 0, 8, 8), (8, 8), 32))
    guest.ask(get_display_info())
    guest.outputs.set_modes(bytes(16 * 24))
    settle(guest)
    guest.card.reset()
    assert list(guest.card.resources) == []
    assert guest.used == 0
    assert all(scanout.framebuffer is None for scanout in guest.card.scanouts)
    assert [scanout.number for scanout in guest.card.scanouts if scanout.has_news] == [0, 3]
    assert guest.scanout().cursor.shape == b""
    assert guest.changes
    assert not guest.outputs.news
    guest.picture(SHOWN, 8, 8, pixels=noise(256))


def test_guest_memory_that_vanishes() -> None:
    with Fd(memfd(SEAM - GUEST)) as low, Fd(memfd(END - SEAM)) as high:
        guest = Guest(memory=make_memory(low.fileno(), high.fileno()))
        guest.run(create_2d(1, 8, 8), attach(1, (SEAM, 256)), set_scanout(0, 1, (0, 0, 8, 8)))
        guest.run(create_blob(2, CURSOR_SIZE, (SEAM, CURSOR_SIZE)))
        os.ftruncate(high.fileno(), 0)
        for command in (transfer(1, (0, 0, 8, 8)), update_cursor(0, 2)):
            with pytest.raises(MemoryLost):
                guest.do(command)
        assert guest.shown() == bytes(256)
        guest.card.reset()
        assert guest.used == 0


# --- Work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [attach(BARE, (RAM, 16), count=64), create_blob(88, 1 << 40, count=64)])
def test_entries_are_work_whatever_becomes_of_them(guest: Guest, command: Command) -> None:
    before = guest.card.work
    guest.ask(command)
    assert guest.card.work >= before + 64 * ENTRY_WORK
