"""Resources: the guest's pictures, and a limit for the host's memory that they take.

A `Picture` is host memory, which the guest fills by transfers from guest memory, the resource's backing. A
`Blob` is only guest memory. Both are sent or copied piece by piece. A resource that was released meanwhile,
or lost its backing, gives zeros: so a resource need not be kept alive while it is shown. Guest memory that
has vanished raises MemoryLost.
"""

import mmap
import os
import socket
from collections.abc import Iterator

from vhost_user_gpu.answer import Pending
from vhost_user_gpu.commands import CommandError, Response
from vhost_user_gpu.dmabuf import Dmabuf
from vhost_user_gpu.pixels import PIXEL, Format
from vhost_user_gpu.rect import Rect
from vhostd import BadRequest, Gather

# The cost of a resource besides its pixels: this program's objects, and each range of its backing.
RESOURCE_COST = 2048
RANGE_COST = 32
MAX_RESOURCES = 16384  # far more than a desktop needs; the kernel lets a process have some 65,000 mappings

ZEROS = memoryview(bytes(1 << 16))


class Resource:
    """Base of both kinds: a number, a UUID for other devices, and a backing of guest memory or none."""

    cost = RESOURCE_COST

    def __init__(self, number: int) -> None:
        self.number = number
        self.backing: Gather | None = None
        self.given_uuid = b""  # empty until somebody asks for it

    @property
    def uuid(self) -> bytes:
        """The resource's name for other devices. It is made at first use and then stays."""
        self.given_uuid = self.given_uuid or _random_uuid()
        return self.given_uuid

    def release(self) -> None:
        """Gives the memory back."""
        self.backing = None

    @property
    def dmabuf(self) -> Dmabuf | None:
        """Its dmabuf, if it is one; the fd stays its own."""
        return None

    @property
    def sharing(self) -> Pending | None:
        """Until that is answered, it may become a dmabuf."""
        return None

    def refresh(self) -> Pending | None:
        """Until that is answered, the pixels here are not those that were shown last."""
        return None

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        """Sends `head`, then up to `size` bytes from `offset`; returns how many bytes were sent in all.

        Raises OSError. It never waits, even if the front-end has cleared O_NONBLOCK, which both sides share:
        then it raises BlockingIOError.
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
        self.pixels = mmap.mmap(-1, self.stride * height, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def release(self) -> None:
        super().release()
        self.pixels.close()

    def fill_from(self, backing: Gather, rect: Rect, offset: int) -> None:
        """Fills a rectangle, which must fit, from `offset` of `backing` on; rows there are `stride` apart.

        Raises BadRequest if the bytes are not all in the backing.
        """
        backing.copy_rows(
            self.pixels,
            rect.y * self.stride + rect.x * PIXEL,
            offset=offset,
            row=rect.width * PIXEL,
            rows=rect.height,
            stride=self.stride,
            into_stride=self.stride,
        )

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        if self.pixels.closed:
            return sock.sendmsg([head, ZEROS[:size]], [], socket.MSG_DONTWAIT)
        with memoryview(self.pixels) as whole, whole[offset : offset + size] as part:
            return sock.sendmsg([head, part], [], socket.MSG_DONTWAIT)

    def copy_rows(self, offset: int, row: int, rows: int, stride: int) -> bytearray:
        if self.pixels.closed:
            return bytearray(row * rows)
        if row == stride:
            return bytearray(self.pixels[offset : offset + row * rows])
        starts = range(offset, offset + stride * rows, stride)
        return bytearray().join(self.pixels[start : start + row] for start in starts)


class Blob(Resource):
    """`size` bytes of guest memory. The guest gives their format when it shows them (SET_SCANOUT_BLOB)."""

    def __init__(self, number: int, size: int) -> None:
        super().__init__(number)
        self.size = size

    def send(self, sock: socket.socket, offset: int, size: int, head: bytes = b"") -> int:
        if head:
            return sock.send(head, socket.MSG_DONTWAIT)
        try:
            if self.backing is not None:
                return self.backing.sendmsg(sock.fileno(), offset, size, socket.MSG_DONTWAIT)
        except BadRequest:  # there is a smaller backing now
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
    """The guest's resources by their numbers. Together they cost at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._resources: dict[int, Resource] = {}

    @property
    def room(self) -> int:
        """The bytes that are left for more resources."""
        return self.limit - self.used

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())

    def __contains__(self, resource: Resource) -> bool:
        return self._resources.get(resource.number) is resource

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
        """Adds a resource, after `reserve` with the same cost and backing."""
        self._resources[resource.number] = resource
        self.used += resource.cost + _cost(backing)
        resource.backing = backing

    def enlarge(self, resource: Resource, cost: int) -> None:
        """Counts more for a resource; raises CommandError if that is too much."""
        self._require(cost)
        resource.cost += cost
        self.used += cost

    def remove(self, resource: Resource) -> None:
        """Removes a resource and frees its memory."""
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
        """Takes the resource's backing away, if there is one."""
        self.used -= _cost(resource.backing)
        resource.backing = None

    def clear(self) -> None:
        """Removes all resources."""
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
