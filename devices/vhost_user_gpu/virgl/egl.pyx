# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""EGL and GL, as libvirglrenderer has made them current: what it leaves to its callers.

Its own functions say nothing of a texture's modifier up to 0.10, and have room for one plane only.
"""

import errno
import os

from libc.stdint cimport int32_t, uint32_t, uint64_t, uintptr_t

cdef extern from "<dlfcn.h>":
    enum:
        RTLD_NOW
        RTLD_GLOBAL
    void *dlopen(const char *name, int flags)
    void *dlsym(void *library, const char *name)
    const char *dlerror()

LIBRARY = "libEGL.so.1"
EXPORT = b"EGL_MESA_image_dma_buf_export"

cdef enum:  # EGL/egl.h and EGL/eglext.h
    EXTENSIONS = 0x3055
    GL_TEXTURE_2D = 0x30B1
    MOST_PLANES = 4

ctypedef void *(*GetProcAddress)(const char *name)
ctypedef void *(*GetCurrent)()
ctypedef const char *(*QueryString)(void *display, int32_t name)
ctypedef void *(*CreateImage)(
    void *display, void *context, uint32_t target, void *buffer, const int32_t *attributes
)
ctypedef uint32_t (*DestroyImage)(void *display, void *image)
ctypedef uint32_t (*QueryImage)(void *display, void *image, int *fourcc, int *planes, uint64_t *modifiers)
ctypedef uint32_t (*ExportImage)(void *display, void *image, int *fds, int32_t *strides, int32_t *offsets)
ctypedef void (*Finish)()


cdef class Egl:
    """The display and the context that are current. Raises OSError if there is no EGL."""

    cdef GetProcAddress _find

    def __cinit__(self):
        cdef void *library = dlopen(LIBRARY.encode(), RTLD_NOW | RTLD_GLOBAL)
        if library is NULL:
            raise OSError(dlerror().decode())
        self._find = <GetProcAddress> dlsym(library, b"eglGetProcAddress")
        if self._find is NULL:
            raise OSError(dlerror().decode())

    cdef void *_function(self, const char *name) except NULL:
        cdef void *found = self._find(name)
        if found is NULL:
            raise OSError(errno.ENOSYS, f"EGL has no {name.decode()}")
        return found

    @property
    def exports(self):
        """Whether textures can be exported at all, as far as EGL says."""
        cdef void *display = (<GetCurrent> self._function(b"eglGetCurrentDisplay"))()
        cdef const char *names = NULL
        if display is not NULL:
            names = (<QueryString> self._function(b"eglQueryString"))(display, EXTENSIONS)
        return names is not NULL and EXPORT in names.split()

    def export(self, uint32_t texture):
        """A dmabuf of a GL texture: its fd, which the caller closes, stride, offset, fourcc and modifier.

        Raises OSError if there can be none, or only one of several planes.
        """
        cdef void *display = (<GetCurrent> self._function(b"eglGetCurrentDisplay"))()
        cdef void *context = (<GetCurrent> self._function(b"eglGetCurrentContext"))()
        cdef CreateImage create = <CreateImage> self._function(b"eglCreateImageKHR")
        cdef DestroyImage destroy = <DestroyImage> self._function(b"eglDestroyImageKHR")
        cdef void *image = create(display, context, GL_TEXTURE_2D, <void *> <uintptr_t> texture, NULL)
        if image is NULL:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        try:
            return self._export(display, image)
        finally:
            destroy(display, image)

    cdef tuple _export(self, void *display, void *image):
        cdef QueryImage query = <QueryImage> self._function(b"eglExportDMABUFImageQueryMESA")
        cdef ExportImage export = <ExportImage> self._function(b"eglExportDMABUFImageMESA")
        cdef int fourcc = 0
        cdef int planes = 0
        cdef uint64_t modifiers[MOST_PLANES]
        cdef int fds[MOST_PLANES]
        cdef int32_t strides[MOST_PLANES]
        cdef int32_t offsets[MOST_PLANES]
        if not query(display, image, &fourcc, &planes, NULL) or planes != 1:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        if not query(display, image, &fourcc, &planes, modifiers):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        fds[0] = -1
        if not export(display, image, fds, strides, offsets) or fds[0] < 0:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return fds[0], <uint32_t> strides[0], <uint32_t> offsets[0], <uint32_t> fourcc, modifiers[0]

    def finish(self):
        """Waits until GL has done all that it was told in the current context."""
        (<Finish> self._function(b"glFinish"))()
