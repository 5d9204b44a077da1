"""The inflight area: memory that the front-end keeps while programs come and go (vhost-user, "Inflight I/O
tracking").

The first program that serves the device makes the area, when the front-end asks for it. The front-end passes
the area to each later program, which finds there the requests that were taken and not finished.
"""

import fcntl
import os

from vhostd.errors import RefusedRequest
from vhostd.ring import GuestMemory, InflightQueue, Region
from vhostd.vhost_user.messages import Inflight
from vhostd.virtio.vocabulary import MAX_QUEUE_SIZE
from vhostd.wire.fds import Fd

# QEMU from 10.0.13 on lets a driver make a ring of 1024 descriptors, whatever its queue-size, and asks
# for an area for queue-size. So each queue of a new area has room for the longest ring that QEMU has.
LEAST_ROOM = 1024
SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def make_area(form: type[InflightQueue], num_queues: int, queue_size: int) -> tuple[Inflight, Fd]:
    """A new area for the queues, and its file, whose size is sealed. Raises RefusedRequest on failure.

    `form` is the record of the rings' format. The queues have room for at least LEAST_ROOM descriptors;
    `map_area` sees that by the size.
    """
    _check(queue_size)
    size = num_queues * form.footprint(max(queue_size, LEAST_ROOM))
    try:
        return Inflight(size, 0, num_queues, queue_size), _make_file(size)
    except OSError as error:
        raise RefusedRequest(f"no inflight area of {size} bytes can be made: {error}") from None


def map_area(form: type[InflightQueue], area: Inflight, fd: Fd) -> list[InflightQueue]:
    """The queues of an area, mapped from the file; RefusedRequest if the area is too small for them."""
    _check(area.queue_size)
    room = _room(form, area)
    size = area.num_queues * form.footprint(room)
    if area.mmap_size < size:
        raise RefusedRequest(f"an inflight area of {area.mmap_size} bytes, {size} needed")
    region = Region(fd.fileno(), guest_addr=0, user_addr=0, size=size, offset=area.mmap_offset)
    memory = GuestMemory([region])
    return [form(memory, index, room) for index in range(area.num_queues)]


def _check(queue_size: int) -> None:
    if not 0 < queue_size <= MAX_QUEUE_SIZE:
        raise RefusedRequest(f"an inflight area for queues of size {queue_size}")


def _room(form: type[InflightQueue], area: Inflight) -> int:
    """The descriptors that each queue of the area has room for: areas of other makers have `queue_size`."""
    wide = max(area.queue_size, LEAST_ROOM)
    return wide if area.mmap_size == area.num_queues * form.footprint(wide) else area.queue_size


def _make_file(size: int) -> Fd:
    with Fd(os.memfd_create("inflight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as fd:
        os.ftruncate(fd.fileno(), size)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, SEALS)
        return Fd(fd.take())
