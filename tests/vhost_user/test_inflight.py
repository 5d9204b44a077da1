"""Making and mapping an inflight area; what its queues are for is tests/ring/test_inflight.py's."""

import fcntl
import os

import pytest

from vhostd.errors import RefusedRequest
from vhostd.ring.inflight_split import SplitInflight
from vhostd.vhost_user.inflight import make_area, map_area
from vhostd.vhost_user.messages import Inflight
from vhostd.wire.fds import Fd


@pytest.mark.parametrize(("num_queues", "queue_size"), [(1, 1), (2, 64), (3, 100), (1, 32768)])
def test_what_is_made_can_be_mapped(num_queues: int, queue_size: int) -> None:
    area, fd = make_area(SplitInflight, num_queues, queue_size)
    with fd:
        assert (area.num_queues, area.queue_size, area.mmap_offset) == (num_queues, queue_size, 0)
        assert os.fstat(fd.fileno()).st_size == area.mmap_size
        assert os.pread(fd.fileno(), area.mmap_size, 0) == bytes(area.mmap_size)
        assert [queue.size for queue in map_area(SplitInflight, area, fd)] == [
            max(queue_size, 1024)
        ] * num_queues


def test_an_area_of_a_program_that_made_it_as_large_as_asked() -> None:
    """As a program of an earlier version has left it."""
    size = 3 * SplitInflight.footprint(128)
    with Fd(os.memfd_create("inflight", os.MFD_CLOEXEC)) as fd:
        os.ftruncate(fd.fileno(), size)
        assert [queue.size for queue in map_area(SplitInflight, Inflight(size, 0, 3, 128), fd)] == [128] * 3


def test_its_size_is_sealed_and_it_is_not_inherited() -> None:
    _, fd = make_area(SplitInflight, 1, 64)
    with fd:
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        assert fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) == seals
        assert not os.get_inheritable(fd.fileno())


def test_it_may_lie_anywhere_in_a_file() -> None:
    with Fd(os.memfd_create("inflight", os.MFD_CLOEXEC)) as fd:
        os.ftruncate(fd.fileno(), 8192)
        assert len(map_area(SplitInflight, Inflight(8192 - 3000, 3000, 2, 64), fd)) == 2
        with pytest.raises(RefusedRequest):
            map_area(SplitInflight, Inflight(8192, 8192 - 2000, 2, 64), fd)
