"""The driver half: what it writes is what the specification draws, and nonsense can be written too."""

import struct

import pytest

from tests.ring.machine import DATA, EVENT_IDX, GUEST, INDIRECT_DESC, SIZE, Machine, two_regions
from vhostd.errors import BadDescriptor
from vhostd.ring.driver import INDIRECT, NEXT, WRITE, SplitDriver


def descriptor(machine: Machine, addr: int) -> tuple[int, ...]:
    return struct.unpack("<QIHH", machine.memory.read(addr, 16))


def avail(machine: Machine, size: int) -> tuple[int, ...]:
    return struct.unpack(f"<{3 + size}H", machine.memory.read(machine.driver.avail_addr, 6 + 2 * size))


def test_layout() -> None:
    memory = two_regions()
    memory.write(GUEST, b"\xff" * 256)
    driver = SplitDriver(memory, GUEST + 5, 2)
    assert (driver.desc_addr, driver.avail_addr, driver.used_addr) == (GUEST + 16, GUEST + 48, GUEST + 60)
    assert driver.footprint == 60 + 4 + 16 + 2 - 5
    assert memory.read(GUEST + 5, driver.footprint) == bytes(driver.footprint)
    assert memory.read(GUEST + 5 + driver.footprint, 1) == b"\xff"
    assert (driver.size, driver.free, driver.avail_index, driver.used_index) == (2, 2, 0, 0)


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_size_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"queue size {size}"):
        SplitDriver(two_regions(), GUEST, size)


def test_no_room() -> None:
    with pytest.raises(BadDescriptor):
        SplitDriver(two_regions(), GUEST + SIZE - 64, 8)


def test_direct_chain() -> None:
    machine = Machine(4)
    head = machine.driver.add([(DATA, 3, False), (DATA + 8, 5, True)])
    assert head == 0
    assert descriptor(machine, GUEST) == (DATA, 3, NEXT, 1)
    assert descriptor(machine, GUEST + 16) == (DATA + 8, 5, WRITE, 0)
    assert avail(machine, 4) == (0, 1, 0, 0, 0, 0, 0)
    assert (machine.driver.free, machine.driver.avail_index) == (2, 1)


def test_indirect_chain() -> None:
    machine = Machine(4)
    machine.driver.add([(DATA, 3, False), (DATA + 8, 5, True)], indirect=DATA + 0x100)
    assert descriptor(machine, GUEST) == (DATA + 0x100, 32, INDIRECT, 0)
    assert descriptor(machine, DATA + 0x100) == (DATA, 3, NEXT, 1)
    assert descriptor(machine, DATA + 0x110) == (DATA + 8, 5, WRITE, 0)
    assert machine.driver.free == 3


def test_descriptors_are_finite_and_come_back() -> None:
    machine = Machine(4)
    first = machine.driver.add([(DATA, 1, False)] * 3)
    machine.driver.add([(DATA, 1, False)])
    with pytest.raises(IndexError, match="1 descriptors needed, 0 free"):
        machine.driver.add([(DATA, 1, False)])
    with pytest.raises(ValueError, match="needs a buffer"):
        machine.driver.add([])
    machine.ring.push(machine.pop())
    assert machine.driver.used() == (first, 0)
    assert machine.driver.free == 3
    assert machine.driver.add([(DATA, 1, False)] * 3) == first
    assert machine.pop().readable == 1
    assert machine.pop().readable == 3


def test_head_that_was_never_added() -> None:
    machine = Machine(4)
    used = struct.pack("<HHIIII", 0, 2, 3, 7, 0xFFFFFFFF, 9)
    machine.memory.write(machine.driver.used_addr, used)
    assert machine.driver.used() == (3, 7)
    assert machine.driver.used() == (0xFFFFFFFF, 9)
    assert machine.driver.used() is None
    assert machine.driver.free == 4


def test_raw_access() -> None:
    machine = Machine(4, base=65535)
    driver = machine.driver
    driver.descriptor(5, 2**64 + 1, 2**32 + 2, 2**16 + 3, 2**16 + 4)
    assert descriptor(machine, GUEST + 16) == (1, 2, 3, 4)
    driver.offer(70000)
    driver.offer(2)
    assert avail(machine, 4)[1:6] == (65535, 2, 0, 0, 70000 - 65536)
    driver.publish(2)
    assert (driver.avail_index, avail(machine, 4)[1]) == (1, 1)
    driver.offer(3)
    assert avail(machine, 4)[3] == 3
    driver.set_avail_index(40000)
    assert (driver.avail_index, avail(machine, 4)[1]) == (40000, 40000)
    driver.set_used_event(77)
    assert avail(machine, 4)[6] == 77


def test_wishes_for_kicks_are_heard() -> None:
    machine = Machine(4, features=INDIRECT_DESC)
    assert machine.driver.used_flags == 0
    machine.driver.add([(DATA, 1, False)])
    assert machine.driver.must_kick()
    machine = Machine(4, features=EVENT_IDX)
    machine.ring.push(machine.chain([(DATA, 1, False)]))
    machine.ring.arm()
    assert machine.driver.avail_event == 1
    machine.driver.publish(70000)  # more than an index can count: ask
    assert machine.driver.must_kick()
