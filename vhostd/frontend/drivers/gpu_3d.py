"""A guest's 3D driver to script: contexts and textures, and a few commands of virgl's protocol.

The numbers are those of virtio 1.3, 5.7, and of virglrenderer's virgl_protocol.h and virgl_hw.h.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from vhostd.frontend.drivers.gpu import B8G8R8A8, Command, GpuDriver

VIRGL, CONTEXT_INIT = 0, 4  # feature bits of the device
CAPSET_VIRGL, CAPSET_VIRGL2 = 1, 2

BUFFER, TEXTURE_2D = 0, 2  # targets
RENDER_TARGET, SAMPLER_VIEW, VERTEX_BUFFER, SCANOUT = 1 << 1, 1 << 3, 1 << 4, 1 << 18  # what it is bound to
Y_0_TOP = 1  # a flag: the first row is at the top
R8 = 64  # a format

# virgl_protocol.h
CREATE_OBJECT, SET_FRAMEBUFFER_STATE, CLEAR, RESOURCE_COPY_REGION = 1, 5, 7, 17
SURFACE = 8
CLEAR_COLOR0 = 4

Color = tuple[float, float, float, float]  # red, green, blue, alpha


class Box(NamedTuple):
    """A part of a texture."""

    x: int
    y: int
    z: int
    width: int
    height: int
    depth: int


class Context:
    """A 3D context. Every method raises as those of its driver do."""

    def __init__(self, driver: GpuDriver, number: int) -> None:
        self._driver = driver
        self.number = number

    async def create(self, name: bytes = b"test", init: int = 0) -> None:
        """Makes the context; the low byte of `init` is its capability set, or 0."""
        await self.do(Command.CTX_CREATE, struct.pack("<II64s", len(name), init, name))

    async def destroy(self) -> None:
        """Frees it."""
        await self.do(Command.CTX_DESTROY)

    async def attach(self, resource: int) -> None:
        """Lets it use a resource."""
        await self.do(Command.CTX_ATTACH_RESOURCE, struct.pack("<II", resource, 0))

    async def detach(self, resource: int) -> None:
        """Takes a resource from it."""
        await self.do(Command.CTX_DETACH_RESOURCE, struct.pack("<II", resource, 0))

    async def submit(self, stream: bytes) -> None:
        """Has it execute commands."""
        await self.do(Command.SUBMIT_3D, struct.pack("<II", len(stream), 0) + stream)

    async def transfer(
        self, resource: int, box: Box, *, to_host: bool, offset: int = 0, level: int = 0, stride: int = 0
    ) -> None:
        """Copies a box of a resource from its backing, or to it."""
        number = Command.TRANSFER_TO_HOST_3D if to_host else Command.TRANSFER_FROM_HOST_3D
        await self.do(number, struct.pack("<6IQIIII", *box, offset, resource, level, stride, 0))

    async def do(self, number: int, body: bytes = b"") -> None:
        """Any command in this context."""
        await self._driver.do(number, body, self.number)


async def create_3d(
    driver: GpuDriver,
    resource: int,
    width: int,
    height: int = 1,
    *,
    target: int = TEXTURE_2D,
    kind: int = B8G8R8A8,
    bind: int = RENDER_TARGET | SAMPLER_VIEW,
    depth: int = 1,
    array_size: int = 1,
    last_level: int = 0,
    nr_samples: int = 0,
    flags: int = Y_0_TOP,
) -> None:
    """Makes a resource in the renderer."""
    what = (resource, target, kind, bind, width, height, depth, array_size, last_level, nr_samples, flags, 0)
    await driver.do(Command.RESOURCE_CREATE_3D, struct.pack("<12I", *what))


def command(number: int, words: Iterable[int], kind: int = 0) -> bytes:
    """One command of a stream."""
    body = list(words)
    return struct.pack(f"<{1 + len(body)}I", number | kind << 8 | len(body) << 16, *body)


def clear(surface: int, resource: int, color: Color, kind: int = B8G8R8A8) -> bytes:
    """Makes a surface of a texture, and fills it with a color."""
    red, green, blue, alpha, *depth = struct.unpack("<6I", struct.pack("<ffffd", *color, 1.0))
    return (
        command(CREATE_OBJECT, (surface, resource, kind, 0, 0), SURFACE)
        + command(SET_FRAMEBUFFER_STATE, (1, 0, surface))
        + command(CLEAR, (CLEAR_COLOR0, red, green, blue, alpha, *depth, 0))
    )


def copy(into: int, source: int, box: Box) -> bytes:
    """Copies a box of a texture to the same place in another."""
    x, y, z, *_ = box
    return command(RESOURCE_COPY_REGION, (into, 0, x, y, z, source, 0, *box))
