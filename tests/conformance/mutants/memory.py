"""Faults of guest memory."""

import signal
from contextlib import suppress
from typing import Any

from tests.conformance.faults import SILENCE, breaks, replace
from tests.conformance.rings import Lair, refuse
from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.ring import Chain, GuestMemory, Region
from vhostd.vhost_user import memory as memory_module
from vhostd.vhost_user.memory import Memory
from vhostd.vhost_user.messages import REM_MEM_REG, MemoryTable, SingleRegion
from vhostd.wire.framing import Message
from vhostd.wire.rows import U64

KEPT: list[Any] = []  # what is never let go


def region(**changed: Any) -> None:
    """Has regions made with something else in place of what the front-end has said."""

    def make(before: Any, fd: int, **said: int) -> Region:
        made: Region = before(fd, **{**said, **{name: of(said) for name, of in changed.items()}})
        return made

    replace(memory_module, "Region", make)


@breaks("MEM-1", "SET_VRING_")
def one_kind_of_addresses() -> None:
    """User addresses are taken for guest addresses."""
    region(user_addr=lambda said: said["guest_addr"])


@breaks("MEM-2", "a valid request was not answered", patience=SILENCE)
def no_offset() -> None:
    """The offset of a region is ignored."""
    region(offset=lambda _: 0)


@breaks("MEM-3", "SET_MEM_TABLE was acked with 1")
def four_regions() -> None:
    """There are four regions at most."""

    def set_mem_table(before: Any, self: Memory, table: MemoryTable, fds: Any) -> None:
        if len(table.regions) > 4:
            raise RefusedRequest("more than four regions")
        before(self, table, fds)

    replace(Memory, "set_mem_table", set_mem_table)


@breaks("MEM-4", "with buffers across two regions", patience=SILENCE)
def one_region_each() -> None:
    """A buffer lies in one region."""

    def is_across(lair: Lair, chain: Chain) -> bool:
        addr, size, *_ = lair.descriptor(chain.head)
        ends = [region.guest_addr + region.size for region in lair.memory.regions]
        return any(addr < end < addr + size for end in ends)

    refuse(is_across)


@breaks("MEM-5", "SET_MEM_TABLE was acked with 1")
def table_once() -> None:
    """The table cannot be replaced while a ring runs."""

    def set_mem_table(before: Any, self: Memory, table: MemoryTable, fds: Any) -> None:
        if any(vring.runner.started for vring in self._vrings):
            raise RefusedRequest("a ring runs")
        before(self, table, fds)

    replace(Memory, "set_mem_table", set_mem_table)


@breaks("MEM-6", "ADD_MEM_REG was acked with 1")
def slots_before_rings() -> None:
    """No region can be added while a ring runs."""

    def add_mem_reg(before: Any, self: Memory, added: SingleRegion, fds: Any) -> None:
        if any(vring.runner.started for vring in self._vrings):
            raise RefusedRequest("a ring runs")
        before(self, added, fds)

    replace(Memory, "add_mem_reg", add_mem_reg)


@breaks("MEM-7", "it says 510 slots, and has refused region 510")
def one_slot_too_many() -> None:
    """It says one slot more than there are."""
    replace(Memory, "get_max_mem_slots", lambda before, self, empty: U64(before(self, empty).value + 1))


@breaks("MEM-8", "a region was not removed by its addresses and its size alone")
def removal_by_offset() -> None:
    """REM_MEM_REG looks at the offset, too."""

    def is_same(before: Any, self: Memory, mapped: Region, named: SingleRegion) -> bool:
        return named.mmap_offset == 0 and before(self, mapped, named)

    replace(Memory, "_is_same", is_same)


@breaks("MEM-9", "a region that was never added was removed")
def removes_nothing() -> None:
    """A region that is not there is removed without a word."""

    def rem_mem_reg(before: Any, self: Memory, named: SingleRegion) -> None:
        with suppress(RefusedRequest):
            before(self, named)

    replace(Memory, "rem_mem_reg", rem_mem_reg)


@breaks("MEM-10", "an fd that came with REM_MEM_REG is still open", patience=SILENCE)
def forgets_fds() -> None:
    """The fds of REM_MEM_REG are forgotten."""

    def close(before: Any, self: Message) -> None:
        if self.request == REM_MEM_REG.request:
            KEPT.append(self.fds)
        else:
            before(self)

    replace(Message, "close", close)


def _keeps(name: str) -> None:
    """Has regions let go by name only."""

    def call(before: Any, self: Memory, *arguments: Any) -> None:
        KEPT.append(self.map)
        before(self, *arguments)

    replace(Memory, name, call)


@breaks("MEM-11", "it has written into memory that the front-end had removed")
def removed_by_name() -> None:
    """A region that is removed stays."""
    replace(Memory, "rem_mem_reg", lambda _before, _self, _named: None)


@breaks("MEM-12", "the memory is still mapped", patience=SILENCE)
def removed_stays_mapped() -> None:
    """The map before a removal is kept."""
    _keeps("rem_mem_reg")


@breaks("MEM-13", "the memory is still mapped", patience=SILENCE)
def replaced_stays_mapped() -> None:
    """The map before a new table is kept."""
    _keeps("set_mem_table")


@breaks("MEM-14", "the memory of a guest that has gone is mapped", patience=SILENCE)
def mapped_for_ever() -> None:
    """The map of a session is kept."""
    _keeps("close")


@breaks("MEM-15", "was ended by SIGSEGV")
def trusts_sizes() -> None:
    """A region that cannot be mapped is used all the same."""
    _dies_of_refusal("_map_region")


@breaks("MEM-16", "a region of 0 bytes was accepted")
def any_table() -> None:
    """A table that cannot be right changes nothing, and is acked as well done."""
    replace(Memory, "set_mem_table", _suppressed)


@breaks("MEM-17", "was ended by SIGSEGV")
def counts_no_fds() -> None:
    """The fds of a table are not counted before they are used."""
    _dies_of_refusal("set_mem_table")


@breaks("MEM-18", "two regions with one fd were accepted")
def fds_that_are_there() -> None:
    """Regions without an fd are left out."""

    def set_mem_table(before: Any, self: Memory, table: MemoryTable, fds: Any) -> None:
        before(self, MemoryTable(table.regions[: len(fds)]), fds)

    replace(Memory, "set_mem_table", set_mem_table)


@breaks("MEM-19", "was ended by SIGSEGV")
def counts_no_regions() -> None:
    """More regions than there is room for are read."""

    def unpack(before: Any, data: bytes) -> Any:
        if int.from_bytes(data[:4], "little") > MemoryTable.MAX_REGIONS:
            signal.raise_signal(signal.SIGSEGV)
        return before(data)

    replace(MemoryTable, "unpack", unpack)


@breaks("MEM-20", "was ended by SIGSEGV")
def maps_anything() -> None:
    """What cannot be mapped is not noticed."""
    _dies_of_refusal("_map_region")


@breaks("MEM-21", "was ended by SIGBUS")
def trusts_files() -> None:
    """A region that is longer than its file is mapped."""
    _dies_of_refusal("_map_region", signal.SIGBUS)


@breaks("MEM-22", "was ended by SIGBUS")
def trusts_mapped_files() -> None:
    """A page that has gone from its file ends the program."""

    def make(before: Any, *arguments: Any, **keywords: Any) -> Region:
        made: Region = before(*arguments, **keywords)
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # which the region has handled
        return made

    replace(memory_module, "Region", make)


@breaks("MEM-23", "was ended by SIGSEGV")
def rings_anywhere() -> None:
    """A ring that lies in no region is looked at."""
    from vhostd.vhost_user.vring import Vring

    def windows(before: Any, self: Vring, memory: GuestMemory) -> Any:
        try:
            return before(self, memory)
        except (RefusedRequest, MalformedMessage):
            signal.raise_signal(signal.SIGSEGV)

    replace(Vring, "_windows", windows)


def _suppressed(before: Any, self: Memory, *arguments: Any) -> None:
    with suppress(RefusedRequest):
        before(self, *arguments)


def _dies_of_refusal(name: str, number: int = signal.SIGSEGV) -> None:
    """Has a method of the memory end the program where it would refuse something."""

    def call(before: Any, self: Memory, *arguments: Any) -> Any:
        try:
            return before(self, *arguments)
        except RefusedRequest:
            signal.raise_signal(number)

    replace(Memory, name, call)
