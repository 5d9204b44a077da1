"""Resources: what a guest makes pictures of, and how much of the host's memory that may take.

A `Picture` is host memory that the guest fills by transfers from its own, the resource's backing. A `Blob` is
guest memory and nothing else. Both give their bytes to whoever shows them, piece by piece; a resource that
was released meanwhile, or has no backing any more, gives zeros, so that nobody needs to keep it alive. Guest
memory that has vanished raises MemoryLost.
"""

import mmap
import os
import socket
from collections.abc import Iterator

from vhost_user_gpu.commands import CommandError, Response
from vhost_user_gpu.pixels import PIXEL, Format
from vhost_user_gpu.rect import Rect
from vhostd import BadRequest, Gather

# What a resource costs on top of its pixels: our objects, and each range of its backing.
RESOURCE_COST = 2048
RANGE_COST = 32
MAX_RESOURCES = 16384  # far more than a desktop needs; the kernel lets a process have some 65,000 mappings

ZEROS = memoryview(bytes(1 << 16))


class Resource:
    """What both kinds have: a number, a name for other devices, and a backing of guest memory or none."""

    cost = RESOURCE_COST

    def __init__(self, number: int) -> None:
        self.number = number
        self.backing: Gather | None = None
        self._uuid = b""

    @property
    def uuid(self) -> bytes:
        """What the resource is called outside of this device, from the first time it is asked for."""
        self._uuid = self._uuid or _random_uuid()
        return self._uuid

    def release(self) -> None:
        """Gives the memory back."""
        self.backing = None

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        """Sends `head`, then up to `size` bytes from `offset`; returns how many of both. Raises OSError.

        BlockingIOError, too, if the front-end has made its copy of the fd, and so ours, a blocking one.
        """
        raise NotImplementedError

    def copy_rows(self, offset: int, row: int, rows: int, stride: int) -> bytearray:
        """A copy of `rows` rows of `row` bytes each, which begin `stride` bytes apart in the resource."""
        raise NotImplementedError


class Picture(Resource):
    """Pixels in host memory, row by row without gaps, black at first."""

    def __init__(self, number: int, kind: Format, width: int, height: int) -> None:
        super().__init__(number)
        self.format = kind
        self.width = width
        self.height = height
        self.stride = PIXEL * width
        self.cost = RESOURCE_COST + self.stride * height
        self._pixels = mmap.mmap(-1, self.stride * height, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def release(self) -> None:
        super().release()
        self._pixels.close()

    def transfer(self, backing: Gather, rect: Rect, offset: int) -> None:
        """Fills a rectangle, which must fit, from `offset` of the backing on, where rows are `stride` apart.

        Raises BadRequest if that is not wholly in the backing.
        """
        backing.copy_rows(
            self._pixels,
            rect.y * self.stride + rect.x * PIXEL,
            offset=offset,
            row=rect.width * PIXEL,
            rows=rect.height,
            stride=self.stride,
            into_stride=self.stride,
        )

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        if self._pixels.closed:
            return sock.sendmsg([head, ZEROS[:size]], [], socket.MSG_DONTWAIT)
        with memoryview(self._pixels) as whole, whole[offset : offset + size] as part:
            return sock.sendmsg([head, part], [], socket.MSG_DONTWAIT)

    def copy_rows(self, offset: int, row: int, rows: int, stride: int) -> bytearray:
        if self._pixels.closed:
            return bytearray(row * rows)
        if row == stride:
            return bytearray(self._pixels[offset : offset + row * rows])
        starts = range(offset, offset + stride * rows, stride)
        return bytearray().join(self._pixels[start : start + row] for start in starts)


class Blob(Resource):
    """`size` bytes of guest memory, which hold what the guest says when it shows them."""

    def __init__(self, number: int, size: int) -> None:
        super().__init__(number)
        self.size = size

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        if head:
            return sock.send(head, socket.MSG_DONTWAIT)
        try:
            if self.backing is not None:
                return self.backing.sendmsg(sock.fileno(), offset, size, socket.MSG_DONTWAIT)
        except BadRequest:  # there is another backing now, a smaller one
            pass
        return sock.send(ZEROS[:size], socket.MSG_DONTWAIT)

    def copy_rows(self, offset: int, row: int, rows: int, stride: int) -> bytearray:
        copy = bytearray(row * rows)
        try:
            if self.backing is not None:
                self.backing.copy_rows(
                    copy, 0, offset=offset, row=row, rows=rows, stride=stride, into_stride=row
                )
        except BadRequest:
            pass
        return copy


class Resources:
    """The guest's resources by their numbers, whose cost together stays within `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._resources: dict[int, Resource] = {}

    @property
    def room(self) -> int:
        """How many bytes more there may be."""
        return self.limit - self.used

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())

    def __getitem__(self, number: int) -> Resource:
        """Raises CommandError if there is no such resource."""
        try:
            return self._resources[number]
        except KeyError:
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID, f"there is no resource {number}") from None

    def reserve(self, number: int, cost: int, backing: Gather | None = None) -> None:
        """Raises CommandError unless a resource of this number and cost, with this backing, may be added."""
        if not number or number in self._resources:
            raise CommandError(Response.ERR_INVALID_RESOURCE_ID, f"{number} for a new resource")
        if len(self._resources) == MAX_RESOURCES:
            raise CommandError(Response.ERR_OUT_OF_MEMORY, f"more than {MAX_RESOURCES} resources")
        self._require(cost + _cost(backing))

    def add(self, resource: Resource, backing: Gather | None = None) -> None:
        """Adds what was reserved."""
        self._resources[resource.number] = resource
        self.used += resource.cost + _cost(backing)
        resource.backing = backing

    def remove(self, resource: Resource) -> None:
        """Releases a resource."""
        self.detach(resource)
        del self._resources[resource.number]
        self.used -= resource.cost
        resource.release()

    def attach(self, resource: Resource, backing: Gather) -> None:
        """Gives a resource its backing; raises CommandError if that costs too much."""
        self._require(_cost(backing))
        self.used += _cost(backing)
        resource.backing = backing

    def detach(self, resource: Resource) -> None:
        """Takes the backing away, if there is one."""
        self.used -= _cost(resource.backing)
        resource.backing = None

    def clear(self) -> None:
        """Releases all."""
        for resource in list(self):
            self.remove(resource)

    def _require(self, cost: int) -> None:
        if cost > self.room:
            raise CommandError(
                Response.ERR_OUT_OF_MEMORY,
                f"{cost} bytes more than {self.used} are more than the {self.limit} of --max-memory",
            )


def _cost(backing: Gather | None) -> int:
    return 0 if backing is None else RANGE_COST * backing.ranges


def _random_uuid() -> bytes:
    """A UUID of version 4 (RFC 9562, 5.4). The standard library's module loads all of OpenSSL."""
    data = bytearray(os.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)
