"""Scan-outs: what each of the guest's monitors shows, and what of it the front-end has yet to get."""

from typing import NamedTuple, Self

from vhost_user_gpu.pixels import PIXEL, Format, to_wire
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.resource import Blob, Picture, Resource
from vhostd.vhost_user.gpu_messages import CURSOR_BYTES, CURSOR_SIDE


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
        """The bytes of the resource up to the end of the last pixel."""
        return self.offset + self.stride * (self.height - 1) + self.width * PIXEL

    def start(self, rect: Rect) -> int:
        """The offset in the resource of a rectangle's first pixel."""
        return self.offset + rect.y * self.stride + rect.x * PIXEL

    def is_sendable(self, rect: Rect) -> bool:
        """Whether a rectangle's bytes can be sent as they are: without gaps, in the format of the wire."""
        gapless = rect.width * PIXEL == self.stride or rect.height == 1
        return gapless and self.format.is_wire_format

    def copy(self, rect: Rect) -> bytearray:
        """A copy of a rectangle's pixels, in the format of the wire."""
        row = rect.width * PIXEL
        return to_wire(self.resource.copy_rows(self.start(rect), row, rect.height, self.stride), self.format)


class Scanout:
    """One monitor: a part of a framebuffer or nothing, and a cursor.

    Whether its pixels are copied to the front-end, or it has a dmabuf, is the display's to say (`is_copied`).
    The front-end's news: whether the picture was `replaced`, or even `resized`, and the `damage`, in the
    scan-out's own coordinates. Damage is merged while it waits. So a slow front-end misses frames, and
    nothing piles up.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.framebuffer: Framebuffer | None = None
        self.rect = NOTHING
        self.resized = False
        self.replaced = False
        self.damage = NOTHING
        self.is_copied = True
        self.cursor = Cursor()

    def show(self, framebuffer: Framebuffer | None, rect: Rect = NOTHING) -> None:
        """Shows a rectangle, which must fit, of a framebuffer; None shows nothing.

        If the size changes, all of it is painted. Otherwise a flush must say what has changed: a page flip is
        a SET_SCANOUT and a RESOURCE_FLUSH (virtio 1.3, 5.7.6.5).
        """
        if (rect.width, rect.height) != (self.rect.width, self.rect.height):
            self.resized = True
            self.damage = Rect(0, 0, rect.width, rect.height)
        self.replaced = self.replaced or (framebuffer, rect) != (self.framebuffer, self.rect)
        self.framebuffer = framebuffer
        self.rect = rect

    def shows(self, resource: Resource) -> bool:
        """Whether the scan-out shows this resource."""
        return self.framebuffer is not None and self.framebuffer.resource is resource

    def flush(self, rect: Rect) -> None:
        """Marks the visible part of a rectangle of the framebuffer as changed."""
        if visible := rect.common(self.rect):
            self.damage = self.damage.around(visible.moved(-self.rect.x, -self.rect.y))

    @property
    def has_news(self) -> bool:
        """Whether there is news for the front-end."""
        return self.replaced or bool(self.damage) or self.cursor.has_news

    def take_damage(self) -> Rect:
        """The rectangle to paint anew. It counts as painted from now on."""
        damage, self.damage = self.damage, NOTHING
        return damage

    def repaint(self) -> None:
        """Makes everything news, for a new front-end."""
        self.replaced = self.framebuffer is not None
        self.resize()
        self.cursor.redraw()

    def resize(self) -> None:
        """Makes the size and all pixels news."""
        self.resized = self.framebuffer is not None
        self.damage = Rect(0, 0, self.rect.width, self.rect.height)

    def reset(self) -> None:
        """Shows no picture and no cursor."""
        self.show(None)
        self.cursor.forget()


class Cursor:
    """A cursor's shape and position. A hidden cursor keeps its shape."""

    def __init__(self) -> None:
        self.x = self.y = self.hot_x = self.hot_y = 0
        self.shape: bytes = b""  # empty without a shape
        self.visible = False
        self._moved = False
        self._reshaped = False

    @property
    def has_news(self) -> bool:
        """Whether there is news for the front-end."""
        return self._moved or self._shape_is_news

    def take_news(self) -> tuple[bool, bool]:
        """Whether it was moved, shown or hidden, and whether its shape changed. Both count as sent then."""
        news = (self._moved, self._shape_is_news)
        self._moved = False
        self._reshaped = self._reshaped and not self.visible
        return news

    @property
    def _shape_is_news(self) -> bool:
        return self._reshaped and self.visible

    def move(self, x: int, y: int) -> None:
        """Moves the cursor."""
        self.x, self.y = x, y
        self._moved = True

    def reshape(self, shape: bytes, hot_x: int, hot_y: int) -> None:
        """Shows it with `CURSOR_BYTES` of pixels. Its hot spot is the pixel at the cursor's position."""
        self.shape, self.hot_x, self.hot_y = shape, hot_x, hot_y
        self._reshaped = self.visible = True

    def hide(self) -> None:
        """Hides the cursor."""
        self._moved = self._moved or self.visible
        self.visible = False

    def forget(self) -> None:
        """Hides the cursor, and drops its shape: it was another guest's."""
        self.hide()
        self.shape = b""
        self._reshaped = False

    def show(self) -> None:
        """Shows it again with its last shape, if it has one."""
        self._moved = self._moved or not self.visible
        self.visible = bool(self.shape)

    def redraw(self) -> None:
        """Makes the shape news again."""
        self._reshaped = bool(self.shape)


def cursor_shape(resource: Resource) -> bytes | None:
    """The pixels of a cursor's resource; None if its size is not 64 x 64."""
    if isinstance(resource, Picture) and resource.width == resource.height == CURSOR_SIDE:
        # Linux uses a format without alpha for cursors, but its pixels do have alpha.
        return bytes(Framebuffer.of(resource).copy(Rect(0, 0, CURSOR_SIDE, CURSOR_SIDE)))
    if isinstance(resource, Blob) and resource.size >= CURSOR_BYTES:
        return bytes(resource.copy_rows(0, CURSOR_BYTES, 1, CURSOR_BYTES))
    return None
