"""OpenGL ES 2 by Mesa's EGL and GBM, as far as the tests use it: ctypes, inside the guest.

A context draws on a display device (`OnScreen`), or into memory that nobody sees (`OffScreen`).
"""

import ctypes
import os
from array import array
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_float, c_int, c_uint, c_void_p
from typing import Any

from tests.guest.kms import XRGB8888, Card, Connector, Framebuffer, Mode

EGL_PLATFORM_GBM, EGL_PLATFORM_SURFACELESS = 0x31D7, 0x31DD
EGL_ES_API = 0x30A0
EGL_BLUE_SIZE, EGL_GREEN_SIZE, EGL_RED_SIZE, EGL_DEPTH_SIZE = range(0x3022, 0x3026)
EGL_NATIVE_VISUAL_ID, EGL_SURFACE_TYPE, EGL_RENDERABLE_TYPE = 0x302E, 0x3033, 0x3040
EGL_WINDOW_BIT, EGL_ES2_BIT = 4, 4
EGL_NONE, EGL_CONTEXT_VERSION = 0x3038, 0x3098
EGL_HEIGHT, EGL_WIDTH = 0x3056, 0x3057
EGL_DMA_BUF, EGL_FOURCC, EGL_FD, EGL_OFFSET, EGL_PITCH = range(0x3270, 0x3275)
MOST_CONFIGS = 128

GBM_SCANOUT, GBM_RENDERING = 1, 4

GL_RENDERER = 0x1F01
GL_VERTEX_SHADER, GL_FRAGMENT_SHADER = 0x8B31, 0x8B30
GL_LINK_STATUS = 0x8B82
GL_FRAMEBUFFER, GL_RENDERBUFFER = 0x8D40, 0x8D41
GL_COLOR_ATTACHMENT, GL_DEPTH_ATTACHMENT = 0x8CE0, 0x8D00
GL_RGBA8, GL_DEPTH16 = 0x8058, 0x81A5
GL_RGBA, GL_BYTE, GL_FLOAT = 0x1908, 0x1401, 0x1406
GL_TEXTURE, GL_NEAREST, GL_CLAMP = 0x0DE1, 0x2600, 0x812F
GL_MIN_FILTER, GL_MAG_FILTER, GL_WRAP_S, GL_WRAP_T = 0x2801, 0x2800, 0x2802, 0x2803
GL_TRIANGLES, GL_TRIANGLE_STRIP = 4, 5


class GlError(Exception):
    """A function of EGL, GBM or OpenGL has failed."""


class Library:
    """A shared library; `result` is the type that its functions return."""

    def __init__(self, name: str, result: Any) -> None:
        self._library = ctypes.CDLL(name)
        self._result = result

    def __call__(self, function: str, *arguments: Any, result: Any = None) -> Any:
        """Calls a function; floats are GLfloats, and integers are ints or pointers."""
        call = self._library[function]
        call.restype = result or self._result
        return call(*(_argument(each) for each in arguments))


egl = Library("libEGL.so.1", c_int)
gbm = Library("libgbm.so.1", c_void_p)
gl = Library("libGLESv2.so.2", c_uint)


def _argument(value: Any) -> Any:
    if isinstance(value, float):
        return c_float(value)
    if value is None or (isinstance(value, int) and not -(1 << 31) <= value < 1 << 31):
        return c_void_p(value)
    return value


class Context:
    """An OpenGL ES 2 context; it is the current one."""

    def __init__(self, platform: int, native: int | None, surface_bit: int) -> None:
        self._native = native
        self.display = _made("eglGetPlatformDisplay", platform, native, None)
        if not egl("eglInitialize", self.display, None, None):
            raise GlError("eglInitialize")
        egl("eglBindAPI", EGL_ES_API)
        self.config = self._config(surface_bit)
        version = (c_int * 3)(EGL_CONTEXT_VERSION, 2, EGL_NONE)
        self.context = _made("eglCreateContext", self.display, self.config, None, version)

    def make_current(self, surface: int | None) -> None:
        """Draws into `surface` from now on."""
        if not egl("eglMakeCurrent", self.display, surface, surface, self.context):
            raise GlError("eglMakeCurrent")

    def renderer(self) -> str:
        """Who draws."""
        name: bytes = gl("glGetString", GL_RENDERER, result=c_char_p)
        return name.decode()

    def use_picture(self, card: Card, picture: Framebuffer) -> None:
        """Uses a picture of the card's own memory as a texture, uncopied."""
        fd = card.export(picture)
        wish = [EGL_WIDTH, picture.width, EGL_HEIGHT, picture.height, EGL_FOURCC, XRGB8888]
        wish += [EGL_FD, fd, EGL_OFFSET, 0, EGL_PITCH, picture.pitch, EGL_NONE]
        attributes = (ctypes.c_ssize_t * len(wish))(*wish)
        image = _made("eglCreateImage", self.display, None, EGL_DMA_BUF, None, attributes)
        os.close(fd)
        find = _made("eglGetProcAddress", b"glEGLImageTargetTexture2DOES")
        gl("glBindTexture", GL_TEXTURE, _new("glGenTextures"))
        ctypes.CFUNCTYPE(None, c_uint, c_void_p)(find)(GL_TEXTURE, image)
        _look_up_exactly()

    def close(self) -> None:
        """Frees the context and all that was made in it."""
        egl("eglMakeCurrent", self.display, None, None, None)
        egl("eglDestroyContext", self.display, self.context)
        egl("eglTerminate", self.display)
        if self._native:
            gbm("gbm_device_destroy", self._native)

    def _config(self, surface_bit: int) -> int:
        """The first configuration that can be shown as it is."""
        wish = [EGL_SURFACE_TYPE, surface_bit, EGL_RENDERABLE_TYPE, EGL_ES2_BIT, EGL_RED_SIZE, 8]
        wish += [EGL_GREEN_SIZE, 8, EGL_BLUE_SIZE, 8, EGL_DEPTH_SIZE, 16, EGL_NONE]
        configs, count, visual = (c_void_p * MOST_CONFIGS)(), c_int(), c_int()
        egl("eglChooseConfig", self.display, (c_int * len(wish))(*wish), configs, MOST_CONFIGS, byref(count))
        for config in configs[: count.value]:
            egl("eglGetConfigAttrib", self.display, config, EGL_NATIVE_VISUAL_ID, byref(visual))
            if not surface_bit or visual.value == XRGB8888:
                return int(config or 0)
        raise GlError("no configuration can be shown")


class OffScreen(Context):
    """A picture in memory. `card` is whose renderer draws; without one a program in this guest does."""

    def __init__(self, width: int, height: int, card: Card | None) -> None:
        native = gbm("gbm_create_device", card.fd) if card else None
        super().__init__(EGL_PLATFORM_GBM if card else EGL_PLATFORM_SURFACELESS, native, surface_bit=0)
        self.make_current(None)
        gl("glBindFramebuffer", GL_FRAMEBUFFER, _new("glGenFramebuffers"))
        for attachment, kind in ((GL_COLOR_ATTACHMENT, GL_RGBA8), (GL_DEPTH_ATTACHMENT, GL_DEPTH16)):
            buffer = _new("glGenRenderbuffers")
            gl("glBindRenderbuffer", GL_RENDERBUFFER, buffer)
            gl("glRenderbufferStorage", GL_RENDERBUFFER, kind, width, height)
            gl("glFramebufferRenderbuffer", GL_FRAMEBUFFER, attachment, GL_RENDERBUFFER, buffer)
        gl("glViewport", 0, 0, width, height)


class OnScreen(Context):
    """A picture that fills a connector in one of its modes."""

    def __init__(self, card: Card, connector: Connector, mode: Mode) -> None:
        device = gbm("gbm_create_device", card.fd)
        super().__init__(EGL_PLATFORM_GBM, device, EGL_WINDOW_BIT)
        self._card, self._connector, self._mode = card, connector, mode
        flags = GBM_SCANOUT | GBM_RENDERING
        self._frames = gbm("gbm_surface_create", device, mode.width, mode.height, XRGB8888, flags)
        self._surface = _made("eglCreateWindowSurface", self.display, self.config, self._frames, None)
        self.make_current(self._surface)
        self._framebuffers: dict[int, Framebuffer] = {}  # by the address of their gbm_bo
        self._shown = 0
        gl("glViewport", 0, 0, mode.width, mode.height)

    def show(self) -> None:
        """Shows what was drawn; returns when that is on the screen."""
        egl("eglSwapBuffers", self.display, self._surface)
        buffer = gbm("gbm_surface_lock_front_buffer", self._frames)
        framebuffer = self._framebuffers.get(buffer) or self._framebuffer(buffer)
        if self._shown:
            self._card.flip(self._connector, framebuffer)
            self._card.wait_flip()
            gbm("gbm_surface_release_buffer", self._frames, self._shown)
        else:
            self._card.show(self._connector, self._mode, framebuffer)
        self._shown = buffer

    def _framebuffer(self, buffer: int) -> Framebuffer:
        handle = gbm("gbm_bo_get_handle", buffer, result=ctypes.c_uint64)
        pitch = gbm("gbm_bo_get_stride", buffer, result=c_uint)
        width, height = self._mode.width, self._mode.height
        made = self._card.add_framebuffer(width, height, handle & 0xFFFFFFFF, pitch)
        self._framebuffers[buffer] = made
        return made


class Program:
    """A pair of shaders, in use; `a_place` is the vertices' attribute."""

    def __init__(self, vertex: str, fragment: str) -> None:
        self._program = gl("glCreateProgram")
        for kind, text in ((GL_VERTEX_SHADER, vertex), (GL_FRAGMENT_SHADER, fragment)):
            gl("glAttachShader", self._program, _shader(kind, text))
        gl("glBindAttribLocation", self._program, 0, b"a_place")
        gl("glLinkProgram", self._program)
        linked = c_int()
        gl("glGetProgramiv", self._program, GL_LINK_STATUS, byref(linked))
        if not linked.value:
            raise GlError("the shaders do not link")
        gl("glUseProgram", self._program)

    def set(self, name: str, *values: float) -> None:
        """Sets a uniform of as many floats."""
        where = gl("glGetUniformLocation", self._program, name.encode())
        gl(f"glUniform{len(values)}f", where, *(float(value) for value in values))

    def draw(self, kind: int, places: Sequence[float], size: int) -> None:
        """Draws vertices of `size` numbers each."""
        self._places = array("f", places)  # lives until it is drawn
        gl("glVertexAttribPointer", 0, size, GL_FLOAT, 0, 0, c_void_p(self._places.buffer_info()[0]))
        gl("glEnableVertexAttribArray", 0)
        gl("glDrawArrays", kind, 0, len(places) // size)


def use_texture(width: int, height: int, pixels: bytes) -> None:
    """Makes a texture of RGBA pixels, and uses it."""
    gl("glBindTexture", GL_TEXTURE, _new("glGenTextures"))
    gl("glTexImage2D", GL_TEXTURE, 0, GL_RGBA, width, height, 0, GL_RGBA, GL_BYTE, pixels)
    _look_up_exactly()


def _look_up_exactly() -> None:
    """Has the texture that is used looked up pixel by pixel."""
    for name, value in (
        (GL_MIN_FILTER, GL_NEAREST),
        (GL_MAG_FILTER, GL_NEAREST),
        (GL_WRAP_S, GL_CLAMP),
        (GL_WRAP_T, GL_CLAMP),
    ):
        gl("glTexParameteri", GL_TEXTURE, name, value)


def read_pixels(width: int, height: int) -> bytes:
    """What was drawn: RGB, rows from the top."""
    pixels = ctypes.create_string_buffer(4 * width * height)
    gl("glReadPixels", 0, 0, width, height, GL_RGBA, GL_BYTE, pixels)
    rows = [pixels.raw[start : start + 4 * width] for start in range(0, 4 * width * height, 4 * width)]
    upright = bytearray(b"".join(reversed(rows)))
    del upright[3::4]
    return bytes(upright)


def check() -> None:
    """Raises GlError if OpenGL has noted an error since the last call."""
    if error := gl("glGetError"):
        raise GlError(f"OpenGL's error {error:#x}")


def _made(function: str, *arguments: Any) -> int:
    made = egl(function, *arguments, result=c_void_p)
    if not made:
        raise GlError(f"{function}: {egl('eglGetError'):#x}")
    return int(made)


def _new(function: str) -> int:
    name = c_uint()
    gl(function, 1, byref(name))
    return name.value


def _shader(kind: int, text: str) -> int:
    shader: int = gl("glCreateShader", kind)
    gl("glShaderSource", shader, 1, byref(c_char_p(text.encode())), None)
    gl("glCompileShader", shader)
    return shader
