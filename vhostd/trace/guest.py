"""The guest's memory and where its rings are, by what the front-end says."""

from collections.abc import Callable, Sequence
from typing import Any

from vhostd.errors import RefusedRequest
from vhostd.ring import GuestMemory, Region
from vhostd.trace.rings import RingPlace, Walk, walk
from vhostd.vhost_user.messages import (
    ADD_MEM_REG,
    GET_VRING_BASE,
    REM_MEM_REG,
    SET_FEATURES,
    SET_MEM_TABLE,
    SET_PROTOCOL_FEATURES,
    SET_VRING_ADDR,
    SET_VRING_BASE,
    SET_VRING_KICK,
    SET_VRING_NUM,
    MemoryRegion,
    MemoryTable,
    ProtocolFeature,
    SingleRegion,
    VringAddr,
    VringFd,
    VringState,
)
from vhostd.virtio.vocabulary import Feature
from vhostd.wire.fds import Fd
from vhostd.wire.rows import U64, Row

ALL = (1 << 64) - 1


class Guest:
    """Maps the memory that the front-end shares, and follows the rings that run in it."""

    def __init__(self) -> None:
        self.memory = GuestMemory()
        self.rings: dict[int, Walk] = {}
        self._features = self._protocol = 0
        self._sizes: dict[int, int] = {}
        self._bases: dict[int, int] = {}
        self._addresses: dict[int, VringAddr] = {}
        self._rows: dict[Row[Any, Any], Callable[[Any, Sequence[Fd]], None]] = {
            SET_FEATURES: self._set_features,
            SET_PROTOCOL_FEATURES: self._set_protocol_features,
            SET_MEM_TABLE: self._set_mem_table,
            ADD_MEM_REG: self._add_mem_reg,
            REM_MEM_REG: self._rem_mem_reg,
            SET_VRING_NUM: self._set_num,
            SET_VRING_BASE: self._set_base,
            SET_VRING_ADDR: self._set_addr,
            SET_VRING_KICK: self._set_kick,
            GET_VRING_BASE: self._stop,
        }
        self._by_number = {row.request: (row, method) for row, method in self._rows.items()}

    def knows(self, request: int) -> bool:
        """Whether a request says anything of memory or rings."""
        return request in self._by_number

    def hear(self, request: int, payload: bytes, fds: Sequence[Fd]) -> None:
        """Takes what the front-end says; raises FrontendError or GuestError if it cannot be."""
        row, method = self._by_number[request]
        method(row.admit(payload, len(fds), ALL), fds)

    def close(self) -> None:
        """Lets go of the memory."""
        self.rings.clear()
        self.memory = GuestMemory()

    def _set_features(self, payload: U64, _: Sequence[Fd]) -> None:
        self._features = payload.value

    def _set_protocol_features(self, payload: U64, _: Sequence[Fd]) -> None:
        self._protocol = payload.value

    def _set_mem_table(self, payload: MemoryTable, fds: Sequence[Fd]) -> None:
        self._map([self._region(each, fd) for each, fd in zip(payload.regions, fds, strict=False)])

    def _add_mem_reg(self, payload: SingleRegion, fds: Sequence[Fd]) -> None:
        self._map([*self.memory.regions, self._region(payload, fds[0])])

    def _rem_mem_reg(self, payload: SingleRegion, _: Sequence[Fd]) -> None:
        self._map([each for each in self.memory.regions if each.guest_addr != payload.guest_addr])

    def _region(self, place: MemoryRegion | SingleRegion, fd: Fd) -> Region:
        return Region(
            fd.fileno(),
            guest_addr=place.guest_addr,
            user_addr=place.guest_addr if self._speaks_guest_addresses else place.user_addr,
            size=place.size,
            offset=place.mmap_offset,
        )

    @property
    def _speaks_guest_addresses(self) -> bool:
        return bool(self._protocol >> ProtocolFeature.GPA_ADDRESSES & 1)

    def _map(self, regions: Sequence[Region]) -> None:
        self.memory = GuestMemory(regions)
        for ring in self.rings.values():
            ring.memory = self.memory

    def _set_num(self, payload: VringState, _: Sequence[Fd]) -> None:
        self._sizes[payload.index] = payload.num

    def _set_base(self, payload: VringState, _: Sequence[Fd]) -> None:
        self._bases[payload.index] = payload.num

    def _set_addr(self, payload: VringAddr, _: Sequence[Fd]) -> None:
        self._addresses[payload.index] = payload

    def _set_kick(self, payload: VringFd, _: Sequence[Fd]) -> None:
        """The ring starts, unless it runs."""
        index = payload.index
        if index in self.rings:
            return
        if self._features >> Feature.ACCESS_PLATFORM & 1:
            raise RefusedRequest(f"ring {index} is behind an IOMMU: what it holds is not kept")
        if index not in self._addresses or not self._sizes.get(index):
            raise RefusedRequest(f"ring {index} starts without a size or an address")
        at = self._addresses[index]
        place = RingPlace(
            self._sizes[index],
            self._guest_addr(at.desc),
            self._guest_addr(at.avail),
            self._guest_addr(at.used),
            self._bases.get(index, 0),
        )
        self.rings[index] = walk(self.memory, place, self._features)

    def _stop(self, payload: VringState, _: Sequence[Fd]) -> None:
        self.rings.pop(payload.index, None)

    def _guest_addr(self, user_addr: int) -> int:
        region = self.memory.user(user_addr, 1).region
        return region.guest_addr + user_addr - region.user_addr
