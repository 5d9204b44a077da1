"""Pages that are missing: who is told of them, and what a thread that waits for one does at the end."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing
from threading import Thread

import pytest

from vhostd.errors import BadDescriptor, NotThereYet, RefusedRequest
from vhostd.frontend.memory import PAGE, SharedMemory
from vhostd.frontend.postcopy import MESSAGE, RANGE, UFFDIO_WAKE
from vhostd.ring import Absent, Arrivals, DeviceIotlb, GuestMemory, Region
from vhostd.ring.arrivals import open_userfaultfd
from vhostd.wire.fds import Fd

BOTH = 3


class Arriving:
    """A memory of which no page is there; `told` is what was told of each look."""

    def __init__(self) -> None:
        self.uffd = Fd(open_userfaultfd())
        os.set_blocking(self.uffd.fileno(), True)
        self.memory = SharedMemory(16 * PAGE, guest_addr=0, user_addr=0)
        self.arrivals = Arrivals(self.uffd.fileno())
        self.told: list[list[Absent]] = []
        self.arrivals.when_missed(self.told.append)

    def region(self, guest_addr: int, offset: int, size: int) -> Region:
        """A part of the memory, whose user address is its offset."""
        region = Region(
            self.memory.fd.fileno(), guest_addr=guest_addr, user_addr=offset, size=size, offset=offset
        )
        region.await_pages(self.arrivals)
        return region

    def fault(self) -> int:
        """Waits for a fault, and gives its address in this process."""
        _event, _flags, address = MESSAGE.unpack(os.read(self.uffd.fileno(), MESSAGE.size))
        return int(address)

    def bring(self, region: Region, offset: int, page: bytes) -> None:
        """Puts a page into the region, and wakes who waits for it."""
        os.pwrite(self.memory.fd.fileno(), page, offset)
        fcntl.ioctl(self.uffd.fileno(), UFFDIO_WAKE, RANGE.pack(region.host_addr + offset, PAGE))

    def is_hole(self, offset: int) -> bool:
        return os.lseek(self.memory.fd.fileno(), offset, os.SEEK_HOLE) == offset

    def close(self) -> None:
        self.uffd.close()
        self.memory.close()


@pytest.fixture
def arriving() -> Iterator[Arriving]:
    with closing(Arriving()) as arriving:
        yield arriving


class Fetching(Thread):
    """Fetches in a thread."""

    def __init__(self, absent: Absent) -> None:
        super().__init__()
        self._absent = absent
        self.came: bool | None = None
        self.start()

    def run(self) -> None:
        self.came = self._absent.fetch()

    def ends(self) -> bool | None:
        self.join()
        return self.came


def test_an_area_is_found_when_its_pages_are_there(arriving: Arriving) -> None:
    region = arriving.region(0, 0, 4 * PAGE)
    memory = GuestMemory([region], arrivals=arriving.arrivals)
    with pytest.raises(NotThereYet):
        memory.area(PAGE - 1, 2)
    ((absent,),) = arriving.told
    fetching = Fetching(absent)
    for offset in (0, PAGE):
        assert arriving.fault() == region.host_addr + offset
        arriving.bring(region, offset, bytes([offset // PAGE + 1]) * PAGE)
    assert fetching.ends() is True
    absent.arrived()
    assert bytes(memory.area(PAGE - 1, 2)) == b"\1\2"
    assert memory.read(PAGE, 1) == b"\2"
    with pytest.raises(NotThereYet):
        memory.area(PAGE, PAGE + 1)
    assert len(arriving.told) == 2


def test_what_is_told_twice_is_equal(arriving: Arriving) -> None:
    memory = GuestMemory([arriving.region(0, 0, 4 * PAGE)], arrivals=arriving.arrivals)
    for size in (PAGE, 1, PAGE + 1):
        with pytest.raises(NotThereYet):
            memory.area(0, size)
    ((one,), (same,), (more,)) = arriving.told
    assert one == same
    assert hash(one) == hash(same)
    assert one != more
    assert one != object()


def test_a_fetch_that_is_stopped_puts_nothing_there(arriving: Arriving) -> None:
    region = arriving.region(0, 0, 4 * PAGE)
    with pytest.raises(NotThereYet):
        GuestMemory([region], arrivals=arriving.arrivals).area(0, 2 * PAGE)
    absent = arriving.told[0][0]
    fetching = Fetching(absent)
    assert arriving.fault() == region.host_addr
    absent.stop(arriving.uffd.fileno())
    assert fetching.ends() is False
    assert arriving.is_hole(0)
    assert arriving.is_hole(PAGE)


def test_a_fetch_that_was_stopped_before_it_began_touches_nothing(arriving: Arriving) -> None:
    with pytest.raises(NotThereYet):
        GuestMemory([arriving.region(0, 0, PAGE)], arrivals=arriving.arrivals).area(0, 1)
    absent = arriving.told[0][0]
    absent.stop(arriving.uffd.fileno())
    assert not absent.fetch()
    assert arriving.is_hole(0)


def test_to_await_no_more_fills_what_is_missing_with_zeros(arriving: Arriving) -> None:
    region = arriving.region(0, 0, 2 * PAGE)
    memory = GuestMemory([region], arrivals=arriving.arrivals)
    with pytest.raises(NotThereYet):
        memory.area(0, 1)
    fetching = Fetching(arriving.told[0][0])
    arriving.fault()
    region.await_no_more(arriving.arrivals)
    assert fetching.ends() is True
    assert memory.read(0, 2 * PAGE) == bytes(2 * PAGE)
    region.await_no_more(arriving.arrivals)


def test_pages_of_a_translated_ring_that_lie_apart_are_not_mapped_before_they_are_there(
    arriving: Arriving,
) -> None:
    """Nobody tells of faults in the second mapping."""
    iotlb = DeviceIotlb()
    regions = [arriving.region(0x1000_0000 * (at + 1), 4 * PAGE * at, PAGE) for at in range(2)]
    memory = GuestMemory(regions, iotlb, arriving.arrivals)
    for at in range(2):
        iotlb.update(PAGE * at, PAGE, 4 * PAGE * at, BOTH)
    with pytest.raises(NotThereYet):
        memory.area(0, 2 * PAGE)
    (absents,) = arriving.told
    assert len(absents) == 2
    assert arriving.is_hole(0)
    os.pwrite(arriving.memory.fd.fileno(), b"\1" * PAGE, 0)
    os.pwrite(arriving.memory.fd.fileno(), b"\2" * PAGE, 4 * PAGE)
    for absent in absents:
        assert absent.fetch()
        absent.arrived()
    assert bytes(memory.area(0, 2 * PAGE)) == b"\1" * PAGE + b"\2" * PAGE


def test_what_is_outside_is_outside_though_pages_are_missing(arriving: Arriving) -> None:
    memory = GuestMemory([arriving.region(0, 0, PAGE)], arrivals=arriving.arrivals)
    with pytest.raises(RefusedRequest):
        memory.area(PAGE, 1)
    with pytest.raises(BadDescriptor):
        memory.read(PAGE, 1)


def test_system_calls_wait_for_no_page(arriving: Arriving) -> None:
    """Though nothing of ours makes one there: a hostile front-end may take a page back."""
    region = arriving.region(0, 0, PAGE)
    with open("/dev/zero", "rb", buffering=0) as zero, pytest.raises(OSError, match="Bad address"):
        zero.readinto(memoryview(GuestMemory([region]).guest(0, PAGE)))
    assert arriving.is_hole(0)


def test_other_files_than_memory_have_no_such_pages(arriving: Arriving, tmp_path: str) -> None:
    with open(f"{tmp_path}/file", "w+b") as file:
        file.truncate(PAGE)
        region = Region(file.fileno(), guest_addr=0, user_addr=0, size=PAGE)
        with pytest.raises(RefusedRequest, match="its pages cannot be awaited: Invalid argument"):
            region.await_pages(arriving.arrivals)


def test_an_absent_comes_from_a_look() -> None:
    with pytest.raises(TypeError):
        Absent()
