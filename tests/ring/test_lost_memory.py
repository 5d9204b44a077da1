"""Memory whose file shrinks: MemoryLost and zeros, never the end of the process or the driver's fault."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.ring.machine import DATA, Machine, device_half, memfd
from vhostd import ring
from vhostd.errors import BadRequest, MemoryLost
from vhostd.ring import Chain, GuestMemory, Region
from vhostd.ring.driver import SplitDriver

PAGE = 4096
HUGE = 2 << 20


class Shrinking:
    """A ring in the first page of a file that is about to shrink."""

    def __init__(self) -> None:
        self.fd = memfd(16 * PAGE)
        self.memory = GuestMemory([Region(self.fd, guest_addr=0, user_addr=0, size=16 * PAGE)])
        self.driver = SplitDriver(self.memory, 0, 8)
        self.ring = device_half(self.driver, self.memory)

    def close(self) -> None:
        """Lets go of the file: a fixture's value outlives the test's check for what it left mapped."""
        os.close(self.fd)
        del self.memory, self.driver, self.ring

    def shrink(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def chain(self) -> Chain:
        """A chain whose streams both run across the end of the eighth page."""
        self.driver.add([(8 * PAGE - 16, 2 * PAGE, False), (8 * PAGE - 16, 2 * PAGE, True)])
        return self.pop()

    def pop(self) -> Chain:
        chain = self.ring.pop()
        assert chain is not None
        return chain


@pytest.fixture
def machine() -> Iterator[Shrinking]:
    machine = Shrinking()
    yield machine
    machine.close()


def preadv(chain: Chain) -> None:
    with open("/dev/zero", "rb") as file:
        chain.preadv(file.fileno(), 0, chain.writable)


def sendmsg(chain: Chain) -> None:
    left, right = socket.socketpair()
    with left, right:
        chain.sendmsg(left.fileno(), chain.readable)


OPERATIONS: dict[str, Callable[[Shrinking, Chain], object]] = {
    "read": lambda _, chain: chain.read(chain.readable),
    "write": lambda _, chain: chain.write(bytes(chain.writable)),
    "preadv": lambda _, chain: preadv(chain),
    "sendmsg": lambda _, chain: sendmsg(chain),
    "memory.read": lambda machine, _: machine.memory.read(8 * PAGE, 1),
    "memory.write": lambda machine, _: machine.memory.write(8 * PAGE, b"x"),
}


def twice(call: Callable[[], object]) -> None:
    call()
    call()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_operation(machine: Shrinking, operation: str) -> None:
    chain = machine.chain()
    machine.shrink(8 * PAGE)
    assert not machine.memory.lost
    with pytest.raises(MemoryLost, match="the file behind it shrank"):
        twice(lambda: OPERATIONS[operation](machine, chain))  # a system call may move a part of it first
    assert machine.memory.lost
    for again in OPERATIONS.values():
        with pytest.raises((MemoryLost, BadRequest)):
            again(machine, chain)
    with pytest.raises(MemoryLost):
        machine.ring.push(chain)
    assert machine.ring.in_flight == 0
    with pytest.raises(MemoryLost):
        machine.ring.pop()


def test_the_ring_itself(machine: Shrinking) -> None:
    machine.driver.add([(8 * PAGE, 1, False)])
    machine.shrink(0)
    machine.ring.disarm()
    with pytest.raises(MemoryLost):
        machine.ring.arm()
    assert machine.ring.must_call() is False
    with pytest.raises(MemoryLost):
        machine.ring.pop()


def test_zeros_are_not_blamed_on_the_driver(machine: Shrinking) -> None:
    for _ in range(2):
        machine.ring.push(machine.chain())
        machine.driver.used()
    machine.shrink(0)
    with pytest.raises(MemoryLost, match="avail index went from 2 to 0"):
        machine.ring.pop()


def test_other_memory_is_not_lost(machine: Shrinking) -> None:
    other = Machine()
    kept = GuestMemory(machine.memory.regions)
    machine.shrink(0)
    with memoryview(machine.memory.guest(5 * PAGE + 3, 1)) as view:
        assert view[0] == 0
    assert machine.memory.lost
    assert kept.lost  # another map of the same region
    assert not other.memory.lost
    assert other.chain([(DATA, 1, False)]).read(1) == b"\0"


def test_a_place_in_the_table_forgets() -> None:
    """A region that takes the place of a lost one in the table of guarded mappings is not lost."""
    machine = Shrinking()
    machine.shrink(0)
    machine.driver.arm()
    assert machine.memory.lost
    fd = memfd(PAGE)
    whole = [GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=PAGE)]) for _ in range(3)]
    machine.close()
    whole.append(GuestMemory([Region(fd, guest_addr=0, user_addr=0, size=PAGE)]))
    os.close(fd)
    assert [memory.lost for memory in whole] == [False] * 4


def test_huge_pages() -> None:
    """A whole huge page is replaced: a smaller hole could not be mapped over."""
    try:
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    except OSError as error:
        pytest.skip(f"no huge pages: {error}")
    os.ftruncate(fd, 2 * HUGE)
    region = Region(fd, guest_addr=0, user_addr=0, size=HUGE - PAGE, offset=HUGE + PAGE)
    memory = GuestMemory([region])
    os.ftruncate(fd, 0)
    os.close(fd)
    with pytest.raises(MemoryLost):
        memory.read(HUGE // 2 + 5, 1)
    with pytest.raises(MemoryLost):
        memory.read(0, HUGE - PAGE)
    del region, memory
    assert "memfd:huge" not in Path("/proc/self/maps").read_text()


FOREIGN = """
import faulthandler, mmap, os, signal, sys
from vhostd.ring import Region
def memfd():
    fd = os.memfd_create("x")
    os.ftruncate(fd, 4096)
    return fd
def region():
    return Region(memfd(), guest_addr=0, user_addr=0, size=4096)
if "before" in sys.argv:
    faulthandler.enable()
one = region()
if "after" in sys.argv:
    faulthandler.enable()
other = region()
if "kill" in sys.argv:
    os.kill(os.getpid(), signal.SIGBUS)
fd = memfd()
foreign = mmap.mmap(fd, 4096)
os.ftruncate(fd, 0)
print(foreign[0])
"""


@pytest.mark.parametrize("fault", ["touch", "kill"])
@pytest.mark.parametrize("handler", ["none", "before", "after"])
def test_other_bus_errors_end_the_process(fault: str, handler: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(ring.__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    child = subprocess.run(
        [sys.executable, "-c", FOREIGN, fault, handler],
        env=environment,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert child.returncode != 0
    assert child.stdout == b""
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which reports it in its own way
        assert child.returncode == -signal.SIGBUS
        assert (b"Fatal Python error: Bus error" in child.stderr) == (handler != "none")
