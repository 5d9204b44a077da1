"""The messages about guest memory: a table of regions, or one region at a time.

While a guest comes by postcopy, the reply says where we see each region. The front-end acks that by a message
of the same kind without a region. Before that, we touch nothing in the region.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

from vhostd.errors import MalformedMessage, RefusedRequest
from vhostd.ring import MAX_REGIONS, Arrivals, DeviceIotlb, DirtyLog, GuestMemory, Region
from vhostd.vhost_user.arrival import Arrival
from vhostd.vhost_user.dispatch import Agreed
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    GET_MAX_MEM_SLOTS,
    REM_MEM_REG,
    SET_MEM_TABLE,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
)
from vhostd.vhost_user.vring import Vring
from vhostd.wire.calls import Call, Fds, Reply, answer, answer_with_fds
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Empty, Payload


class Memory:
    """Keeps the map of the guest's memory, and moves running rings to each new map.

    With GPA_ADDRESSES the front-end tells no addresses of its own: user addresses are guest addresses then.
    """

    def __init__(self, vrings: Sequence[Vring], agreed: Agreed) -> None:
        self.map = GuestMemory()
        self.arrival: Arrival | None = None  # while pages may be missing
        self._vrings = vrings
        self._agreed = agreed
        self.calls: tuple[Call, ...] = (
            answer_with_fds(SET_MEM_TABLE, self.set_mem_table),
            answer(GET_MAX_MEM_SLOTS, self.get_max_mem_slots),
            answer_with_fds(ADD_MEM_REG, self.add_mem_reg),
            answer(REM_MEM_REG, self.rem_mem_reg),
        )

    def describe(self) -> str:
        """The number and the size of the regions, for a log line."""
        regions = self.map.regions
        return f"regions={len(regions)} memory={sum(region.size for region in regions)}"

    @property
    def dirty_log_size(self) -> int:
        """The bytes that a dirty log of all regions takes at least."""
        ends = [region.guest_addr + region.size - 1 for region in self.map.regions]
        return DirtyLog.footprint(max(ends)) if ends else 0

    def close(self) -> None:
        """Unmaps all memory now, and not later, at a garbage collection. No ring may run."""
        self.map = GuestMemory()

    def set_mem_table(self, table: MemoryTable, fds: Fds) -> Reply[Any] | None:
        if not table.regions and self._is_ack():
            return None
        if table.regions and not fds:
            raise RefusedRequest(
                f"SET_MEM_TABLE with {len(table.regions)} regions and no fds: "
                "is share=on missing from the front-end's memory backend?"
            )
        if len(fds) != len(table.regions):
            raise RefusedRequest(f"SET_MEM_TABLE with {len(table.regions)} regions and {len(fds)} fds")
        regions = list(map(self._map_region, table.regions, fds))
        self._share(regions)
        return self._seen(MemoryTable(tuple(map(_place, table.regions, regions))))

    def get_max_mem_slots(self, _: Empty) -> U64:
        return U64(MAX_REGIONS)

    def add_mem_reg(self, region: SingleRegion, fds: Fds) -> Reply[Any] | None:
        if not region.size and self._is_ack():
            return None
        if not fds:
            raise MalformedMessage("ADD_MEM_REG with 0 fds, not 1")
        added = self._map_region(region, fds[0])
        self._share([*self.map.regions, added])
        return self._seen(
            SingleRegion(region.padding, region.guest_addr, region.size, added.host_addr, region.mmap_offset)
        )

    def rem_mem_reg(self, region: SingleRegion) -> None:
        if not region.size and self._is_ack():
            return
        rest = [kept for kept in self.map.regions if not self._is_same(kept, region)]
        if len(rest) == len(self.map.regions):
            raise RefusedRequest(f"REM_MEM_REG of a region that is not there: {region}")
        self._replace(rest)

    def translate(self, iotlb: DeviceIotlb | None) -> None:
        """Has guest addresses translated from now on, or no more. No ring may run."""
        self.map = GuestMemory(self.map.regions, iotlb, self._pages)

    # --- Postcopy ---------------------------------------------------------------------------------------

    def await_pages(self, arrival: Arrival) -> None:
        """Has the pages of all memory that is shared from now on awaited. None may be shared yet."""
        self.arrival = arrival

    def await_no_more(self) -> None:
        """Takes all pages as there. Rings that wait for some go on."""
        if (arrival := self.arrival) is not None:
            for region in self.map.regions:
                region.await_no_more(arrival.pages)
            self.arrival = None
            self._replace(self.map.regions)
            arrival.complete()

    def _is_ack(self) -> bool:
        """Whether a message of nothing is an ack: the front-end knows where we see the memory."""
        if self.arrival is not None:
            self.arrival.acked()
        return self.arrival is not None

    def _seen(self, places: Payload) -> Reply[Any] | None:
        """The reply, while pages may be missing: the regions, with the addresses where we see them."""
        return None if self.arrival is None else Reply(places, [])

    @property
    def _pages(self) -> Arrivals | None:
        return None if self.arrival is None else self.arrival.pages

    # --- Regions ----------------------------------------------------------------------------------------

    def _share(self, regions: Iterable[Region]) -> None:
        """As `_replace`, where some are new: nothing is touched before the front-end knows of them."""
        with nullcontext() if self.arrival is None else self.arrival.unacked():
            self._replace(regions)

    def _replace(self, regions: Iterable[Region]) -> None:
        """Moves all rings to a map of these regions; moves none if one of the running rings is not in it."""
        memory = GuestMemory(regions, self.map.iotlb, self._pages)
        try:
            for vring in self._vrings:
                vring.remap(memory)
        except RefusedRequest:
            for vring in self._vrings:
                vring.remap(self.map)
            raise
        self.map = memory
        if self.arrival is not None:
            self.arrival.keep(memory.regions)

    def _map_region(self, region: MemoryRegion | SingleRegion, fd: Fd) -> Region:
        mapped = Region(
            fd.fileno(),
            guest_addr=region.guest_addr,
            user_addr=self._user_addr(region),
            size=region.size,
            offset=region.mmap_offset,
        )
        if self.arrival is not None:
            mapped.await_pages(self.arrival.pages)
        return mapped

    def _is_same(self, mapped: Region, named: SingleRegion) -> bool:
        addresses = (named.guest_addr, self._user_addr(named))
        return (mapped.guest_addr, mapped.user_addr, mapped.size) == (*addresses, named.size)

    def _user_addr(self, region: MemoryRegion | SingleRegion) -> int:
        return region.guest_addr if self._agreed.has(ProtocolFeature.GPA_ADDRESSES) else region.user_addr


def _place(named: MemoryRegion | SingleRegion, mapped: Region) -> MemoryRegion:
    """The region as the front-end named it, at the address where we see it."""
    return MemoryRegion(named.guest_addr, named.size, mapped.host_addr, named.mmap_offset)
