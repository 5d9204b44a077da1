"""A virtio-gpu device driven by hand, from inside the guest, in place of Linux's driver.

Linux only ever uses a small part of what the device offers. Here any command can be sent, one at a
time. This is a virtio 1.2 driver for PCI (section 4.1) with one split ring (section 2.7), as small as
can be: no interrupts, and the used ring is read until the answer is there.
"""

import ctypes
import mmap
import os
import struct
import time
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
PCI_DRIVER = Path("/sys/bus/pci/drivers/virtio-pci")
PCI_ID = ("0x1af4", "0x1050")  # virtio-gpu
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")

# PCI's config space.
COMMAND, MEMORY_AND_MASTER = 0x04, 0x06
CAPABILITIES = 0x34
VENDOR_CAPABILITY = 0x09
CAPABILITY = struct.Struct("<4B B3x 2I I")  # ..., type; BAR; offset, length; notify multiplier
COMMON, NOTIFY = 1, 2

# struct virtio_pci_common_cfg.
DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x08, 0x0C
STATUS = 0x14
QUEUE_SELECT, QUEUE_SIZE, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1C, 0x1E
QUEUE_ADDRESSES = 0x20  # descriptor table, available ring, used ring
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK = 1, 2, 4, 8
VERSION_1 = 1 << 32

CONTROL_QUEUE = 0
SIZE = 4
DESCRIPTOR = struct.Struct("<QIHH")
NEXT, WRITE = 1, 2
NO_INTERRUPT = 1

# What is where in our memory.
DESCRIPTORS, AVAILABLE, USED, REQUEST, RESPONSE, BACKING = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
ROOM = 0x1000  # for a request, and for a response


class HugePage(mmap.mmap):
    """Two MiB of memory in one piece, with an address that a device can use."""

    LENGTH = 2 << 20
    MAP_HUGETLB = 0x40000

    def __new__(cls) -> "HugePage":
        HUGE_PAGES.write_text("1")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | cls.MAP_HUGETLB
        return super().__new__(cls, -1, cls.LENGTH, flags=flags)

    def __init__(self) -> None:
        virtual = ctypes.addressof(ctypes.c_char.from_buffer(self))
        with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
            entry = os.pread(pagemap.fileno(), 8, virtual // mmap.PAGESIZE * 8)
        # Documentation/admin-guide/mm/pagemap.rst: bits 0-54 are the number of the page.
        self.address = (int.from_bytes(entry, "little") & (1 << 55) - 1) * mmap.PAGESIZE


class Registers:
    """A part of a BAR; every access has the register's own width, as devices demand."""

    def __init__(self, bar: mmap.mmap, offset: int) -> None:
        self._view = memoryview(bar)[offset:]

    def read16(self, offset: int) -> int:
        """A register of two bytes."""
        return self._view[offset : offset + 2].cast("H")[0]

    def read8(self, offset: int) -> int:
        """A register of one byte."""
        return self._view[offset]

    def write8(self, offset: int, value: int) -> None:
        """Sets a register of one byte."""
        self._view[offset] = value

    def write16(self, offset: int, value: int) -> None:
        """Sets a register of two bytes."""
        self._view[offset : offset + 2].cast("H")[0] = value

    def write32(self, offset: int, value: int) -> None:
        """Sets a register of four bytes."""
        self._view[offset : offset + 4].cast("I")[0] = value

    def write64(self, offset: int, value: int) -> None:
        """Sets a register of eight bytes, by halves (section 4.1.3.1)."""
        self.write32(offset, value & 0xFFFFFFFF)
        self.write32(offset + 4, value >> 32)


class RawGpu:
    """The device, taken away from Linux until `close`.

    `backing` is the address of `backing_size` bytes for pictures, `write` fills them.
    """

    def __init__(self) -> None:
        self._path = next(path for path in PCI_DEVICES.iterdir() if pci_id(path) == PCI_ID)
        (PCI_DRIVER / "unbind").write_text(self._path.name)
        (self._path / "enable").write_text("1")
        self._memory = HugePage()
        self.backing = self._memory.address + BACKING
        self.backing_size = self._memory.LENGTH - BACKING
        self._requests = 0
        self._find_registers()
        self._initialise()

    def write(self, data: bytes) -> None:
        """Writes to the start of the backing."""
        self._memory[BACKING : BACKING + len(data)] = data

    def request(self, command: bytes, deadline: float) -> bytes:
        """Sends a command and returns the response. Raises TimeoutError past `deadline` (time.monotonic)."""
        assert len(command) <= ROOM
        self._memory[REQUEST : REQUEST + len(command)] = command
        address = self._memory.address
        DESCRIPTOR.pack_into(self._memory, DESCRIPTORS, address + REQUEST, len(command), NEXT, 1)
        DESCRIPTOR.pack_into(self._memory, DESCRIPTORS + DESCRIPTOR.size, address + RESPONSE, ROOM, WRITE, 0)
        self._requests += 1
        self._set_index(AVAILABLE, self._requests)
        self._notify.write16(self._notify_offset, CONTROL_QUEUE)
        while self._index(USED) != self._requests & 0xFFFF:
            if time.monotonic() > deadline:
                raise TimeoutError("the device does not answer")
        return self._memory[RESPONSE : RESPONSE + self._used_length()]

    def close(self) -> None:
        """Resets the device and gives it back to Linux, which loads its driver again."""
        self._common.write8(STATUS, 0)
        (self._path / "enable").write_text("0")
        (PCI_DRIVER / "bind").write_text(self._path.name)

    def _find_registers(self) -> None:
        """Maps the registers that the device's PCI capabilities tell of."""
        with open(self._path / "config", "r+b", buffering=0) as config:
            space = config.read(256)
            config.seek(COMMAND)
            config.write(bytes([space[COMMAND] | MEMORY_AND_MASTER]))
        at = space[CAPABILITIES]
        while at:
            kind, following, _, purpose, bar, offset, _, multiplier = CAPABILITY.unpack_from(space, at)
            if kind == VENDOR_CAPABILITY and purpose == COMMON:
                self._common = Registers(self._bar(bar), offset)
            elif kind == VENDOR_CAPABILITY and purpose == NOTIFY:
                self._notify = Registers(self._bar(bar), offset)
                self._notify_multiplier = multiplier
            at = following

    def _bar(self, number: int) -> mmap.mmap:
        with open(self._path / f"resource{number}", "r+b") as file:
            return mmap.mmap(file.fileno(), 0)

    def _initialise(self) -> None:
        """Section 3.1.1, with the control queue only."""
        common = self._common
        common.write8(STATUS, 0)
        while common.read8(STATUS):
            pass
        common.write8(STATUS, ACKNOWLEDGE | DRIVER)
        for select in (0, 1):
            common.write32(DRIVER_FEATURE_SELECT, select)
            common.write32(DRIVER_FEATURE, VERSION_1 >> 32 * select & 0xFFFFFFFF)
        common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        assert common.read8(STATUS) & FEATURES_OK
        common.write16(QUEUE_SELECT, CONTROL_QUEUE)
        common.write16(QUEUE_SIZE, SIZE)
        for number, part in enumerate((DESCRIPTORS, AVAILABLE, USED)):
            common.write64(QUEUE_ADDRESSES + 8 * number, self._memory.address + part)
        self._notify_offset = common.read16(QUEUE_NOTIFY_OFF) * self._notify_multiplier
        struct.pack_into("<H", self._memory, AVAILABLE, NO_INTERRUPT)
        common.write16(QUEUE_ENABLE, 1)
        common.write8(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    # Both rings: flags, index, then the entries. Every entry of the available ring names descriptor 0.

    def _index(self, ring: int) -> int:
        return int(struct.unpack_from("<H", self._memory, ring + 2)[0])

    def _set_index(self, ring: int, value: int) -> None:
        struct.pack_into("<H", self._memory, ring + 2, value & 0xFFFF)

    def _used_length(self) -> int:
        entry = USED + 4 + 8 * ((self._requests - 1) % SIZE)
        return int(struct.unpack_from("<I", self._memory, entry + 4)[0])


def pci_id(device: Path) -> tuple[str, str]:
    """The vendor and the device."""
    return (device / "vendor").read_text().strip(), (device / "device").read_text().strip()
