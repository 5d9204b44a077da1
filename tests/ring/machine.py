"""A guest's memory and one virtqueue in it, with both ends at hand."""

import os
from collections.abc import Sequence
from typing import Any, TypeVar

from vhostd.ring import Chain, GuestMemory, InflightQueue, Region, Ring, ring_format
from vhostd.ring.driver import SplitDriver, driver_format
from vhostd.ring.driver_packed import PackedDriver

GUEST = 0x1000_0000
USER = 0x7F00_0000_0000
SIZE = 0x20000
SEAM = GUEST + SIZE // 2  # two regions meet here: neighbours for the guest, far apart for anybody else
DATA = GUEST + 0x8000  # below it are the rings
END = GUEST + SIZE

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
BOTH = INDIRECT_DESC | EVENT_IDX
PACKED = 1 << 34

T = TypeVar("T")
Buffers = Sequence[tuple[int, int, bool]]


def memfd(size: int, name: str = "guest") -> int:
    """A new file of `size` bytes in memory; the caller closes the fd."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def unmade(kind: type[T]) -> T:
    """An instance that was never initialized: all that is left to those who make one by hand."""
    return kind.__new__(kind)


def two_regions() -> GuestMemory:
    """`SIZE` bytes from GUEST on, in two regions of one file, the second half first."""
    half = SIZE // 2
    fd = memfd(SIZE)
    try:
        return GuestMemory(
            [
                Region(fd, guest_addr=GUEST, user_addr=USER, size=half, offset=half),
                Region(fd, guest_addr=SEAM, user_addr=USER + 4 * SIZE, size=half),
            ]
        )
    finally:
        os.close(fd)


def device_half(
    driver: SplitDriver | PackedDriver,
    memory: GuestMemory,
    *,
    features: int = BOTH,
    base: int | None = None,
    inflight: InflightQueue | None = None,
) -> Ring:
    """The device's end of the driver's ring."""
    form = ring_format(features)
    desc, avail, used = form.footprint(driver.size)
    return form(
        driver.size,
        memory.guest(driver.desc_addr, desc),
        memory.guest(driver.avail_addr, avail),
        memory.guest(driver.used_addr, used),
        memory,
        features=features,
        base=driver.base if base is None else base,
        inflight=inflight,
    )


class Machine:
    """A virtqueue at GUEST, seen by its driver and its device."""

    def __init__(self, size: int = 8, *, features: int = BOTH, base: int | None = None) -> None:
        self.memory = two_regions()
        place = {} if base is None else {"base": base}
        self.driver: Any = driver_format(features)(self.memory, GUEST, size, features=features, **place)
        self.ring = device_half(self.driver, self.memory, features=features)

    def close(self) -> None:
        """Lets go of the memory: a fixture's value outlives the test's check for what it left mapped."""
        del self.memory, self.driver, self.ring

    def chain(self, buffers: Buffers, *, indirect: int | None = None) -> Chain:
        """Adds a chain and pops it."""
        self.driver.add(buffers, indirect=indirect)
        return self.pop()

    def pop(self) -> Chain:
        """Pops a chain, which must be there."""
        chain = self.ring.pop()
        assert chain is not None
        return chain

    def offer(self, *descriptors: tuple[int, int, int, int], head: int = 0) -> None:
        """Writes raw `(addr, length, flags, next)` descriptors from 0 on and publishes `head`."""
        for i, descriptor in enumerate(descriptors):
            self.driver.descriptor(i, *descriptor)
        self.driver.offer(head)
        self.driver.publish()

    def table(self, addr: int, *descriptors: tuple[int, int, int, int]) -> None:
        """Writes raw descriptors as an indirect table."""
        packed = b"".join(
            address.to_bytes(8, "little")
            + length.to_bytes(4, "little")
            + flags.to_bytes(2, "little")
            + following.to_bytes(2, "little")
            for address, length, flags, following in descriptors
        )
        self.memory.write(addr, packed)
