"""Looks at dmabufs as QEMU's displays do: by EGL, on the guest's GPU."""

import ctypes
from ctypes import CFUNCTYPE, c_int, c_ssize_t, c_uint, c_void_p

from tests.guest.inside.gles import (
    EGL_NONE,
    GL_BYTE,
    GL_COLOR_ATTACHMENT,
    GL_FRAMEBUFFER,
    GL_RGBA,
    GL_TEXTURE,
    OffScreen,
    check,
    egl,
    gl,
)
from tests.guest.kms import Card
from vhostd.frontend.drivers.gpu_dmabuf import UPSIDE_DOWN, Dmabuf

EGL_LINUX_DMA_BUF = 0x3270
EGL_HEIGHT, EGL_WIDTH, EGL_FOURCC = 0x3056, 0x3057, 0x3271
EGL_PLANE_FD, EGL_PLANE_OFFSET, EGL_PLANE_PITCH = 0x3272, 0x3273, 0x3274
EGL_MODIFIER_LOW, EGL_MODIFIER_HIGH = 0x3443, 0x3444
NO_MODIFIER = 0x00FF_FFFF_FFFF_FFFF


class Importer:
    """Takes dmabufs for textures of its own context."""

    def __init__(self, card: Card) -> None:
        self._context = OffScreen(16, 16, card)
        address = egl("eglGetProcAddress", b"glEGLImageTargetTexture2DOES", result=c_void_p)
        self._make_texture = CFUNCTYPE(None, c_uint, c_void_p)(address)

    def renderer(self) -> str:
        """Who reads."""
        return self._context.renderer()

    def pixels(self, dmabuf: Dmabuf) -> bytes:
        """The whole picture, from the top: blue, green, red and alpha of each pixel."""
        width, height = dmabuf.fd_width, dmabuf.fd_height
        image = self._image(dmabuf)
        texture, framebuffer = c_uint(), c_uint()
        gl("glGenTextures", 1, ctypes.byref(texture))
        gl("glBindTexture", GL_TEXTURE, texture.value)
        self._make_texture(GL_TEXTURE, image)
        gl("glGenFramebuffers", 1, ctypes.byref(framebuffer))
        gl("glBindFramebuffer", GL_FRAMEBUFFER, framebuffer.value)
        gl("glFramebufferTexture2D", GL_FRAMEBUFFER, GL_COLOR_ATTACHMENT, GL_TEXTURE, texture.value, 0)
        data = ctypes.create_string_buffer(4 * width * height)
        gl("glReadPixels", 0, 0, width, height, GL_RGBA, GL_BYTE, data)
        check()
        gl("glDeleteFramebuffers", 1, ctypes.byref(framebuffer))
        gl("glDeleteTextures", 1, ctypes.byref(texture))
        egl("eglDestroyImage", self._context.display, image)
        rows = [data.raw[start : start + 4 * width] for start in range(0, len(data), 4 * width)]
        picture = bytearray(b"".join(reversed(rows) if dmabuf.flags & UPSIDE_DOWN else rows))
        picture[0::4], picture[2::4] = picture[2::4], picture[0::4]
        return bytes(picture)

    def _image(self, dmabuf: Dmabuf) -> int:
        layout = [EGL_WIDTH, dmabuf.fd_width, EGL_HEIGHT, dmabuf.fd_height, EGL_FOURCC, dmabuf.fourcc]
        layout += [EGL_PLANE_FD, dmabuf.fileno(), EGL_PLANE_OFFSET, 0, EGL_PLANE_PITCH, dmabuf.stride]
        if dmabuf.modifier != NO_MODIFIER:
            layout += [
                EGL_MODIFIER_LOW,
                dmabuf.modifier & 0xFFFF_FFFF,
                EGL_MODIFIER_HIGH,
                dmabuf.modifier >> 32,
            ]
        layout.append(EGL_NONE)
        attributes = (c_ssize_t * len(layout))(*layout)
        image: int | None = egl(
            "eglCreateImage",
            self._context.display,
            None,
            EGL_LINUX_DMA_BUF,
            None,
            attributes,
            result=c_void_p,
        )
        assert image, f"{dmabuf}: EGL's error {egl('eglGetError', result=c_int):#x}"
        return image
