"""A guest that `vhostctl run` has started: a disk, a display, a keyboard, random numbers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ctl.machine.launched import Watched, children, command_line
from tests.guest.guest import Guest
from tests.guest.screen import Screen
from tests.programs import PATIENCE, connect, executable

pytestmark = pytest.mark.guest

SIZE = 64 << 20
KEYBOARD = "vhostd virtual keyboard"
EV_KEY, KEY_A, SYN = 1, 30, [0, 0, 0]
READ = "dd if=/dev/vda of=/dev/null bs=1M iflag=direct 2>/dev/null"
READ_AGAIN_AND_AGAIN = f"while {READ}; do echo read; done; echo broken"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def guest(folder: Path) -> Iterator[Guest]:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.write(b"the first block".ljust(512, b"."))
        file.truncate(SIZE)
    devices = ("--disk", str(image), "--display", f"--keyboard=event-socket={folder}/keys", "--rng")
    with Guest(launcher=[executable("vhostctl"), "run", *devices, "--"]) as guest:
        yield guest


def test_the_disk(guest: Guest) -> None:
    guest.call("wait_disk", name="vda", attributes={"size": str(SIZE // 512)})
    assert guest.call("run", argv=["head", "-c", "15", "/dev/vda"])["output"] == "the first block"


def test_the_display(guest: Guest) -> None:
    guest.call("show", width=800, height=600, seed=1, display=0)
    Screen(guest.qmp, "vhostctl-display0").wait_seed(800, 600, 1)
    guest.call("release")


def test_the_keyboard(guest: Guest, folder: Path) -> None:
    guest.call("record", device=KEYBOARD)
    with connect(folder / "keys") as client:
        client.sendall(b"E: 0.0 0001 001e 1\nE: 0.0 0000 0000 0\nE: 0.0 0001 001e 0\nE: 0.0 0000 0000 0\n")
        events = guest.call("wait_events", device=KEYBOARD, count=4)
    assert events == [[EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN]


def test_random_numbers(guest: Guest) -> None:
    assert guest.call("rng_current").startswith("virtio_rng")
    assert len(guest.call("hwrng", count=64)["data"]) == 128


def test_the_disk_comes_back_while_the_guest_reads(guest: Guest) -> None:
    pid = guest.call("start", argv=["sh", "-c", READ_AGAIN_AND_AGAIN])
    for _ in range(2):
        seen = guest.call("wait_output", pid=pid, text="read\n").count("read")
        os.kill(program(guest, "vhost-user-blk"), signal.SIGKILL)
        # One of them may have ended before the signal.
        guest.call("wait_output", pid=pid, text="read\n" * (seen + 2), timeout=60)
    guest.call("signal", pid=pid, name="SIGKILL")
    assert "broken" not in guest.call("finish", pid=pid)["output"]


def test_all_ends_with_qemu(guest: Guest) -> None:
    """Runs last."""
    running = Watched(children(guest.pid))
    guest.close()
    assert running.wait(PATIENCE)


def program(guest: Guest, name: str) -> int:
    """A program that serves the guest."""
    return next(pid for pid in children(guest.pid) if f"/{name} --fd=" in command_line(pid))
