"""Texture: a resource that the renderer has, and what of it is shared, or read back, to be shown."""

import mmap
import os
from collections.abc import Callable

from vhost_user_gpu.answer import Pending
from vhost_user_gpu.commands import ResourceCreate3d
from vhost_user_gpu.dmabuf import Dmabuf
from vhost_user_gpu.pixels import PIXEL, Format
from vhost_user_gpu.rect import NOTHING, Rect
from vhost_user_gpu.resource import RESOURCE_COST, Picture, Resource
from vhostd import Fd

BUFFER = 0  # PIPE_BUFFER, a `target` of plain bytes
# Bytes of a pixel, by virglrenderer's numbers (virgl_hw.h). A format that is not here counts as the largest.
WIDEST = 16
SIZES = {
    **dict.fromkeys((*Format, 7, 8, 17, 18, 19, 20, 21, 22, 28), 4),
    **dict.fromkeys((5, 6, 7, 12, 16, 48, 65), 2),
    **dict.fromkeys((9, 10, 11, 23, 64), 1),
    **dict.fromkeys((29, 51, 94), 8),
}


class Texture(Picture):
    """A resource in the renderer's memory, with room for its pixels here once it is shown.

    If it is shared as a dmabuf, its pixels are read only when somebody wants them.
    """

    def __init__(self, new: ResourceCreate3d) -> None:
        Resource.__init__(self, new.resource_id)
        self.width, self.height = new.width, new.height
        self.stride = PIXEL * new.width
        self.levels = new.last_level + 1
        self.cost = cost(new)
        self.is_flat = new.target != BUFFER and new.depth == new.array_size == 1 and new.nr_samples <= 1
        self.kind = new.format
        self.files: set[tuple[int, int]] = set()  # that its backing is in, as the renderer knows them
        self.region = 0  # the renderer's number of the pixels' memory; 0 while there is none
        self.has_pixels = False  # whether there is room for them here
        self.unread = NOTHING  # what has been shown since its pixels were read
        self._fd: Fd | None = None
        self._dmabuf: Dmabuf | None = None
        self._sharing: Pending | None = None
        self._read: Callable[[Rect], Pending] | None = None
        self._reading: Pending | None = None

    # --- As a dmabuf ------------------------------------------------------------------------------------

    @property
    def dmabuf(self) -> Dmabuf | None:
        return self._dmabuf

    @property
    def sharing(self) -> Pending | None:
        return _unanswered(self._sharing)

    @property
    def is_asked(self) -> bool:
        """Whether the renderer was asked for a dmabuf of it."""
        return self._sharing is not None

    def await_dmabuf(self, sharing: Pending, read: Callable[[Rect], Pending]) -> None:
        """It is a dmabuf, or never will be, when `sharing` is answered; `read` fetches pixels of it."""
        self._sharing, self._read = sharing, read

    def take_dmabuf(self, dmabuf: Dmabuf) -> None:
        """It is this dmabuf, which it owns."""
        self._dmabuf = dmabuf

    def refresh(self) -> Pending | None:
        if self._read is not None and self.unread:
            rect, self.unread = self.unread, NOTHING
            self._reading = self._read(rect)
        return _unanswered(self._reading)

    # --- As pixels --------------------------------------------------------------------------------------

    @property
    def is_displayable(self) -> bool:
        """Whether it is a plain picture, in a format that can be shown."""
        return self.is_flat and self.kind in Format.__members__.values()

    @property
    def picture_size(self) -> int:
        """The bytes that its pixels take here, and the row beyond them that the library wants."""
        return self.stride * (self.height + 1)

    def fileno(self) -> int:
        """The fd of its pixels' memory; ValueError if there is none."""
        if self._fd is None:
            raise ValueError(f"resource {self.number} has no pixels here")
        return self._fd.fileno()

    def close_fd(self) -> None:
        """Gives up the fd; the pixels stay."""
        if self._fd is not None:
            self._fd.close()

    def make_pixels(self) -> None:
        """Makes room for its pixels, black at first, in a file for the renderer to share; raises OSError."""
        self.format = Format(self.kind)
        self._fd = Fd(os.memfd_create("vhost-user-gpu picture", os.MFD_CLOEXEC))
        os.ftruncate(self._fd.fileno(), self.picture_size)
        self.pixels = mmap.mmap(self._fd.fileno(), self.picture_size)
        self.has_pixels = True

    def release(self) -> None:
        Resource.release(self)
        self.close_fd()
        if self._dmabuf is not None:
            self._dmabuf.fd.close()
        self._dmabuf = self._read = None
        if self.has_pixels:
            self.pixels.close()


def _unanswered(pending: Pending | None) -> Pending | None:
    return None if pending is None or pending.is_answered else pending


def cost(new: ResourceCreate3d) -> int:
    """The bytes that a resource may take of a guest's memory; a third more if it has mip levels."""
    size = 1 if new.target == BUFFER else SIZES.get(new.format, WIDEST)
    for count in (new.width, new.height, new.depth, new.array_size, new.nr_samples):
        size *= max(count, 1)
    return RESOURCE_COST + (size + size // 3 if new.last_level else size)
