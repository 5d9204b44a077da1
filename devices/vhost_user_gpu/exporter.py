"""Exporter: what a scan-out shows as a dmabuf, where that is possible.

A texture's dmabuf is made by the renderer (virgl/). One of a blob is made here: /dev/udmabuf makes dmabufs of
pages of memfds, and front-ends use memfds for guest memory.
"""

import fcntl
import logging
import os
import struct
from typing import Any

import vhostd.vhost_user.gpu_messages as wire
from vhost_user_gpu.dmabuf import INVALID, LINEAR, Dmabuf
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.resource import Blob
from vhost_user_gpu.scanout import Framebuffer, Scanout
from vhostd import Fd, Gather, Grants, Ioctl, Layout, Row, SetupError

log = logging.getLogger(__name__)

DEVICE = "/dev/udmabuf"
# Linux, include/uapi/linux/udmabuf.h
UDMABUF_CREATE_LIST = Ioctl.writing("u", 0x43, size=8)
UDMABUF_FLAGS_CLOEXEC = 1
CREATE_LIST = struct.Struct("=II")  # flags, count; then `count` items
CREATE_ITEM = struct.Struct("=I4xQQ")  # memfd, offset, size


class Exporter:
    """Makes dmabufs of what scan-outs show, where possible."""

    def __init__(self, path: str = DEVICE, *, blobs: bool = True) -> None:
        """Raises SetupError if there is no such device, or this program may not open it.

        That is no error if there may be dmabufs of something else than `blobs`.
        """
        self._device: Fd | None = None
        try:
            self._device = Fd(os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            if blobs:
                raise SetupError(f"--dmabuf: {path}: {error.strerror}") from None

    def grants(self) -> Grants:
        """The ioctl that makes dmabufs."""
        return Grants() if self._device is None else Grants(ioctls=(UDMABUF_CREATE_LIST,))

    def close(self) -> None:
        """Makes no more dmabufs. The dmabufs that exist stay valid."""
        if self._device is not None:
            self._device.close()

    def export(self, scanout: Scanout, *, with_modifier: bool) -> Dmabuf | None:
        """A dmabuf of what the scan-out shows, with an fd for the caller to close; None if there can be none.

        The front-end hears of a modifier only `with_modifier`.
        """
        shown = scanout.framebuffer
        if shown is None:
            return None
        dmabuf = shown.resource.dmabuf
        try:
            if dmabuf is None:
                return self._export_blob(shown)
            return dmabuf.copy() if _can_show(dmabuf, scanout.rect, with_modifier=with_modifier) else None
        except OSError as error:
            log.warning("scan-out %d is copied: no dmabuf: %s", scanout.number, error)
            return None

    def _export_blob(self, shown: Framebuffer) -> Dmabuf | None:
        """A dmabuf of a blob of whole pages, in no more pieces than the host's limit (by default 1,024)."""
        # The protocol cannot say where in the dmabuf a picture begins.
        if self._device is None or shown.offset or not isinstance(shown.resource, Blob):
            return None
        backing = shown.resource.backing
        if backing is None:
            return None
        fd = Fd(_create(self._device, backing))
        return Dmabuf(fd, shown.width, shown.height, shown.stride, shown.format.fourcc)


def dmabuf_message(
    scanout: Scanout, dmabuf: Dmabuf | None, *, with_modifier: bool
) -> tuple[Row[Any, None], Layout]:
    """The message that carries a scan-out's dmabuf; None says that there is none."""
    place = wire.DmabufScanout(scanout.number, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    if dmabuf is not None:
        layout = (dmabuf.width, dmabuf.height, dmabuf.stride, dmabuf.flags, dmabuf.fourcc)
        place = wire.DmabufScanout(scanout.number, *scanout.rect, *layout)
    if with_modifier:
        return wire.DMABUF_SCANOUT2, wire.DmabufScanout2(place.pack(), dmabuf.modifier if dmabuf else LINEAR)
    return wire.DMABUF_SCANOUT, place


def _can_show(dmabuf: Dmabuf, rect: Rect, *, with_modifier: bool) -> bool:
    """Whether all front-ends find a rectangle in a texture's dmabuf.

    QEMU takes no notice of where in a picture a scan-out begins, and a texture may be upside down.
    """
    is_known = with_modifier or dmabuf.modifier in (LINEAR, INVALID)
    return is_known and rect == (0, 0, dmabuf.width, dmabuf.height)


def _create(device: Fd, backing: Gather) -> int:
    files = backing.files()
    items = b"".join(CREATE_ITEM.pack(fd, offset, length) for fd, offset, length in files)
    create = bytearray(CREATE_LIST.pack(UDMABUF_FLAGS_CLOEXEC, len(files)) + items)
    number: int = fcntl.ioctl(device.fileno(), UDMABUF_CREATE_LIST.number, create)
    return number
