"""Scan-outs: what is to be seen on each of the guest's monitors, and what of it is news to the front-end."""

from typing import NamedTuple, Self

from vhost_user_gpu.pixels import PIXEL, Format, to_wire
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.resource import Blob, Picture, Resource
from vhost_user_gpu.wire import CURSOR_BYTES, CURSOR_SIDE


class Framebuffer(NamedTuple):
    """A resource as a picture: rows of pixels from `offset` on, `stride` bytes apart."""

    resource: Resource
    format: Format
    width: int
    height: int
    stride: int
    offset: int = 0

    @classmethod
    def of(cls, picture: Picture) -> Self:
        """The whole picture."""
        return cls(picture, picture.format, picture.width, picture.height, picture.stride)

    @property
    def size(self) -> int:
        """Bytes of the resource up to the end of the last pixel."""
        return self.offset + self.stride * (self.height - 1) + self.width * PIXEL

    def start(self, rect: Rect) -> int:
        """Where in the resource the first pixel of a rectangle is."""
        return self.offset + rect.y * self.stride + rect.x * PIXEL

    def is_sendable(self, rect: Rect) -> bool:
        """Whether a rectangle's bytes lie one after the other, as the front-end wants them."""
        gapless = rect.width * PIXEL == self.stride or rect.height == 1
        return gapless and self.format.is_wire_format

    def copy(self, rect: Rect) -> bytearray:
        """A rectangle's pixels as the front-end wants them."""
        row = rect.width * PIXEL
        return to_wire(self.resource.copy_rows(self.start(rect), row, rect.height, self.stride), self.format)


class Scanout:
    """One monitor: a part of a framebuffer or nothing, and a cursor.

    What the front-end has yet to hear of the picture: whether it was `replaced`, or even `resized`, and the
    `damage`, in the scan-out's own coordinates. Damage is merged while it waits, so that a slow front-end
    misses frames and nothing piles up.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.framebuffer: Framebuffer | None = None
        self.rect = NOTHING
        self.resized = False
        self.replaced = False
        self.damage = NOTHING
        self.cursor = Cursor()

    def show(self, framebuffer: Framebuffer | None, rect: Rect = NOTHING) -> None:
        """Shows a rectangle, which must fit, of a framebuffer; None shows nothing.

        Another size is painted as a whole. Otherwise a flush is to say what has changed: a page flip is a
        SET_SCANOUT and a RESOURCE_FLUSH (virtio 1.3, 5.7.6.5).
        """
        if (rect.width, rect.height) != (self.rect.width, self.rect.height):
            self.resized = True
            self.damage = Rect(0, 0, rect.width, rect.height)
        self.replaced = self.replaced or (framebuffer, rect) != (self.framebuffer, self.rect)
        self.framebuffer = framebuffer
        self.rect = rect

    def shows(self, resource: Resource) -> bool:
        """Whether the picture is of this resource."""
        return self.framebuffer is not None and self.framebuffer.resource is resource

    def flush(self, rect: Rect) -> None:
        """Marks what is visible of a rectangle of the framebuffer as changed."""
        if visible := rect.common(self.rect):
            self.damage = self.damage.around(visible.moved(-self.rect.x, -self.rect.y))

    @property
    def has_news(self) -> bool:
        """Whether there is anything that the front-end has yet to hear."""
        return self.replaced or bool(self.damage) or self.cursor.has_news

    def take_damage(self) -> Rect:
        """What is to be painted anew; it counts as painted."""
        damage, self.damage = self.damage, NOTHING
        return damage

    def repaint(self) -> None:
        """Makes everything news again, for a front-end that knows nothing yet."""
        self.replaced = self.framebuffer is not None
        self.resize()
        self.cursor.redraw()

    def resize(self) -> None:
        """Makes the size news, and all that there is to be seen."""
        self.resized = self.framebuffer is not None
        self.damage = Rect(0, 0, self.rect.width, self.rect.height)

    def reset(self) -> None:
        """Shows nothing any more, and no cursor."""
        self.show(None)
        self.cursor.forget()


class Cursor:
    """A cursor's shape and place; a hidden one keeps its shape."""

    def __init__(self) -> None:
        self.x = self.y = self.hot_x = self.hot_y = 0
        self.shape: bytes = b""  # empty until it has one
        self.visible = False
        self._moved = False
        self._reshaped = False

    @property
    def has_news(self) -> bool:
        """Whether there is anything that the front-end has yet to hear."""
        return self._moved or self._shape_is_news

    def take_news(self) -> tuple[bool, bool]:
        """Whether it was moved, shown or hidden, and whether it has another shape; both count as told."""
        news = (self._moved, self._shape_is_news)
        self._moved = False
        self._reshaped = self._reshaped and not self.visible
        return news

    @property
    def _shape_is_news(self) -> bool:
        return self._reshaped and self.visible

    def move(self, x: int, y: int) -> None:
        """Puts it elsewhere."""
        self.x, self.y = x, y
        self._moved = True

    def reshape(self, shape: bytes, hot_x: int, hot_y: int) -> None:
        """Shows it with `CURSOR_BYTES` of pixels; the hot spot is what is at the cursor's place."""
        self.shape, self.hot_x, self.hot_y = shape, hot_x, hot_y
        self._reshaped = self.visible = True

    def hide(self) -> None:
        """Shows it no longer."""
        self._moved = self._moved or self.visible
        self.visible = False

    def forget(self) -> None:
        """Shows it no longer, and has no shape: it was another guest's."""
        self.hide()
        self.shape = b""
        self._reshaped = False

    def show(self) -> None:
        """Shows it again with the shape that it had, if it had any."""
        self._moved = self._moved or not self.visible
        self.visible = bool(self.shape)

    def redraw(self) -> None:
        """Makes it news again."""
        self._reshaped = bool(self.shape)


def cursor_shape(resource: Resource) -> bytes | None:
    """The pixels of a cursor's resource, whose size must be right: 64 x 64; None if it is not."""
    if isinstance(resource, Picture) and resource.width == resource.height == CURSOR_SIDE:
        # Linux makes its cursors in a format without alpha, and puts one there all the same.
        return bytes(Framebuffer.of(resource).copy(Rect(0, 0, CURSOR_SIDE, CURSOR_SIDE)))
    if isinstance(resource, Blob) and resource.size >= CURSOR_BYTES:
        return bytes(resource.copy_rows(0, CURSOR_BYTES, 1, CURSOR_BYTES))
    return None
