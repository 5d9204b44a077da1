"""Regions, lookups in both address spaces, windows, and the life of a mapping."""

import fcntl
import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ring.machine import END, GUEST, SEAM, SIZE, USER, memfd, two_regions, unmade
from vhostd.errors import BadDescriptor, RefusedRequest
from vhostd.ring import MAX_REGIONS, GuestMemory, Region, Window

PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = memfd(4 * PAGE)
    yield fd
    os.close(fd)


def at(fd: int, guest_addr: int, user_addr: int, size: int = PAGE) -> Region:
    return Region(fd, guest_addr=guest_addr, user_addr=user_addr, size=size)


def mapped(name: str) -> int:
    """How many mappings of this process are of the file."""
    return Path("/proc/self/maps").read_text().count(name)


def test_region_maps_its_part_of_the_file(fd: int) -> None:
    os.pwrite(fd, b"hello", PAGE + 100)
    memory = GuestMemory([Region(fd, guest_addr=GUEST, user_addr=USER, size=PAGE, offset=PAGE)])
    assert memory.read(GUEST + 100, 5) == b"hello"
    memory.write(GUEST + 200, b"world")
    assert os.pread(fd, 5, PAGE + 200) == b"world"


def test_region_offset_need_not_be_aligned(fd: int) -> None:
    os.pwrite(fd, b"abc", PAGE + 7)
    memory = GuestMemory([Region(fd, guest_addr=3, user_addr=5, size=3, offset=PAGE + 7)])
    assert memory.read(3, 3) == b"abc"
    with pytest.raises(BadDescriptor):
        memory.read(3, 4)


def test_region_leaves_the_fd_to_its_owner(fd: int) -> None:
    region = at(fd, GUEST, USER)
    del region
    os.fstat(fd)


def test_region_keeps_a_duplicate_of_the_fd(fd: int) -> None:
    duplicate = os.dup(fd)
    os.close(duplicate)  # the lowest number that is free
    region = at(fd, GUEST, USER)
    assert os.path.sameopenfile(duplicate, fd)
    assert fcntl.fcntl(duplicate, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    del region
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(duplicate)


def test_region_refused_when_no_fd_is_left(fd: int) -> None:
    before = mapped("memfd:guest")  # another test's memory may have the same name
    free = os.dup(fd)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        with pytest.raises(RefusedRequest, match=f"fd {fd} cannot be duplicated: Too many open files"):
            at(fd, GUEST, USER)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert mapped("memfd:guest") == before


def test_region_attributes(fd: int) -> None:
    region = at(fd, GUEST, USER)
    assert (region.guest_addr, region.user_addr, region.size) == (GUEST, USER, PAGE)
    assert repr(region) == "Region(guest_addr=0x10000000, user_addr=0x7f0000000000, size=0x1000)"


def test_region_is_left_out_of_core_dumps(fd: int) -> None:
    region = at(fd, GUEST, USER)
    entry = Path("/proc/self/smaps").read_text().partition("memfd:guest")[2]
    assert "dd" in entry.partition("VmFlags:")[2].partition("\n")[0].split()
    del region


TOP = 2**64 - 1


@pytest.mark.parametrize(
    ("guest_addr", "user_addr", "size", "offset", "why"),
    [
        (GUEST, USER, 0, 0, "is empty"),
        (TOP - PAGE + 1, USER, PAGE, 0, "wraps around"),
        (GUEST, TOP - PAGE + 1, PAGE, 0, "wraps around"),
        (GUEST, USER, PAGE, TOP - PAGE + 1, "wraps around"),
        (GUEST, USER, TOP, TOP, "wraps around"),
        (GUEST, USER, 4 * PAGE + 1, 0, "the file has 0x4000 bytes only"),
        (GUEST, USER, PAGE, 3 * PAGE + 1, "the file has 0x4000 bytes only"),
        (GUEST, USER, 1, 4 * PAGE, "the file has 0x4000 bytes only"),
        (0, 0, 2**63, 0, "the file has 0x4000 bytes only"),
    ],
)
def test_region_range_refused(
    fd: int, guest_addr: int, user_addr: int, size: int, offset: int, why: str
) -> None:
    with pytest.raises(RefusedRequest, match=why) as error:
        Region(fd, guest_addr=guest_addr, user_addr=user_addr, size=size, offset=offset)
    for value in (guest_addr, user_addr, size, offset):
        assert f"{value:#x}" in str(error.value)


def test_region_may_end_where_the_address_space_does(fd: int) -> None:
    memory = GuestMemory([at(fd, TOP - PAGE, TOP - PAGE)])
    memory.write(TOP - 1, b"z")
    assert memory.read(TOP - 1, 1) == b"z"
    with pytest.raises(BadDescriptor):
        memory.read(TOP - 1, 2)


@pytest.mark.parametrize("kind", ["pipe", "directory", "device", "closed"])
def test_region_of_something_else_refused(kind: str) -> None:
    if kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    else:
        fd = os.open(tempfile.gettempdir() if kind == "directory" else "/dev/zero", os.O_RDONLY)
    try:
        with pytest.raises(RefusedRequest, match=f"fd {-1 if kind == 'closed' else fd}"):
            at(-1 if kind == "closed" else fd, GUEST, USER)
    finally:
        os.close(fd)


def test_region_of_a_read_only_file_refused(fd: int) -> None:
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    try:
        with pytest.raises(RefusedRequest, match="Permission denied"):
            at(reader, GUEST, USER)
    finally:
        os.close(reader)


def test_region_of_a_sealed_file_refused() -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    try:
        with pytest.raises(RefusedRequest, match="Operation not permitted"):
            at(fd, GUEST, USER)
    finally:
        os.close(fd)
    assert not mapped("memfd:sealed")


def test_regions_need_not_come_sorted_and_keep_their_order(fd: int) -> None:
    regions = [at(fd, GUEST + i * PAGE, USER - i * PAGE) for i in (2, 0, 1)]
    memory = GuestMemory(iter(regions))
    assert memory.regions == tuple(regions)
    for i in range(3):
        assert memory.guest(GUEST + i * PAGE, PAGE).region.guest_addr == GUEST + i * PAGE
        assert memory.user(USER - i * PAGE, PAGE).region.user_addr == USER - i * PAGE


@pytest.mark.parametrize("space", ["guest", "user"])
@pytest.mark.parametrize("distance", [0, 1, PAGE - 1])
def test_overlap_refused(fd: int, space: str, distance: int) -> None:
    first = at(fd, GUEST, USER)
    second = at(fd, GUEST + distance, USER + 8 * PAGE) if space == "guest" else at(fd, 0, USER + distance)
    for regions in ([first, second], [second, first]):
        with pytest.raises(RefusedRequest, match=f"overlap in {space} addresses"):
            GuestMemory(regions)


def test_most_regions() -> None:
    fd = memfd(PAGE)
    regions = [at(fd, i * PAGE, i * PAGE) for i in range(MAX_REGIONS + 1)]
    os.close(fd)
    memory = GuestMemory(regions[:-1])
    assert memory.guest((MAX_REGIONS - 1) * PAGE, 1).region is regions[-2]
    with pytest.raises(RefusedRequest, match="510 regions"):
        GuestMemory(regions)


def test_regions_must_be_regions() -> None:
    with pytest.raises(TypeError):
        GuestMemory([42])  # type: ignore[list-item]  # what is tested


def test_no_memory_at_all() -> None:
    memory = GuestMemory()
    assert memory.regions == ()
    assert not memory.lost
    assert memory.read(0, 0) == b""
    with pytest.raises(BadDescriptor):
        memory.read(0, 1)
    with pytest.raises(RefusedRequest):
        memory.user(0, 0)


def test_read_and_write_cross_regions() -> None:
    memory = two_regions()
    memory.write(SEAM - 3, b"abcdef")
    assert memory.read(SEAM - 3, 6) == b"abcdef"
    assert memory.read(SEAM, 3) == b"def"


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (GUEST - 1, 1),
        (GUEST - 1, 2),
        (END, 1),
        (END - 1, 2),
        (GUEST, SIZE + 1),
        (GUEST, 2**32),
        (GUEST, TOP),
        (TOP, 1),
        (GUEST, 2**64),
        (2**64 + GUEST, 1),
        (-1, 1),
        (GUEST, -1),
    ],
)
def test_outside_guest_memory(addr: int, length: int) -> None:
    memory = two_regions()
    with pytest.raises(BadDescriptor):
        memory.read(addr, length)
    with pytest.raises(BadDescriptor):
        memory.guest(addr, length)
    with pytest.raises(RefusedRequest):
        memory.user(addr - GUEST + USER, length)


def test_failed_write_writes_nothing() -> None:
    memory = two_regions()
    with pytest.raises(BadDescriptor):
        memory.write(END - 4, b"12345")
    assert memory.read(END - 4, 4) == bytes(4)


def test_write_takes_any_buffer() -> None:
    memory = two_regions()
    memory.write(GUEST, bytearray(b"ab"))
    memory.write(GUEST + 2, memoryview(b"xcdx")[1:3])
    memory.write(GUEST + 1, memory.guest(GUEST, 3))
    assert memory.read(GUEST, 4) == b"aabc"
    with pytest.raises(TypeError):
        memory.write(GUEST, "text")  # type: ignore[arg-type]  # what is tested


def test_window_is_a_writable_buffer() -> None:
    memory = two_regions()
    window = memory.user(USER + 16, 8)
    assert len(window) == 8
    with memoryview(window) as view:
        view[2:4] = b"hi"
    assert memory.read(GUEST + 18, 2) == b"hi"
    assert bytes(window) == b"\0\0hi\0\0\0\0"


def test_window_stays_in_one_region() -> None:
    memory = two_regions()
    assert len(memory.guest(SEAM - 8, 8)) == 8
    with pytest.raises(BadDescriptor, match="9 bytes at guest address 0x1000fff8"):
        memory.guest(SEAM - 8, 9)


def test_window_may_be_empty() -> None:
    assert bytes(two_regions().guest(END - 1, 0)) == b""


def test_windows_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError):
        Window()
    assert len(unmade(Window)) == 0


def test_the_last_user_unmaps() -> None:
    name = "memfd:lifetime"
    fd = os.memfd_create("lifetime")
    os.ftruncate(fd, PAGE)
    memory = GuestMemory([at(fd, GUEST, USER)])
    os.close(fd)
    view = memoryview(memory.guest(GUEST, 4))
    del memory
    assert mapped(name) == 1
    view[:] = b"live"
    view.release()
    assert mapped(name) == 0


def test_nothing_leaks_over_many_maps() -> None:
    fd = os.memfd_create("many")
    os.ftruncate(fd, PAGE)
    for _ in range(5000):  # more than can be guarded at a time
        GuestMemory([at(fd, GUEST, USER), at(fd, 0, 0)]).read(GUEST, 1)
    os.close(fd)
    assert mapped("memfd:many") == 0
