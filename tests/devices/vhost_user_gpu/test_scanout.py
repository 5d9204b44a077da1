"""What a scan-out shows, and what of it is news."""

import pytest

from tests.devices.vhost_user_gpu.guest import RAM, Guest, crop, noise, shown
from vhost_user_gpu.pixels import Format
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.resource import Blob, Picture
from vhost_user_gpu.scanout import Cursor, Framebuffer, Scanout, cursor_shape

WIDTH, HEIGHT = 8, 6
SHAPE = bytes(64 * 64 * 4)


@pytest.fixture
def picture() -> Picture:
    """A picture of noise."""
    return painted(Picture(1, Format.B8G8R8X8, WIDTH, HEIGHT))


def painted(picture: Picture) -> Picture:
    guest = Guest()
    size = picture.stride * picture.height
    guest.memory.write(RAM, noise(size))
    picture.backing = guest.gather((RAM, size))
    assert picture.backing is not None
    picture.fill_from(picture.backing, Rect(0, 0, picture.width, picture.height), 0)
    return picture


def settled(picture: Picture, rect: Rect) -> Scanout:
    """A scan-out that shows a picture, of which there is no news any more."""
    scanout = Scanout(0)
    scanout.show(Framebuffer.of(picture), rect)
    settle(scanout)
    return scanout


def settle(scanout: Scanout) -> None:
    scanout.replaced = scanout.resized = False
    scanout.take_damage()
    assert not scanout.has_news


# --- Framebuffers ---------------------------------------------------------------------------------------


def test_a_framebuffer_in_the_middle_of_its_resource() -> None:
    framebuffer = Framebuffer(Blob(1, 1 << 20), Format.B8G8R8X8, 10, 4, stride=48, offset=100)
    assert framebuffer.start(Rect(0, 0, 1, 1)) == 100
    assert framebuffer.start(Rect(2, 3, 1, 1)) == 100 + 3 * 48 + 8
    assert framebuffer.size == 100 + 3 * 48 + 40


@pytest.mark.parametrize(
    ("stride", "rect", "kind", "sendable"),
    [
        (40, Rect(0, 0, 10, 4), Format.B8G8R8X8, True),
        (40, Rect(0, 1, 10, 2), Format.B8G8R8A8, True),
        (40, Rect(3, 1, 4, 1), Format.B8G8R8X8, True),
        (40, Rect(0, 0, 9, 2), Format.B8G8R8X8, False),
        (44, Rect(0, 0, 10, 2), Format.B8G8R8X8, False),
        (40, Rect(0, 0, 10, 4), Format.R8G8B8X8, False),
        (40, Rect(0, 0, 10, 1), Format.X8R8G8B8, False),
    ],
)
def test_what_can_be_sent_as_it_lies_there(stride: int, rect: Rect, kind: Format, *, sendable: bool) -> None:
    assert Framebuffer(Blob(1, 1 << 20), kind, 10, 4, stride).is_sendable(rect) == sendable


@pytest.mark.parametrize("rect", [Rect(0, 0, 8, 6), Rect(2, 1, 3, 4), Rect(7, 5, 1, 1), Rect(0, 2, 8, 2)])
def test_copies_of_a_part(picture: Picture, rect: Rect) -> None:
    assert Framebuffer.of(picture).copy(rect) == crop(noise(picture.stride * HEIGHT), WIDTH, rect)


# --- News -----------------------------------------------------------------------------------------------


def test_a_scan_out_is_off_at_first() -> None:
    scanout = Scanout(3)
    assert scanout.framebuffer is None
    assert not scanout.has_news
    scanout.repaint()
    scanout.reset()
    scanout.show(None)
    assert not scanout.has_news


def test_another_size_is_painted_as_a_whole(picture: Picture) -> None:
    scanout = Scanout(0)
    scanout.show(Framebuffer.of(picture), Rect(0, 0, 8, 6))
    assert scanout.has_news
    assert scanout.resized
    assert scanout.take_damage() == Rect(0, 0, 8, 6)
    settle(scanout)
    scanout.show(Framebuffer.of(picture), Rect(2, 3, 4, 3))
    assert scanout.has_news
    assert scanout.resized
    assert scanout.damage == Rect(0, 0, 4, 3)
    scanout.show(None)
    assert scanout.resized
    assert not scanout.damage
    settle(scanout)
    scanout.show(Framebuffer.of(picture), Rect(2, 3, 4, 3))
    assert scanout.damage == Rect(0, 0, 4, 3)


def test_a_page_flip_is_the_drivers_to_flush(picture: Picture) -> None:
    scanout, other = settled(picture, Rect(0, 0, 8, 6)), Picture(2, Format.B8G8R8X8, 8, 6)
    scanout.show(Framebuffer.of(other), Rect(0, 0, 8, 6))
    assert not scanout.resized
    assert not scanout.damage
    assert not scanout.shows(picture)
    assert scanout.shows(other)
    assert shown(scanout) == bytes(8 * 6 * 4)


def test_panning(picture: Picture) -> None:
    scanout = settled(picture, Rect(1, 1, 4, 4))
    scanout.show(Framebuffer.of(picture), Rect(2, 0, 4, 4))
    assert not scanout.resized
    assert shown(scanout) == crop(noise(picture.stride * HEIGHT), WIDTH, (2, 0, 4, 4))
    scanout.flush(Rect(2, 0, 4, 4))
    assert scanout.damage == Rect(0, 0, 4, 4)


@pytest.mark.parametrize(
    ("flushed", "damage"),
    [
        (Rect(0, 0, 8, 6), Rect(0, 0, 4, 3)),
        (Rect(2, 1, 1, 1), Rect(0, 0, 1, 1)),
        (Rect(5, 3, 1, 1), Rect(3, 2, 1, 1)),
        (Rect(0, 0, 3, 2), Rect(0, 0, 1, 1)),
        (Rect(4, 2, 9, 9), Rect(2, 1, 2, 2)),
        (Rect(3, 0, 2, 6), Rect(1, 0, 2, 3)),
        (Rect(0, 0, 2, 6), NOTHING),
        (Rect(6, 0, 2, 6), NOTHING),
        (Rect(0, 4, 8, 2), NOTHING),
        (Rect(3, 2, 0, 0), NOTHING),
        (Rect(0, 0, 0xFFFFFFFF, 0xFFFFFFFF), Rect(0, 0, 4, 3)),
        (Rect(0xFFFFFFFF, 0, 0xFFFFFFFF, 6), NOTHING),
    ],
)
def test_damage_is_what_is_visible(picture: Picture, flushed: Rect, damage: Rect) -> None:
    scanout = settled(picture, Rect(2, 1, 4, 3))
    scanout.flush(flushed)
    assert scanout.damage == damage
    assert scanout.has_news == bool(damage)


def test_damage_is_merged_until_it_is_taken(picture: Picture) -> None:
    scanout = settled(picture, Rect(0, 0, 8, 6))
    scanout.flush(Rect(1, 1, 1, 1))
    scanout.flush(Rect(6, 2, 1, 3))
    scanout.flush(Rect(2, 2, 1, 1))
    assert scanout.take_damage() == Rect(1, 1, 6, 4)
    assert not scanout.has_news
    scanout.flush(Rect(3, 3, 1, 1))
    assert scanout.take_damage() == Rect(3, 3, 1, 1)


def test_a_smaller_picture_takes_the_damage_of_the_larger_with_it(picture: Picture) -> None:
    scanout = settled(picture, Rect(0, 0, 8, 6))
    scanout.flush(Rect(7, 5, 1, 1))
    scanout.show(Framebuffer.of(picture), Rect(0, 0, 2, 2))
    assert scanout.damage == Rect(0, 0, 2, 2)


def test_a_new_front_end_gets_everything(picture: Picture) -> None:
    scanout = settled(picture, Rect(2, 1, 4, 3))
    scanout.cursor.reshape(SHAPE, 1, 2)
    scanout.cursor.take_news()
    scanout.repaint()
    assert scanout.resized
    assert scanout.take_damage() == Rect(0, 0, 4, 3)
    assert scanout.cursor.take_news()[1]


def test_reset_shows_nothing(picture: Picture) -> None:
    scanout = settled(picture, Rect(2, 1, 4, 3))
    scanout.cursor.reshape(SHAPE, 1, 2)
    scanout.reset()
    assert scanout.framebuffer is None
    assert scanout.resized
    assert not scanout.damage
    assert not scanout.cursor.shape
    assert scanout.cursor.take_news() == (True, False)


# --- Cursors --------------------------------------------------------------------------------------------


def test_news_of_a_cursor() -> None:
    cursor = Cursor()
    assert not cursor.has_news
    cursor.move(3, 4)
    assert cursor.has_news
    assert cursor.take_news() == (True, False)
    assert not cursor.has_news
    cursor.reshape(SHAPE, 5, 6)
    assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y) == (3, 4, 5, 6)
    assert cursor.take_news()[1]
    cursor.hide()
    assert not cursor.visible
    assert cursor.take_news() == (True, False)
    cursor.hide()
    assert not cursor.has_news, "it was hidden before"
    cursor.show()
    assert (cursor.visible, cursor.shape) == (True, SHAPE)
    assert cursor.take_news() == (True, False), "the front-end has its shape"


def test_a_cursor_that_is_hidden_before_its_shape_was_sent() -> None:
    cursor = Cursor()
    cursor.reshape(SHAPE, 0, 0)
    cursor.hide()
    assert cursor.take_news() == (True, False)
    cursor.show()
    assert cursor.take_news() == (True, True), "the front-end has yet to hear of its shape"
    assert not cursor.has_news


def test_a_cursor_without_a_shape_cannot_be_shown() -> None:
    cursor = Cursor()
    cursor.show()
    assert not cursor.visible


def test_a_hidden_cursor_is_not_drawn_again() -> None:
    cursor = Cursor()
    cursor.redraw()
    assert not cursor.has_news


@pytest.mark.parametrize("kind", Format)
def test_the_shape_is_a8r8g8b8(kind: Format) -> None:
    """Also of a format without alpha, where Linux puts it all the same."""
    picture = painted(Picture(1, kind, 64, 64))
    pixels = noise(64 * 64 * 4)
    wanted = bytearray(pixels)
    for place, channel in enumerate("BGRA"):
        wanted[place::4] = pixels[kind.channels.replace("X", "A").index(channel) :: 4]
    assert cursor_shape(picture) == bytes(wanted)
    assert picture.copy_rows(0, len(pixels), 1, len(pixels)) == pixels, "the resource stays as it is"


def test_the_shape_of_a_blob() -> None:
    guest, blob, pixels = Guest(), Blob(1, len(SHAPE)), noise(len(SHAPE))
    assert cursor_shape(blob) == SHAPE, "it has no memory yet"
    guest.memory.write(RAM, pixels)
    blob.backing = guest.gather((RAM, len(SHAPE)))
    assert cursor_shape(blob) == pixels


@pytest.mark.parametrize("size", [(63, 64), (64, 63), (65, 64), (64, 65), (128, 32), (4096, 1)])
def test_pictures_of_another_size_are_no_cursors(size: tuple[int, int]) -> None:
    assert cursor_shape(Picture(1, Format.B8G8R8A8, *size)) is None


def test_blobs_that_are_too_small_are_no_cursors() -> None:
    assert cursor_shape(Blob(1, len(SHAPE) - 1)) is None
