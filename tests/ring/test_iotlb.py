"""Translations of I/O virtual addresses, beside a table of bytes that is as simple as can be."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ring.machine import BOTH, DATA, GUEST, SIZE, Buffers, memfd, two_regions
from vhostd import ring
from vhostd.errors import BadDescriptor, NotThereYet, RefusedRequest
from vhostd.ring import Chain, DeviceIotlb, GuestMemory, Region, Window
from vhostd.ring.driver import SplitDriver
from vhostd.ring.split import SplitRing
from vhostd.ring.write_log import WriteLog

PAGE = 4096
END = 1 << 64
READ, WRITE, BOTH_WAYS = 1, 2, 3
USER = 0x7F00_0000_0000
SPAN = 64  # addresses that the model looks at, from the beginning, and from the end of all
MOST = 131072


class Change(NamedTuple):
    """An update, or, without access, an invalidation."""

    first: int
    size: int
    user: int
    access: int


SMALL = st.builds(
    Change, st.integers(0, SPAN - 1), st.integers(1, SPAN), st.integers(0, 200), st.integers(0, 3)
)


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Many on few addresses; some of them on those at the end of all."""
    found = draw(st.lists(SMALL, max_size=40))
    high = draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found)))
    return [
        each._replace(first=END - SPAN + each.first, size=min(each.size, SPAN - each.first)) if far else each
        for each, far in zip(found, high, strict=True)
    ]


def apply(iotlb: DeviceIotlb, change: Change) -> None:
    if change.access:
        iotlb.update(change.first, change.size, change.user, change.access)
    else:
        iotlb.invalidate(change.first, change.first + change.size - 1)


@given(changes())
def test_it_is_a_table_of_bytes(made: list[Change]) -> None:
    iotlb, model = DeviceIotlb(), dict[int, tuple[int, int]]()
    for change in made:
        apply(iotlb, change)
        for i in range(change.size):
            model.pop(change.first + i, None)
            if change.access:
                model[change.first + i] = (change.user + i, change.access)
        for iova in (*range(2 * SPAN), *range(END - SPAN, END)):
            _, access = model.get(iova, (0, 0))
            assert iotlb.covers(iova) == bool(access)
            for wanted in (READ, WRITE, BOTH_WAYS):
                assert iotlb.allows(iova, wanted) == (access & wanted == wanted)
    assert len(iotlb) <= len(model)


@given(changes(), st.integers(0, SPAN - 1), st.integers(1, SPAN))
def test_memory_is_read_where_the_translations_say(made: list[Change], start: int, length: int) -> None:
    """All bytes of a range, or none: those that are not translated are told of."""
    content = os.urandom(PAGE)
    fd = memfd(PAGE)
    os.pwrite(fd, content, 0)
    iotlb, model = DeviceIotlb(), dict[int, int]()
    told: list[tuple[int, int]] = []
    iotlb.when_missed(told.extend)
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=USER, size=PAGE)], iotlb)
    os.close(fd)
    for change in made:
        apply(iotlb, change._replace(user=USER + change.user))
        for i in range(change.size):
            model.pop(change.first + i, None)
            if change.access & READ:
                model[change.first + i] = change.user + i
    places = [model.get(start + i) for i in range(length)]
    if None in places:
        with pytest.raises(BadDescriptor):
            memory.read(start, length)
    else:
        assert memory.read(start, length) == bytes(content[at] for at in places if at is not None)
    assert not told  # that is for whoever looks a chain or a ring up


@pytest.mark.parametrize(
    ("iova", "size", "user", "access"),
    [
        (0, 0, 0, BOTH_WAYS),
        (2, END - 1, 0, BOTH_WAYS),
        (END - 1, 2, 0, BOTH_WAYS),
        (0, 2, END - 1, BOTH_WAYS),
        (0, END - 1, 2, BOTH_WAYS),
        (0, 1, 0, 0),
        (0, 1, 0, 4),
        (0, 1, 0, 255),
    ],
)
def test_translations_that_cannot_be(iova: int, size: int, user: int, access: int) -> None:
    iotlb = DeviceIotlb()
    iotlb.update(0, PAGE, USER, READ)
    with pytest.raises(RefusedRequest):
        iotlb.update(iova, size, user, access)
    assert len(iotlb) == 1
    assert iotlb.allows(PAGE - 1, READ)


def test_the_last_byte_of_all() -> None:
    iotlb = DeviceIotlb()
    iotlb.update(END - PAGE, PAGE, END - PAGE, BOTH_WAYS)
    iotlb.update(0, PAGE, 0, BOTH_WAYS)  # goes on there, if addresses wrapped around
    assert iotlb.allows(END - 1, BOTH_WAYS)
    assert iotlb.allows(0, BOTH_WAYS)
    iotlb.invalidate(END - 1, END - 1)
    assert not iotlb.covers(END - 1)
    assert iotlb.covers(END - 2)


def test_everything_at_once() -> None:
    iotlb = DeviceIotlb()
    iotlb.update(0, END - 1, 0, BOTH_WAYS)
    iotlb.update(END - 1, 1, END - 1, BOTH_WAYS)
    assert iotlb.allows(END - 1, WRITE)
    iotlb.invalidate(0, END - 1)
    assert len(iotlb) == 0


def test_neighbours_that_say_the_same_are_one() -> None:
    iotlb = DeviceIotlb()
    for page in (0, 2, 1, 4, 3):
        iotlb.update(page * PAGE, PAGE, USER + page * PAGE, BOTH_WAYS)
    assert len(iotlb) == 1
    iotlb.update(5 * PAGE, PAGE, USER + 5 * PAGE, READ)
    iotlb.update(6 * PAGE, PAGE, USER, READ)
    assert len(iotlb) == 3


def test_a_table_that_is_full_begins_anew() -> None:
    iotlb = DeviceIotlb()
    for page in range(MOST + 1000):
        iotlb.update(2 * page * PAGE, PAGE, USER, BOTH_WAYS)
        assert iotlb.covers(2 * page * PAGE)
    assert 0 < len(iotlb) <= 1002


def two_pages(iotlb: DeviceIotlb) -> GuestMemory:
    """Two regions of a page each, whose guest addresses mean nothing."""
    fd = memfd(2 * PAGE)
    try:
        regions = [
            Region(fd, guest_addr=PAGE * (1 - i), user_addr=USER + PAGE * i, size=PAGE, offset=PAGE * i)
            for i in range(2)
        ]
    finally:
        os.close(fd)
    return GuestMemory(regions, iotlb)


def test_an_area_of_a_ring_is_found_or_told_of() -> None:
    iotlb = DeviceIotlb()
    told: list[list[tuple[int, int]]] = []
    iotlb.when_missed(told.append)
    memory = two_pages(iotlb)
    with pytest.raises(NotThereYet):
        memory.area(PAGE - 8, 16)
    iotlb.update(0, PAGE, USER, BOTH_WAYS)
    with pytest.raises(NotThereYet):
        memory.area(PAGE - 8, 16)
    assert told == [[(PAGE - 8, BOTH_WAYS), (PAGE, BOTH_WAYS)], [(PAGE, BOTH_WAYS)]]
    iotlb.update(PAGE, PAGE, USER, BOTH_WAYS)
    for addr in (0, PAGE):
        window = memory.area(addr, PAGE)
        memoryview(window)[:4] = b"here"
        assert memory.read(0, 4) == b"here"
        memoryview(window)[:4] = bytes(4)


def test_an_area_whose_pages_lie_elsewhere_is_seen_in_a_row() -> None:
    fd = memfd(8 * PAGE)
    iotlb = DeviceIotlb()
    regions = [
        Region(
            fd, guest_addr=PAGE * 100 * i, user_addr=USER + PAGE * 10 * i, size=PAGE * 4, offset=PAGE * 4 * i
        )
        for i in range(2)
    ]
    memory = GuestMemory(regions, iotlb)
    order = [3, 4, 0, 6, 7, 1]
    for at, page in enumerate(order):
        iotlb.update(at * PAGE, PAGE, USER + PAGE * (page if page < 4 else page + 6), BOTH_WAYS)
        os.pwrite(fd, bytes([page]) * PAGE, page * PAGE)
    for start, length in ((0, 6 * PAGE), (100, 5 * PAGE), (PAGE - 8, 16), (3 * PAGE, PAGE + 1)):
        view = memoryview(memory.area(start, length))
        assert bytes(view) == b"".join(bytes([page]) * PAGE for page in order)[start : start + length]
        view[-1:] = b"x"
        assert (
            os.pread(fd, 1, order[(start + length - 1) // PAGE] * PAGE + (start + length - 1) % PAGE) == b"x"
        )
        view[-1:] = bytes([order[(start + length - 1) // PAGE]])
    assert not memory.lost
    view = memoryview(memory.area(0, 6 * PAGE))
    os.ftruncate(fd, PAGE)
    os.close(fd)
    assert bytes(view[:4]) == bytes(4)
    assert memory.lost


def test_where_a_row_lies_in_guest_memory() -> None:
    """Also where a page is further on in the row than in the guest's memory."""
    told: list[int] = []

    class Log(WriteLog):
        def dirtied(self, guest_addr: int, length: int) -> None:
            told.append(guest_addr)

    size, fd = 1024, memfd(9 * PAGE)
    iotlb = DeviceIotlb()
    memory = GuestMemory([Region(fd, guest_addr=0, user_addr=USER, size=9 * PAGE)], iotlb)
    os.close(fd)
    for at, page in enumerate((2, 3, 1, 0, 4, 5, 6, 7, 8)):
        iotlb.update(at * PAGE, PAGE, USER + page * PAGE, BOTH_WAYS)
    desc, avail, used = SplitRing.footprint(size)
    windows = memory.area(4 * PAGE, desc), memory.area(8 * PAGE, avail), memory.area(PAGE - 12, used)
    found = SplitRing(size, *windows, memory, features=0, base=0)
    found.log_writes(Log())
    memoryview(windows[0])[:16] = struct.pack("<QIHH", 0, 1, 0, 0)
    memoryview(windows[1])[2:4] = struct.pack("<H", 2 + PAGE // 8)
    while (chain := found.pop()) is not None:
        found.push(chain)
        del chain
    elements = [addr // PAGE for addr in told if addr // PAGE != 2]
    assert elements == [3] * (2 * (PAGE // 8)) + [1] * 2


HUGE_IN_A_ROW = """
import mmap, os
from vhostd.errors import RefusedRequest
from vhostd.ring import DeviceIotlb, GuestMemory, Region

HUGE, PAGE, refused, keep = 2 << 20, 4096, 0, []
regions = []
for i, flags in enumerate((os.MFD_HUGETLB | os.MFD_HUGE_2MB, 0)):
    fd = os.memfd_create("guest", flags)
    os.ftruncate(fd, HUGE)
    regions.append(Region(fd, guest_addr=i * HUGE, user_addr=i * HUGE, size=HUGE))
iotlb = DeviceIotlb()
memory = GuestMemory(regions, iotlb)
iotlb.update(0, PAGE, 0, 3)
iotlb.update(PAGE, PAGE, HUGE, 3)
for _ in range(1024):  # the row has every place in a huge page
    try:
        memory.area(0, 2 * PAGE)
    except RefusedRequest:
        refused += 1
    keep.append(mmap.mmap(-1, PAGE, flags=mmap.MAP_SHARED))
print(refused)
"""


def test_a_part_of_a_huge_page_in_a_row_replaces_nothing_behind_it() -> None:
    try:
        os.close(os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB))
    except OSError as error:
        pytest.skip(f"no huge pages here: {error}")
    environment = os.environ | {"PYTHONPATH": str(Path(ring.__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    child = subprocess.run(
        [sys.executable, "-c", HUGE_IN_A_ROW], env=environment, capture_output=True, timeout=20, check=False
    )
    assert (child.returncode, child.stdout) == (0, b"1024\n"), child.stderr


def test_an_area_in_two_regions_or_in_none() -> None:
    iotlb = DeviceIotlb()
    memory = two_pages(iotlb)
    iotlb.update(0, 3 * PAGE, USER, BOTH_WAYS)
    for addr in (2 * PAGE - 8, 2 * PAGE):
        with pytest.raises(RefusedRequest, match="not pages of shared memory"):
            memory.area(addr, 16)
    assert len(memory.area(PAGE - 8, 16)) == 16
    for addr, length in ((END - 8, 16), (END, 16), (-1, 16), (0, 0)):
        with pytest.raises(RefusedRequest):
            memory.area(addr, length)


def test_an_area_that_may_not_be_written() -> None:
    iotlb = DeviceIotlb()
    told: list[list[tuple[int, int]]] = []
    iotlb.when_missed(told.append)
    memory = two_pages(iotlb)
    iotlb.update(0, PAGE, USER, READ)
    with pytest.raises(NotThereYet):
        memory.area(0, 16)
    assert told == [[(0, BOTH_WAYS)]]


# --- A ring behind an IOMMU -------------------------------------------------------------------------------

SHIFT = 0x8000_0000  # from the addresses that the driver has, to those that it tells
PAGES = (SIZE - (DATA - GUEST)) // PAGE


class Behind:
    """A ring whose driver tells I/O virtual addresses, and a front-end that knows some pages of them."""

    def __init__(self, pages: dict[int, int]) -> None:
        self.pages = pages  # the permission of each page that there is, by its number from DATA on
        self.told: list[tuple[int, int]] = []
        self.iotlb = DeviceIotlb()
        self.iotlb.when_missed(self.told.extend)
        self.near = two_regions()
        self.driver = SplitDriver(self.near, GUEST, 8, features=BOTH)
        self.memory = GuestMemory(self.near.regions, self.iotlb)
        self.ring = SplitRing(8, *self.areas(), self.memory, features=BOTH, base=0)

    def areas(self) -> tuple[Window, Window, Window]:
        """The ring, where it is."""
        desc, avail, used = SplitRing.footprint(8)
        return (
            self.memory.guest(self.driver.desc_addr, desc),
            self.memory.guest(self.driver.avail_addr, avail),
            self.memory.guest(self.driver.used_addr, used),
        )

    def add(self, buffers: Buffers) -> None:
        """Offers a chain of buffers, whose addresses count from DATA on."""
        self.driver.add([(DATA + at + SHIFT, length, writes) for at, length, writes in buffers])

    def may(self, buffers: Buffers) -> bool:
        """Whether all of it is allowed."""
        return all(
            self.pages.get(page, 0) & (WRITE if writes else READ)
            for at, length, writes in buffers
            for page in range(at // PAGE, -(-(at + length) // PAGE) if length else at // PAGE)
        )

    def answer(self) -> None:
        """Sends, or refuses, all that was asked for."""
        assert self.told
        awaited = self.ring.awaited
        assert awaited == self.told[-1]
        for iova, access in self.told:
            page = (iova - SHIFT - DATA) // PAGE
            if granted := self.pages.get(page, 0):
                user = next(
                    region.user_addr + DATA + page * PAGE - region.guest_addr
                    for region in self.near.regions
                    if 0 <= DATA + page * PAGE - region.guest_addr < region.size
                )
                self.iotlb.update(iova // PAGE * PAGE, PAGE, user, granted)
            assert access in (READ, WRITE)
        told = self.told.copy()
        self.told.clear()
        for miss in told:
            assert self.ring.awaited == awaited
            self.ring.answered(*miss, refused=not self.iotlb.allows(*miss))
        assert self.ring.awaited is None

    def pop(self) -> Chain:
        """The chain that was offered, after all answers."""
        before = self.ring.base, self.ring.effort, self.ring.in_flight
        while (chain := self.ring.pop()) is None:
            assert self.ring.is_held
            assert (self.ring.base, self.ring.effort, self.ring.in_flight) == before
            self.answer()
        return chain


BUFFERS = st.lists(
    st.tuples(st.integers(0, PAGES * PAGE - 3 * PAGE), st.integers(0, 3 * PAGE), st.booleans()),
    min_size=1,
    max_size=4,
).map(lambda buffers: sorted(buffers, key=lambda buffer: buffer[2]))
TABLES = st.dictionaries(st.integers(0, PAGES - 1), st.integers(1, 3))


@given(BUFFERS, st.one_of(TABLES, st.just(dict.fromkeys(range(PAGES), BOTH_WAYS))), st.data())
def test_a_chain_is_given_when_all_of_it_is_allowed(
    buffers: Buffers, pages: dict[int, int], data: st.DataObject
) -> None:
    machine = Behind(pages)
    machine.near.write(DATA, os.urandom(PAGES * PAGE))
    machine.add(buffers)
    if not machine.may(buffers):
        with pytest.raises(BadDescriptor):
            machine.pop()
        assert machine.ring.base == 0
        return
    chain = machine.pop()
    sent = b"".join(machine.near.read(DATA + at, length) for at, length, writes in buffers if not writes)
    assert chain.read(chain.readable) == sent
    first = data.draw(st.integers(0, PAGES * PAGE))
    last = first + data.draw(st.integers(0, 2 * PAGE))
    overlaps = any(length and at <= last and first < at + length for at, length, _ in buffers)
    assert machine.ring.uses(DATA + SHIFT + first, DATA + SHIFT + last) == overlaps
    calls: list[str] = []
    machine.ring.when_returned(lambda: calls.append("returned"))
    machine.ring.push(chain)
    assert calls == ["returned"]
    assert not machine.ring.uses(0, END - 1)


def test_a_chain_that_is_dropped_uses_nothing_any_more() -> None:
    machine = Behind(dict.fromkeys(range(PAGES), BOTH_WAYS))
    chains = {}
    for i in range(4):
        machine.add([(i * PAGE, 8, False)])
        chains[i] = machine.pop()
    for i in (1, 3, 0, 2):
        here = DATA + SHIFT + i * PAGE
        assert machine.ring.uses(here, here)
        del chains[i]
        assert not machine.ring.uses(here, here)
    assert machine.ring.in_flight == 0


def test_a_chain_that_wraps_around_uses_everything() -> None:
    machine = Behind({})
    machine.iotlb.update(END - PAGE, PAGE, USER, BOTH_WAYS)
    machine.iotlb.update(0, PAGE, USER, BOTH_WAYS)
    machine.driver.add([(END - 8, 16, False)])
    chain = machine.ring.pop()
    assert chain is not None
    assert machine.ring.uses(PAGE, PAGE)


def test_a_ring_that_was_taken_back_is_not_looked_at() -> None:
    machine = Behind(dict.fromkeys(range(PAGES), BOTH_WAYS))
    wanted: list[str] = []
    eased: list[str] = []
    machine.add([(0, 8, True)])
    chain = machine.pop()
    machine.ring.hold(lambda: wanted.append("wanted"))
    machine.add([(8, 8, True)])
    before = machine.driver.used_flags, machine.driver.avail_event
    assert machine.ring.pop() is None
    assert not machine.ring.is_empty
    machine.ring.disarm()
    assert before == (machine.driver.used_flags, machine.driver.avail_event)
    assert wanted == []
    machine.ring.push(chain)  # what is in flight can be pushed
    assert machine.driver.used() is not None
    machine.ring.when_eased(lambda: eased.append("eased"))
    assert (wanted, eased) == (["wanted"], [])
    machine.ring.remap(machine.memory, *machine.areas())
    assert eased == ["eased"]
    assert machine.pop() is not None
