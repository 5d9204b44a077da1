# cython: language_level=3, embedsignature=True, auto_pickle=False, autotestdict=False
"""libvirglrenderer, which is loaded when a renderer starts. Nobody else needs it, nor its headers.

What is called returns 0 or an errno, as a rule of either sign. There is one `Virgl` in a process.
"""

import errno
import os

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

cdef extern from "<dlfcn.h>":
    enum:
        RTLD_NOW
        RTLD_GLOBAL
    void *dlopen(const char *name, int flags)
    void *dlsym(void *library, const char *name)
    const char *dlerror()

cdef extern from "<sys/mman.h>":
    enum:
        PROT_READ
        PROT_WRITE
        MAP_SHARED
        MAP_NORESERVE
    void *MAP_FAILED
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)

cdef extern from "<sys/uio.h>":
    struct iovec:
        void *iov_base
        size_t iov_len

LIBRARY = "libvirglrenderer.so.1"
EGL = "libEGL.so.1"
GL_RENDERER, GL_VERSION = 0x1F01, 0x1F02

cdef enum:  # virglrenderer.h
    USE_EGL = 1
    THREAD_SYNC = 2
    USE_SURFACELESS = 8
    NEWEST_CALLBACKS = 4  # a library takes those of its own version, and of the ones before
    OLDEST_CALLBACKS = 2

cdef struct Callbacks:  # struct virgl_renderer_callbacks
    int version
    void (*write_fence)(void *cookie, uint32_t fence) noexcept
    void *create_gl_context
    void *destroy_gl_context
    void *make_current
    int (*get_drm_fd)(void *cookie) noexcept
    void (*write_context_fence)(void *cookie, uint32_t ctx_id, uint64_t ring_idx, uint64_t fence_id) noexcept
    void *get_server_fd
    void *get_egl_display

cdef struct Box:  # struct virgl_box
    uint32_t x
    uint32_t y
    uint32_t z
    uint32_t w
    uint32_t h
    uint32_t d

cdef struct CreateArgs:  # struct virgl_renderer_resource_create_args
    uint32_t handle
    uint32_t target
    uint32_t format
    uint32_t bind
    uint32_t width
    uint32_t height
    uint32_t depth
    uint32_t array_size
    uint32_t last_level
    uint32_t nr_samples
    uint32_t flags

cdef struct ResourceInfo:  # struct virgl_renderer_resource_info, and room for what versions add to it
    uint32_t handle
    uint32_t virgl_format
    uint32_t width
    uint32_t height
    uint32_t depth
    uint32_t flags
    uint32_t tex_id
    uint32_t stride
    uint32_t more[24]

ctypedef int (*Init)(void *cookie, int flags, Callbacks *callbacks)
ctypedef void (*Plain)()
ctypedef int (*GetPollFd)()
ctypedef void (*GetCapSet)(uint32_t number, uint32_t *version, uint32_t *size)
ctypedef void (*FillCaps)(uint32_t number, uint32_t version, void *caps)
ctypedef int (*ContextCreate)(uint32_t ctx_id, uint32_t length, const char *name)
ctypedef int (*ContextCreateWithFlags)(uint32_t ctx_id, uint32_t flags, uint32_t length, const char *name)
ctypedef void (*ContextDestroy)(uint32_t ctx_id)
ctypedef void (*ContextResource)(int ctx_id, int resource)
ctypedef int (*ResourceGetInfo)(int resource, ResourceInfo *info)
ctypedef int (*ResourceCreate)(CreateArgs *args, iovec *iov, uint32_t count)
ctypedef void (*ResourceUnref)(uint32_t resource)
ctypedef int (*AttachIov)(int resource, iovec *iov, int count)
ctypedef void (*DetachIov)(int resource, iovec **iov, int *count)
ctypedef int (*SubmitCmd)(void *buffer, int ctx_id, int dwords)
ctypedef int (*TransferIov)(
    uint32_t resource, uint32_t ctx_id, uint32_t level, uint32_t stride, uint32_t layer_stride,
    Box *box, uint64_t offset, iovec *iov, int count
)
ctypedef int (*CreateFence)(int fence, uint32_t ctx_id)
ctypedef int (*ContextCreateFence)(uint32_t ctx_id, uint32_t flags, uint64_t ring_idx, uint64_t fence)
ctypedef void *(*GetProcAddress)(const char *name)
ctypedef const char *(*GetString)(unsigned int name)

# Fences that have signalled since they were taken: the latest of the global ones, and each of a ring.
cdef list retired = []
cdef int drm_fd = -1


cdef void write_fence(void *cookie, uint32_t fence) noexcept with gil:
    retired.append((True, fence))


cdef void write_context_fence(void *cookie, uint32_t ctx_id, uint64_t ring_idx, uint64_t fence) noexcept with gil:
    retired.append((False, fence))


cdef int get_drm_fd(void *cookie) noexcept with gil:
    """The library closes the fd that it gets."""
    try:
        return os.dup(drm_fd) if drm_fd >= 0 else -1
    except OSError:
        return -1


cdef class Memory:
    """Memory that is shared by its file, as far as `size` bytes. It is unmapped with the object."""

    cdef unsigned char *start
    cdef readonly size_t size

    def __cinit__(self, int fd, size_t size):
        """Raises OSError; the caller keeps the fd."""
        cdef void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if start == MAP_FAILED:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.start = <unsigned char *> start
        self.size = size

    def __dealloc__(self):
        if self.start is not NULL:
            munmap(self.start, self.size)

    def bytes(self, uint64_t offset, uint64_t size):
        """A copy of bytes; raises ValueError if they are not all inside."""
        return self.at(offset, size)[:size]

    cdef unsigned char *at(self, uint64_t offset, uint64_t size) except NULL:
        if offset > self.size or size > self.size - offset:
            raise ValueError(f"{size} bytes at {offset} of {self.size}")
        return self.start + offset


cdef class Virgl:
    """The library, initialised with EGL: on a render node, or on what EGL finds by itself.

    Raises OSError if there is no such library, or no GL for it.
    """

    cdef void *_library
    cdef Callbacks _callbacks
    cdef SubmitCmd _submit
    cdef TransferIov _read
    cdef TransferIov _write
    cdef CreateFence _create_fence
    cdef Plain _poll
    cdef readonly int poll_fd
    cdef dict _held  # the memory of each resource's backing

    def __cinit__(self, int node=-1):
        global drm_fd
        drm_fd = node
        self._held = {}
        self._library = loaded(LIBRARY)
        self._submit = <SubmitCmd> self._function(b"virgl_renderer_submit_cmd")
        self._read = <TransferIov> self._function(b"virgl_renderer_transfer_read_iov")
        self._write = <TransferIov> self._function(b"virgl_renderer_transfer_write_iov")
        self._create_fence = <CreateFence> self._function(b"virgl_renderer_create_fence")
        self._poll = <Plain> self._function(b"virgl_renderer_poll")
        self._initialise()
        self.poll_fd = (<GetPollFd> self._function(b"virgl_renderer_get_poll_fd"))()

    cdef int _initialise(self) except -1:
        cdef Init init = <Init> self._function(b"virgl_renderer_init")
        cdef int version
        self._callbacks.write_fence = write_fence
        self._callbacks.get_drm_fd = get_drm_fd
        self._callbacks.write_context_fence = write_context_fence
        for version in range(NEWEST_CALLBACKS, OLDEST_CALLBACKS - 1, -1):
            self._callbacks.version = version
            if init(<void *> self, USE_EGL | THREAD_SYNC | USE_SURFACELESS, &self._callbacks) == 0:
                return 0
        raise OSError("libvirglrenderer finds no OpenGL here")

    cdef void *_function(self, const char *name) except NULL:
        cdef void *found = dlsym(self._library, name)
        if found is NULL:
            raise OSError(dlerror().decode())
        return found

    # --- What there is ----------------------------------------------------------------------------------

    @property
    def has_context_init(self):
        """Whether contexts may name their capability set, and have fences of their own."""
        return (
            dlsym(self._library, b"virgl_renderer_context_create_with_flags") is not NULL
            and dlsym(self._library, b"virgl_renderer_context_create_fence") is not NULL
        )

    def make_current(self):
        """Makes the library's own EGL context current, which shares textures with those of guests."""
        (<Plain> self._function(b"virgl_renderer_force_ctx_0"))()

    def gl_string(self, unsigned int name):
        """What GL says of itself; empty if nobody can be asked."""
        self.make_current()
        cdef GetProcAddress find = <GetProcAddress> dlsym(loaded(EGL), b"eglGetProcAddress")
        cdef GetString get = NULL if find is NULL else <GetString> find(b"glGetString")
        cdef const char *text = NULL if get is NULL else get(name)
        return "" if text is NULL else text.decode(errors="replace")

    def capset(self, uint32_t number):
        """A capability set's latest version, and its content; empty if there is no such set."""
        cdef uint32_t version = 0, size = 0
        (<GetCapSet> self._function(b"virgl_renderer_get_cap_set"))(number, &version, &size)
        content = bytearray(size)
        cdef unsigned char[::1] room = content
        if size:
            (<FillCaps> self._function(b"virgl_renderer_fill_caps"))(number, version, &room[0])
        return version, bytes(content)

    # --- Contexts and resources -------------------------------------------------------------------------

    def create_context(self, uint32_t ctx_id, uint32_t flags, bytes name):
        if not flags:
            return (<ContextCreate> self._function(b"virgl_renderer_context_create"))(ctx_id, len(name), name)
        return (<ContextCreateWithFlags> self._function(b"virgl_renderer_context_create_with_flags"))(
            ctx_id, flags, len(name), name
        )

    def destroy_context(self, uint32_t ctx_id):
        (<ContextDestroy> self._function(b"virgl_renderer_context_destroy"))(ctx_id)

    def attach_resource(self, uint32_t ctx_id, uint32_t resource):
        (<ContextResource> self._function(b"virgl_renderer_ctx_attach_resource"))(ctx_id, resource)

    def detach_resource(self, uint32_t ctx_id, uint32_t resource):
        (<ContextResource> self._function(b"virgl_renderer_ctx_detach_resource"))(ctx_id, resource)

    def create_resource(self, *fields):
        """Takes the fields of struct virgl_renderer_resource_create_args."""
        cdef CreateArgs args
        (
            args.handle, args.target, args.format, args.bind, args.width, args.height, args.depth,
            args.array_size, args.last_level, args.nr_samples, args.flags,
        ) = fields
        return (<ResourceCreate> self._function(b"virgl_renderer_resource_create"))(&args, NULL, 0)

    def free_resource(self, uint32_t resource):
        """Frees a resource, and lets go of its backing."""
        self.detach_backing(resource)
        (<ResourceUnref> self._function(b"virgl_renderer_resource_unref"))(resource)

    def texture(self, uint32_t resource):
        """What a resource is for GL: a texture in the context that is current from now on, and its flags.

        Raises OSError if there is no such resource, or if it is none for GL.
        """
        cdef ResourceInfo info
        info.tex_id = info.flags = 0
        self.make_current()
        cdef int error = (<ResourceGetInfo> self._function(b"virgl_renderer_resource_get_info"))(resource, &info)
        if error or not info.tex_id:
            raise OSError(abs(error) or errno.EINVAL, "no texture")
        return info.tex_id, info.flags

    def attach_backing(self, uint32_t resource, list ranges):
        """Gives a resource its backing: `(memory, offset, length)`. They stay mapped as long as it has them."""
        cdef iovec *iov = <iovec *> calloc(max(len(ranges), 1), sizeof(iovec))
        cdef size_t count = 0
        cdef Memory memory
        cdef int result
        if iov is NULL:
            raise MemoryError
        try:
            for memory, offset, length in ranges:
                iov[count].iov_base = memory.at(offset, length)
                iov[count].iov_len = length
                count += 1
            result = (<AttachIov> self._function(b"virgl_renderer_resource_attach_iov"))(resource, iov, count)
        except BaseException:
            free(iov)
            raise
        if result:
            free(iov)
        else:
            self._held[resource] = {memory for memory, _, _ in ranges}
        return result

    def detach_backing(self, uint32_t resource):
        """Takes its backing from a resource that has one."""
        cdef iovec *iov = NULL
        cdef int count = 0
        if resource in self._held:
            (<DetachIov> self._function(b"virgl_renderer_resource_detach_iov"))(resource, &iov, &count)
            free(iov)
            del self._held[resource]

    # --- Work -------------------------------------------------------------------------------------------

    def submit(self, uint32_t ctx_id, Memory memory not None, uint64_t offset, uint32_t size):
        """Executes a context's commands, of `size` bytes, a multiple of 4."""
        return self._submit(memory.at(offset, size), ctx_id, size // 4)

    def transfer(
        self, uint32_t resource, uint32_t ctx_id, uint32_t level, uint32_t stride, uint32_t layer_stride,
        bint to_host, tuple box, uint64_t offset,
    ):
        """Copies a box between a resource and its backing."""
        cdef Box place
        place.x, place.y, place.z, place.w, place.h, place.d = box
        cdef TransferIov copy = self._write if to_host else self._read
        return copy(resource, ctx_id, level, stride, layer_stride, &place, offset, NULL, 0)

    def read(
        self, uint32_t resource, Memory into not None, uint32_t stride,
        uint32_t x, uint32_t y, uint32_t width, uint32_t height,
    ):
        """Copies a rectangle of pixels of 4 bytes to its place in a picture.

        The library wants room for whole rows from the first pixel on. So there must be a row more than it fills.
        """
        cdef Box box = Box(x, y, 0, width, height, 1)
        cdef size_t start = y * <size_t> stride + 4 * <size_t> x
        cdef size_t size = height * <size_t> stride
        cdef iovec iov
        if not height or width > stride // 4:
            return errno.EINVAL
        iov.iov_base = into.at(start, size)
        iov.iov_len = size
        return self._read(resource, 0, 0, stride, 0, &box, 0, &iov, 1)

    # --- Fences -----------------------------------------------------------------------------------------

    def create_fence(self, uint32_t fence, uint32_t ctx_id):
        """Has `fence` signalled when all that was submitted before is done."""
        return self._create_fence(<int> fence, ctx_id)

    def create_context_fence(self, uint32_t ctx_id, uint32_t ring_idx, uint64_t fence):
        """Has `fence` signalled in the order of a context's ring."""
        return (<ContextCreateFence> self._function(b"virgl_renderer_context_create_fence"))(
            ctx_id, 0, ring_idx, fence
        )

    def poll(self):
        """The fences that have signalled: whether global, and which one. Those before a global one have too."""
        self._poll()
        global retired
        taken, retired = retired, []
        return taken


cdef void *loaded(str name) except NULL:
    cdef void *library = dlopen(name.encode(), RTLD_NOW | RTLD_GLOBAL)
    if library is NULL:
        raise OSError(dlerror().decode())
    return library
