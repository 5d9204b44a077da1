"""A card's state, saved and loaded into another card, and what is done with one that cannot be."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.devices.vhost_user_gpu.guest import (
    BGRA,
    GUEST,
    RAM,
    RGBX,
    SEAM,
    Guest,
    assign_uuid,
    attach,
    contents,
    create_2d,
    create_blob,
    flush,
    get_display_info,
    move_cursor,
    noise,
    set_scanout,
    set_scanout_blob,
    shown,
    transfer,
    unref,
    update_cursor,
)
from vhost_user_gpu import saved_card
from vhost_user_gpu.config import EVENT_DISPLAY, Config
from vhost_user_gpu.resource import Blob
from vhost_user_gpu.saved_card import GpuState, SavedResource, SavedScanout
from vhostd import Gather, Layout, RefusedRequest
from vhostd.frontend.drivers.gpu import ERR_UNSPEC, Range
from vhostd.vhost_user.gpu_messages import CURSOR_BYTES

PICTURE, BARE, BLOB, SHAPE = 1, 2, 3, 4
BLOB_AT, SHAPE_AT = RAM + 0x1_0000, RAM + 0x2_0000


def prepared() -> Guest:
    """A guest with a picture, a blob that crosses memory regions, both shown, and a cursor on each."""
    guest = Guest()
    guest.picture(PICTURE, 8, 8, RGBX, noise(256))
    guest.run(create_2d(BARE, 3, 5))
    guest.memory.write(SEAM - 2048, noise(4096, seed=1))
    guest.run(create_blob(BLOB, 4096, (SEAM - 2048, 4096)))
    guest.picture(SHAPE, 64, 64, BGRA, noise(CURSOR_BYTES, seed=2), SHAPE_AT)
    guest.run(set_scanout(0, PICTURE, (1, 2, 6, 5)), set_scanout_blob(7, BLOB, (0, 1, 7, 6), (7, 9), 40, 12))
    guest.run(update_cursor(0, SHAPE, 5, 6, 7, 8), update_cursor(7, SHAPE, 9, 10), move_cursor(7, 11, 12))
    guest.ask(assign_uuid(BLOB))
    guest.ask(get_display_info())
    return guest


def gist(guest: Guest) -> object:
    """All that a guest has made, and what its driver knows, in a form that can be compared with another's."""
    resources = [
        (
            *(type(each), each.number, contents(each), each.given_uuid, each.cost),
            each.size if isinstance(each, Blob) else None,
            None if each.backing is None else each.backing.guest_ranges(),
        )
        for each in guest.card.resources
    ]
    scanouts = [
        (
            each.rect,
            each.framebuffer and (each.framebuffer.resource.number, *each.framebuffer[1:], shown(each)),
            *(each.cursor.x, each.cursor.y, each.cursor.hot_x, each.cursor.hot_y),
            *(each.cursor.shape, each.cursor.visible),
        )
        for each in guest.card.scanouts
    ]
    return guest.used, resources, scanouts, guest.outputs.read_by_driver


def save(guest: Guest, events: int = 0) -> bytes:
    config = Config(1)
    config.events = events
    return saved_card.save(guest.card, config)


def load(state: bytes, guest: Guest) -> int:
    """Loads it, and returns the events."""
    config = Config(1)
    saved_card.load(state, guest.card, config)
    return config.events


def moved(source: Guest, destination: Guest | None = None) -> Guest:
    """The destination with the source's state, whose rings run."""
    guest = Guest() if destination is None else destination
    load(save(source), guest)
    guest.card.look_up(guest.ring.gather)
    return guest


def test_everything_is_there_afterwards() -> None:
    source = prepared()
    assert gist(moved(source)) == gist(source)


def test_nothing_is_a_state_too() -> None:
    assert gist(moved(Guest())) == gist(Guest())


def test_what_was_there_before_is_gone() -> None:
    source, destination = prepared(), prepared()
    source.run(unref(PICTURE), move_cursor(0, 1, 1))
    assert gist(moved(source, destination)) == gist(source)
    assert not destination.card.scanouts[0].cursor.visible


def test_the_guest_goes_on() -> None:
    guest = moved(prepared())
    guest.memory.write(RAM, noise(256, seed=3))
    guest.run(transfer(PICTURE, (0, 0, 8, 8)), flush(PICTURE, (0, 0, 8, 8)), create_2d(9, 1, 1))
    guest.run(attach(BARE, (RAM, 60)), unref(BLOB), set_scanout(0, BARE, (0, 0, 3, 5)))
    assert contents(guest.card.resources[PICTURE]) == noise(256, seed=3)


def test_all_that_is_shown_is_news_for_the_front_end() -> None:
    destination = prepared()
    destination.changes.clear()
    for scanout in destination.card.scanouts:
        scanout.replaced = scanout.resized = False
        scanout.take_damage()
        scanout.cursor.take_news()
    source = Guest()
    source.picture(PICTURE, 4, 4)
    source.run(set_scanout(1, PICTURE, (0, 0, 4, 4)))
    moved(source, destination)
    was_shown, shows_now = destination.card.scanouts[0], destination.card.scanouts[1]
    assert {was_shown, shows_now, destination.card.scanouts[7]} <= set(destination.changes)
    assert was_shown.replaced
    assert was_shown.cursor.take_news() == (True, False)
    assert shows_now.replaced
    assert shows_now.damage[2:] == (4, 4)


def test_a_blob_is_black_until_there_is_a_memory() -> None:
    guest = Guest()
    load(save(prepared()), guest)
    assert guest.shown(7) == bytes(4 * 7 * 6)
    guest.changes.clear()
    guest.scanout(7).take_damage()
    guest.card.look_up(guest.ring.gather)
    assert guest.shown(7) == prepared().shown(7)
    assert guest.changes == [guest.scanout(7)]
    assert guest.scanout(7).damage[2:] == (7, 6)


def test_it_is_handed_on_before_any_ring_ran() -> None:
    source, between = prepared(), Guest()
    load(save(source), between)
    assert gist(moved(between)) == gist(source)


def test_a_backing_of_no_bytes_is_one() -> None:
    source = Guest()
    source.run(create_2d(PICTURE, 1, 1), attach(PICTURE, (RAM, 0)))
    between = Guest()
    load(save(source), between)
    destination = moved(between)
    assert gist(destination) == gist(source)
    destination.refuses(attach(PICTURE, (RAM, 4)), ERR_UNSPEC)


def test_a_reset_forgets_what_was_loaded() -> None:
    guest = Guest()
    load(save(prepared()), guest)
    guest.card.reset()
    guest.card.look_up(guest.ring.gather)
    assert guest.used == 0
    assert all(scanout.framebuffer is None for scanout in guest.card.scanouts)


@pytest.mark.parametrize("events", [0, EVENT_DISPLAY])
def test_events_that_the_driver_has_not_seen(events: int) -> None:
    assert load(save(Guest(), events), Guest()) == events


def test_a_backing_outside_of_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    guest = Guest()
    load(save(prepared()), guest)
    lost = moved_elsewhere(guest)
    assert len(lost) == 3
    assert all(resource.backing is None for resource in guest.card.resources)
    assert guest.used == sum(resource.cost for resource in guest.card.resources)
    assert [text.endswith("are outside guest memory") for text in caplog.messages] == [True] * 3
    assert guest.do(create_2d(9, 1, 1)) == 0x1100


def moved_elsewhere(guest: Guest) -> list[Range]:
    """Has the backings looked up where there is no such memory; returns all ranges that were tried."""
    tried: list[Range] = []

    def gather(ranges: Iterable[Range], most: int) -> Gather:
        wanted = list(ranges)
        tried.extend(wanted[:1])
        return guest.ring.gather([(GUEST >> 4, length) for _, length in wanted], most)

    guest.card.look_up(gather)
    return tried


def test_a_backing_that_takes_too_much() -> None:
    source = Guest()
    source.run(create_2d(PICTURE, 1, 1), attach(PICTURE, *[(RAM + 8 * at, 4) for at in range(1000)]))
    destination = Guest(limit=2048 + 4 + 32 * 999)
    load(save(source), destination)
    destination.card.look_up(destination.ring.gather)
    assert destination.card.resources[PICTURE].backing is None


# --- States that cannot be ------------------------------------------------------------------------------


def refuses(state: bytes) -> None:
    guest = prepared()
    before = gist(guest)
    with pytest.raises(RefusedRequest):
        load(state, guest)
    assert gist(guest) == before


def small() -> Guest:
    guest = Guest()
    guest.picture(PICTURE, 2, 2)
    guest.run(create_blob(BLOB, 16, (RAM, 16)), set_scanout(0, PICTURE, (0, 0, 2, 2)))
    guest.run(set_scanout_blob(1, BLOB, (0, 0, 2, 2), (2, 2), 8))
    return guest


def test_a_state_that_is_cut_anywhere_or_too_long() -> None:
    state = save(small())
    guest = prepared()
    before = gist(guest)
    for size in range(len(state)):
        with pytest.raises(RefusedRequest):
            load(state[:size], guest)
    with pytest.raises(RefusedRequest):
        load(state + b"\0", guest)
    assert gist(guest) == before


def changed(layout: type[Layout], at: int, **fields: int) -> Callable[[], bytes]:
    """The state of `small` with other values in the struct at this offset."""

    def make() -> bytes:
        state = save(small())
        old = layout.unpack(state[at : at + layout.SIZE])
        values = {name: getattr(old, name) for name in old.FIELDS} | fields
        return state[:at] + layout(**values).pack() + state[at + layout.SIZE :]

    return make


RESOURCE_AT = GpuState.SIZE
BLOB_AT_ = RESOURCE_AT + SavedResource.SIZE + 16 + 16  # behind a range and four pixels
SCANOUT_AT = BLOB_AT_ + SavedResource.SIZE + 16
SECOND_AT = SCANOUT_AT + SavedScanout.SIZE
WRONG = {
    "modes": changed(GpuState, 0, modes=15),
    "resources": changed(GpuState, 0, resources=0xFFFF_FFFF),
    "fewer resources": changed(GpuState, 0, resources=1),
    "number 0": changed(SavedResource, RESOURCE_AT, number=0),
    "number twice": changed(SavedResource, RESOURCE_AT, number=BLOB),
    "format": changed(SavedResource, RESOURCE_AT, format=5),
    "no pixels": changed(SavedResource, RESOURCE_AT, width=0),
    "wide": changed(SavedResource, RESOURCE_AT, width=0xFFFF_FFFF),
    "more memory than there is": changed(SavedResource, RESOURCE_AT, width=32767, height=32767),
    "ranges": changed(SavedResource, RESOURCE_AT, ranges=0xFFFF_FFFF),
    "an empty blob": changed(SavedResource, BLOB_AT_, size=0),
    "a smaller blob": changed(SavedResource, BLOB_AT_, size=15),
    "an unknown resource": changed(SavedScanout, SCANOUT_AT, resource=99),
    "a blob, without pixels": changed(SavedScanout, SCANOUT_AT, resource=BLOB, format=0),
    "outside the picture": changed(SavedScanout, SCANOUT_AT, rect_width=3),
    "outside the blob": changed(SavedScanout, SECOND_AT, offset=4),
    "rows that overlap": changed(SavedScanout, SECOND_AT, stride=4),
    "a huge stride": changed(SavedScanout, SECOND_AT, stride=0xFFFF_FFFF),
    "too large for a copy": changed(SavedScanout, SECOND_AT, width=32767, height=32767),
    "a cursor's shape": changed(SavedScanout, SCANOUT_AT, shape=1),
}


@pytest.mark.parametrize("state", WRONG.values(), ids=WRONG)
def test_what_cannot_be(state: Callable[[], bytes]) -> None:
    refuses(state())


def test_a_picture_that_is_larger_than_max_memory() -> None:
    source = Guest()
    source.run(create_2d(PICTURE, 100, 100))
    with pytest.raises(RefusedRequest, match="--max-memory"):
        load(save(source), Guest(limit=20000))


def test_too_many_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    state = save(small())
    monkeypatch.setattr(saved_card, "MOST_RANGES", 1)
    refuses(state)
    with pytest.raises(RefusedRequest, match="2 ranges of memory"):
        save(small())


STATE = save(small())


@given(st.dictionaries(st.integers(0, len(STATE) - 1), st.integers(0, 255), min_size=1, max_size=8))
def test_any_bytes_are_refused_or_make_sense(bytes_at: dict[int, int]) -> None:
    state = bytearray(STATE)
    for at, byte in bytes_at.items():
        state[at] = byte
    guest = Guest()
    before = gist(guest)
    try:
        load(bytes(state), guest)
    except RefusedRequest:
        assert gist(guest) == before
        return
    guest.card.look_up(guest.ring.gather)
    assert gist(moved(guest)) == gist(guest)
    guest.run(create_2d(77, 1, 1), set_scanout(0, 77, (0, 0, 1, 1)))
