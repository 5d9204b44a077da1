"""What can be a dmabuf. That it is the right one is tested in a guest, which has /dev/udmabuf."""

import os
from contextlib import closing

import pytest

from vhost_user_gpu.dmabuf import Dmabuf
from vhost_user_gpu.exporter import Exporter
from vhost_user_gpu.pixels import Format
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.resource import Blob, Picture
from vhost_user_gpu.scanout import Framebuffer, Scanout
from vhostd import Fd, Grants, SetupError

ABSENT = "/nonexistent/udmabuf"


def test_blobs_need_a_device() -> None:
    with pytest.raises(SetupError, match=f"--dmabuf: {ABSENT}: No such file or directory"):
        Exporter(ABSENT)


def test_without_blobs_there_may_be_none() -> None:
    with closing(Exporter(ABSENT, blobs=False)) as exporter:
        assert exporter.grants() == Grants()


@pytest.mark.parametrize("kind", ["nothing", "picture", "blob"])
def test_what_is_none(kind: str) -> None:
    scanout = Scanout(0)
    picture = Picture(1, Format.B8G8R8X8, 4, 4)
    with closing(picture.pixels), closing(Exporter(ABSENT, blobs=False)) as exporter:
        if kind == "picture":
            scanout.show(Framebuffer.of(picture), Rect(0, 0, 4, 4))
        elif kind == "blob":
            scanout.show(Framebuffer(Blob(2, 64), Format.B8G8R8X8, 4, 4, 16), Rect(0, 0, 4, 4))
        assert exporter.export(scanout, with_modifier=True) is None


def test_a_copy_has_an_fd_of_its_own() -> None:
    with Fd(os.memfd_create("dmabuf", os.MFD_CLOEXEC)) as fd:
        dmabuf = Dmabuf(fd, 4, 3, 64, 1, 2, 3)
        with dmabuf.copy().fd as copy:
            assert os.path.sameopenfile(copy.fileno(), fd.fileno())
            assert copy.fileno() != fd.fileno()
