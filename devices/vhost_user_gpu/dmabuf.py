"""Dmabufs: memory with a picture, which the front-end's GPU reads without a copy."""

import os
from typing import NamedTuple

from vhostd import Fd

# Linux, include/uapi/drm/drm_fourcc.h
LINEAR = 0  # DRM_FORMAT_MOD_LINEAR: rows of pixels one after the other
INVALID = 0x00FF_FFFF_FFFF_FFFF  # DRM_FORMAT_MOD_INVALID: whoever imports it has to know


class Dmabuf(NamedTuple):
    """A dmabuf, whose fd belongs to the holder, and how the picture lies in it."""

    fd: Fd
    width: int
    height: int
    stride: int
    fourcc: int
    flags: int = 0  # of the 3D resource that it is
    modifier: int = LINEAR

    def copy(self) -> "Dmabuf":
        """The same with an fd of its own; raises OSError."""
        return self._replace(fd=Fd(os.dup(self.fd.fileno())))
