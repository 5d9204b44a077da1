"""A guest moves from one QEMU to another, and back, while its disk's programs write to its memory."""

import hashlib
import random
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import cycle, islice
from pathlib import Path

import pytest

from tests.guest import kernel
from tests.guest.backend import Backend
from tests.guest.initramfs import initramfs
from tests.guest.jsonlines import JsonLines
from tests.guest.machine import (
    INFLIGHT_MIGRATION,
    QEMU,
    accelerator_options,
    disk_has,
    shared_memory,
    vhost_user_options,
)
from tests.guest.qmp import Qmp

pytestmark = pytest.mark.guest

READER, WRITER = (Path(__file__).with_name(name) for name in ("init_reader", "init_writer"))
OPTIONS = ("--share-rw", "--offer=default,pagefault")
MODULES = ("virtio_pci", "virtio_blk")
SIZE, WRITTEN = 8 << 20, 1 << 20  # bytes that the guest compares, and those behind them that it writes
MOVES = 4
BEFORE, AFTER = 2, 6  # rounds of the guest
BANDWIDTH = 30 << 20  # bytes in a second: a migration lasts for some rounds of the guest
LATE = 20 << 20  # bytes in a second that come beside those that are asked for
PATIENCE = 120.0
WAITED = re.compile("all memory has come; rings have waited for pages [1-9]")
# A page that the kernel zeroes before it is read into is dirty by the guest itself.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr init_on_alloc=0"


class Machine:
    """A QEMU with a disk, that runs a guest or waits for one to come to `incoming`."""

    def __init__(
        self,
        disk: Backend,
        properties: str,
        sum: str,
        log: Path,
        incoming: Path | None = None,
        init: Path = READER,
        capabilities: Sequence[str] = ("events",),
    ) -> None:
        qmp, qemu_qmp = socket.socketpair()
        serial, qemu_serial = socket.socketpair()
        serial.settimeout(PATIENCE)
        self.qmp = Qmp(JsonLines(qmp))
        self._serial = serial.makefile()
        serial.close()  # the file goes on
        monitor = f"socket,id=qmp,fd={qemu_qmp.fileno()}"
        console = f"socket,id=serial,fd={qemu_serial.fileno()}"
        with qemu_qmp, qemu_serial, log.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    *(QEMU, "-machine", "q35,sata=off,i8042=off", *accelerator_options(), "-m", "256M"),
                    *(*shared_memory("256M"), "-nodefaults", "-display", "none"),
                    *("-chardev", console, "-serial", "chardev:serial"),
                    *("-chardev", monitor, "-mon", "chardev=qmp,mode=control"),
                    *("-kernel", str(kernel.boot_image()), "-initrd", str(initramfs(init, MODULES))),
                    *("-append", f"{KERNEL_OPTIONS} expected={sum}"),
                    *vhost_user_options(f"vhost-user-blk-pci{properties}", disk.path, "disk"),
                    *(["-incoming", "defer"] if incoming else []),
                ],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[qemu_qmp.fileno(), qemu_serial.fileno()],
            )
        self.qmp.negotiate()
        states = [{"capability": name, "state": True} for name in capabilities]
        self.qmp.execute("migrate-set-capabilities", {"capabilities": states})
        if incoming:
            self.qmp.execute("migrate-incoming", {"uri": f"unix:{incoming}"})

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._serial.close()
        self.qmp.close()

    def rounds(self, count: int) -> list[str]:
        """What the guest says of its next rounds."""
        said = (line.strip() for line in self._serial)
        return list(islice((line for line in said if line.startswith(("right", "wrong"))), count))

    def move(self, place: Path) -> None:
        """Has the guest go to where another machine waits for it."""
        self.qmp.execute("migrate-set-parameters", {"max-bandwidth": BANDWIDTH})
        self.qmp.forget_events()  # of how the guest came here
        self.qmp.execute("migrate", {"uri": f"unix:{place}"})
        self.qmp.wait_event("MIGRATION", PATIENCE, status="completed")

    def run_elsewhere(self, place: Path) -> None:
        """As `move`, but the guest goes on there before its memory has come. `move_ends` waits for that."""
        self.qmp.execute(
            "migrate-set-parameters", {"max-bandwidth": BANDWIDTH, "max-postcopy-bandwidth": LATE}
        )
        self.qmp.execute("migrate", {"uri": f"unix:{place}"})
        self.qmp.wait_event("MIGRATION", PATIENCE, status="active")
        self.qmp.execute("migrate-start-postcopy")
        self.qmp.wait_event("MIGRATION", PATIENCE, status="postcopy-active")

    def move_ends(self) -> None:
        """Waits until all memory is there."""
        self.qmp.wait_event("MIGRATION", PATIENCE, status="completed")


@pytest.fixture
def content() -> bytes:
    return random.Random(4711).randbytes(SIZE)


@pytest.fixture(params=["", ",packed=on", f",{INFLIGHT_MIGRATION}=on"], ids=["split", "packed", "in flight"])
def properties(request: pytest.FixtureRequest) -> str:
    """Of the disk's device."""
    if INFLIGHT_MIGRATION in request.param and not disk_has(INFLIGHT_MIGRATION):
        pytest.skip("this QEMU moves no inflight area")
    return str(request.param)


@pytest.fixture
def disks(tmp_path: Path, content: bytes, properties: str) -> Iterator[list[Backend]]:
    """Two programs with the same image, as on two hosts."""
    image = tmp_path / "disk.img"
    image.write_bytes(content + bytes(WRITTEN))
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Backend("vhost-user-blk", tmp_path, f"--blk-file={image}", *OPTIONS, name=name)
            )
            for name in ("here", "there")
        ]


def test_no_page_is_lost(tmp_path: Path, disks: list[Backend], content: bytes, properties: str) -> None:
    """Requests are completed before the guest moves, or move along in the inflight area."""
    expected = hashlib.md5(content + bytes(WRITTEN), usedforsecurity=False).hexdigest()
    with ExitStack() as stack:
        machine = stack.enter_context(closing(Machine(disks[0], properties, expected, tmp_path / "qemu")))
        assert set(machine.rounds(BEFORE)) == {"right"}
        for number, disk in enumerate(islice(cycle(reversed(disks)), MOVES)):
            place = tmp_path / f"move{number}"
            target = stack.enter_context(
                closing(Machine(disk, properties, expected, tmp_path / f"qemu{number}", place))
            )
            machine.move(place)
            machine.close()
            assert target.rounds(AFTER) == ["right"] * AFTER
            machine = target


@pytest.mark.parametrize("properties", [""], indirect=True)
def test_a_guest_runs_before_its_memory_has_come(
    tmp_path: Path, disks: list[Backend], content: bytes, properties: str
) -> None:
    expected = hashlib.md5(content, usedforsecurity=False).hexdigest()
    capabilities, place = ("events", "postcopy-ram"), tmp_path / "move"
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(
                closing(
                    Machine(disk, properties, expected, tmp_path / f"{name}.qemu", to, WRITER, capabilities)
                )
            )
            for disk, name, to in zip(disks, ("here", "there"), (None, place), strict=True)
        )
        assert here.rounds(1) == ["right"]
        here.run_elsewhere(place)
        assert there.rounds(1) == ["right"]
        here.move_ends()
        assert there.rounds(1) == ["right"]
        assert WAITED.search(disks[1].log())
