"""QEMU as the front-end that takes a device's state away, and brings it to another program.

QEMU does so for a file system and for a network only, and no program here is one. But it asks no back-end
what it is. So here a disk, a display and a keyboard are behind the file system's PCI device. No guest runs.
"""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.jsonlines import JsonLines
from tests.guest.machine import QEMU, shared_memory, vhost_user_options
from tests.guest.qmp import Qmp

pytestmark = pytest.mark.guest

FILE_SYSTEM = "vhost-user-fs-pci,tag=none"
PATIENCE = 60.0


class Machine:
    """A QEMU that is stopped, or waits for another one's state in the file `incoming`."""

    def __init__(self, device: Backend, log: Path, *, waits: bool = False) -> None:
        ours, theirs = socket.socketpair()
        self.qmp = Qmp(JsonLines(ours))
        self._log = log
        monitor = f"socket,id=qmp,fd={theirs.fileno()}"
        with theirs, log.open("wb") as errors:
            self._process = subprocess.Popen(
                [
                    *(QEMU, "-machine", "q35,sata=off,accel=tcg", "-m", "64M", *shared_memory("64M"), "-S"),
                    *("-nodefaults", "-display", "none", "-chardev", monitor),
                    *("-mon", "chardev=qmp,mode=control"),
                    *vhost_user_options(FILE_SYSTEM, device.path, "device"),
                    *(["-incoming", "defer"] if waits else []),
                ],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=[theirs.fileno()],
            )
        self.qmp.negotiate()
        self.qmp.execute(
            "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.qmp.close()

    def save(self, file: Path) -> None:
        """Has everything saved to a file."""
        self.qmp.execute("migrate", {"uri": f"file:{file}"})
        self.qmp.wait_event("MIGRATION", PATIENCE, status="completed")

    def load(self, file: Path) -> None:
        """Goes on with what was saved."""
        self.qmp.execute("migrate-incoming", {"uri": f"file:{file}"})
        self.qmp.wait_event("MIGRATION", PATIENCE, status="completed")

    def refuses(self, file: Path) -> str:
        """Cannot go on with what was saved; what QEMU says of that."""
        self.qmp.execute("migrate-incoming", {"uri": f"file:{file}"})
        self._process.wait(PATIENCE)
        return self._log.read_text()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[list[Backend]]:
    """Disks of one, one and two megabytes."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Backend("vhost-user-blk", tmp_path, f"--ram={size}M", "--num-queues=2", name=f"disk{number}")
            )
            for number, size in enumerate((1, 1, 2))
        ]


def test_a_disk_s_state_goes_from_one_qemu_to_another(tmp_path: Path, disks: list[Backend]) -> None:
    file = tmp_path / "state"
    with closing(Machine(disks[0], tmp_path / "source")) as source:
        source.save(file)
    assert "the device's state was saved: 33 bytes" in disks[0].log()
    with closing(Machine(disks[1], tmp_path / "target", waits=True)) as target:
        target.load(file)
    assert "the device's state was loaded: 33 bytes" in disks[1].log()


def test_qemu_hears_that_a_state_was_refused(tmp_path: Path, disks: list[Backend]) -> None:
    file = tmp_path / "state"
    with closing(Machine(disks[2], tmp_path / "source")) as source:
        source.save(file)
    with closing(Machine(disks[1], tmp_path / "target", waits=True)) as target:
        assert "failed to process its internal state" in target.refuses(file)
    assert "it is of a disk of 2097152 bytes, and this one has 1048576" in disks[1].log()


@pytest.mark.parametrize(
    ("program", "options"), [("vhost-user-gpu", []), ("vhost-user-input", ["--event-socket={}/{}.keys"])]
)
def test_other_devices(program: str, options: list[str], tmp_path: Path) -> None:
    file = tmp_path / "state"
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(
                Backend(program, tmp_path, *(each.format(tmp_path, name) for each in options), name=name)
            )
            for name in ("here", "there")
        )
        with closing(Machine(here, tmp_path / "source")) as source:
            source.save(file)
        with closing(Machine(there, tmp_path / "target", waits=True)) as target:
            target.load(file)
        assert "the device's state was loaded" in there.log()


def test_a_device_of_another_kind(tmp_path: Path, disks: list[Backend]) -> None:
    file = tmp_path / "state"
    with closing(Machine(disks[0], tmp_path / "source")) as source:
        source.save(file)
    with Backend("vhost-user-gpu", tmp_path) as gpu:
        with closing(Machine(gpu, tmp_path / "target", waits=True)) as target:
            assert target.refuses(file)
        assert "it is of a device of type BLOCK, not GPU" in gpu.log()
