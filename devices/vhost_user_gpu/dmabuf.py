"""Blobs as dmabufs: the front-end's GPU reads the guest's memory directly, without a copy.

/dev/udmabuf makes a dmabuf of pages of memfds. Front-ends use memfds for guest memory.
"""

import fcntl
import logging
import os
import struct
from typing import Any

import vhostd.vhost_user.gpu_messages as wire
from vhost_user_gpu.resource import Blob
from vhost_user_gpu.scanout import Scanout
from vhostd import Fd, Gather, Grants, Ioctl, Layout, Row, SetupError

log = logging.getLogger(__name__)

DEVICE = "/dev/udmabuf"
# Linux, include/uapi/linux/udmabuf.h
UDMABUF_CREATE_LIST = Ioctl.writing("u", 0x43, size=8)
UDMABUF_FLAGS_CLOEXEC = 1
CREATE_LIST = struct.Struct("=II")  # flags, count; then `count` items
CREATE_ITEM = struct.Struct("=I4xQQ")  # memfd, offset, size
LINEAR = 0  # DRM_FORMAT_MOD_LINEAR: rows of pixels one after the other


class Exporter:
    """Makes dmabufs of what scan-outs show, where possible."""

    def __init__(self, path: str = DEVICE) -> None:
        """Raises SetupError if there is no such device, or this program may not open it."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise SetupError(f"--dmabuf: {path}: {error.strerror}") from None

    def grants(self) -> Grants:
        """The ioctl that makes dmabufs."""
        return Grants(ioctls=(UDMABUF_CREATE_LIST,))

    def close(self) -> None:
        """Makes no more dmabufs. The dmabufs that exist stay valid."""
        os.close(self._fd)

    def export(self, scanout: Scanout) -> Fd | None:
        """A dmabuf of what the scan-out shows, for the caller to close; None if there can be none.

        There can be one only for a blob of whole pages, in no more pieces than the host's limit (by default
        1,024).
        """
        framebuffer = scanout.framebuffer
        # The protocol cannot say where in the dmabuf a picture begins.
        if framebuffer is None or framebuffer.offset or not isinstance(framebuffer.resource, Blob):
            return None
        backing = framebuffer.resource.backing
        try:
            return None if backing is None else Fd(self._create(backing))
        except OSError as error:
            log.warning("scan-out %d is copied: no dmabuf: %s", scanout.number, error)
            return None

    def _create(self, backing: Gather) -> int:
        files = backing.files()
        items = b"".join(CREATE_ITEM.pack(fd, offset, length) for fd, offset, length in files)
        create = bytearray(CREATE_LIST.pack(UDMABUF_FLAGS_CLOEXEC, len(files)) + items)
        number: int = fcntl.ioctl(self._fd, UDMABUF_CREATE_LIST.number, create)
        return number


def dmabuf_message(scanout: Scanout, *, with_modifier: bool) -> tuple[Row[Any, None], Layout]:
    """The message that carries a scan-out's dmabuf. For an empty scan-out it says that there is none."""
    place = wire.DmabufScanout(scanout.number, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    if (shown := scanout.framebuffer) is not None:
        layout = (shown.width, shown.height, shown.stride, 0, shown.format.fourcc)
        place = wire.DmabufScanout(scanout.number, *scanout.rect, *layout)
    if with_modifier:
        return wire.DMABUF_SCANOUT2, wire.DmabufScanout2(place.pack(), LINEAR)
    return wire.DMABUF_SCANOUT, place
