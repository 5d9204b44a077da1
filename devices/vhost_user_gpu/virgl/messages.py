"""What this program and its renderer say to each other, over a socket that keeps packets apart.

A request is a `Head` and the payload of its row. The renderer executes requests in order. A reply says how
far it has come, and has a `Result` for each request that is complete; a request with a fence is complete when
the fence has signalled. The first packet of a renderer is a `Hello`, or why there can be none. A packet with
an fd is an `Exported`; it comes before the reply to its request.
"""

from typing import Annotated

from vhostd import Empty, Layout, Row, array, rows_of, s32, u32, u64

NAME = 64  # bytes of a context's name
GL_NAME = 128  # bytes of what GL says of itself
MOST_PACKET = 1 << 16  # bytes of a packet at most; what is longer lies in the arena


class Head(Layout):
    """In front of every request. Its `fence` is in the order of all, or in that of a context's ring."""

    GLOBAL, RING = 1, 2  # values of `fence`

    request: u32
    serial: u32
    fence: u32
    ctx_id: u32  # whose fence it is
    ring_idx: u32


class Replies(Layout):
    """In front of results: all requests up to this serial have been executed."""

    executed: u32


class Result(Layout):
    """A request is complete; 0, or an errno."""

    serial: u32
    error: s32


class Hello(Layout):
    """A renderer is there, or not, and then the text after it says why. So many capability sets follow."""

    ready: u32
    capsets: u32
    features: u32
    renderer: Annotated[bytes, array(GL_NAME)]
    version: Annotated[bytes, array(GL_NAME)]

    CONTEXT_INIT, EXPORTS = 1, 2  # bits of `features`; textures can be dmabufs


class Capset(Layout):
    """A capability set; so many bytes follow."""

    number: u32
    version: u32
    size: u32


class Exported(Layout):
    """A texture's dmabuf, whose fd comes with it, for a request's serial. Flags are the resource's."""

    serial: u32
    stride: u32
    offset: u32
    flags: u32
    fourcc: u32
    padding: u32
    modifier: u64


class Entry(Layout):
    """A range of a backing, in a region of memory that the renderer knows."""

    region: u32
    padding: u32
    offset: u64
    length: u64


# --- Payloads of requests -------------------------------------------------------------------------------


class AddRegion(Layout):
    """Memory that is shared by its file, whose fd comes with the request: this many bytes of it."""

    region: u32
    padding: u32
    size: u64


class Region(Layout):
    """Memory that the renderer may forget."""

    region: u32


class CreateContext(Layout):
    """A new context; the flags name its capability set."""

    ctx_id: u32
    flags: u32
    name: Annotated[bytes, array(NAME)]


class Context(Layout):
    """A context to destroy."""

    ctx_id: u32


class ContextResource(Layout):
    """A resource that a context may use, or no longer."""

    ctx_id: u32
    resource_id: u32


class CreateResource(Layout):
    """struct virgl_renderer_resource_create_args."""

    resource_id: u32
    target: u32
    format: u32
    bind: u32
    width: u32
    height: u32
    depth: u32
    array_size: u32
    last_level: u32
    nr_samples: u32
    flags: u32


class Resource(Layout):
    """A resource to free, to detach its backing from, or to export."""

    resource_id: u32


class Attach(Layout):
    """A resource's backing: entries at an offset in the arena."""

    resource_id: u32
    entries: u32
    offset: u64


class Submit(Layout):
    """A context's commands: this many bytes at an offset in the arena."""

    ctx_id: u32
    size: u32
    offset: u64


class Transfer(Layout):
    """A box of a resource, between the resource and its backing."""

    resource_id: u32
    ctx_id: u32
    level: u32
    stride: u32
    layer_stride: u32
    to_host: u32
    x: u32
    y: u32
    z: u32
    width: u32
    height: u32
    depth: u32
    offset: u64


class Read(Layout):
    """A rectangle of a resource, to be copied to its place in a region that has the whole picture."""

    resource_id: u32
    region: u32
    stride: u32
    x: u32
    y: u32
    width: u32
    height: u32


# --- Rows -----------------------------------------------------------------------------------------------

ADD_REGION = Row(1, AddRegion)
DROP_REGION = Row(2, Region)
CREATE_CONTEXT = Row(3, CreateContext)
DESTROY_CONTEXT = Row(4, Context)
ATTACH_RESOURCE = Row(5, ContextResource)
DETACH_RESOURCE = Row(6, ContextResource)
CREATE_RESOURCE = Row(7, CreateResource)
FREE_RESOURCE = Row(8, Resource)
ATTACH_BACKING = Row(9, Attach)
DETACH_BACKING = Row(10, Resource)
SUBMIT = Row(11, Submit)
TRANSFER = Row(12, Transfer)
READ = Row(13, Read)
EXPORT = Row(14, Resource)
FINISH = Row(15, Empty)  # nothing; its fence says that all is drawn

ARENA = 0  # the region of what is too long for a packet

REQUESTS = rows_of(vars())
