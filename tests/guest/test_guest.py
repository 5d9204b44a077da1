"""The guest machinery with QEMU's own devices: what every other guest test builds on."""

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.guest.guest import CommandFailed, Guest, GuestProblem
from tests.guest.machine import CHECKOUT
from tests.guest.qmp import QmpError

KEYBOARD = "QEMU Virtio Keyboard"
MOUSE = "QEMU Virtio Mouse"
pytestmark = pytest.mark.guest

EV_SYN, EV_KEY, EV_ABS, EV_LED = 0x00, 0x01, 0x03, 0x11
KEY_A, ABS_X, LED_CAPSL = 30, 0, 1
BOOT_ID = "/proc/sys/kernel/random/boot_id"
SYN = [EV_SYN, 0, 0]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    with Guest("virtio-keyboard-pci,id=keyboard,serial=1234", "virtio-rng-pci") as guest:
        yield guest


def press(guest: Guest, key: str) -> None:
    """Presses and releases a key of QEMU's keyboard."""
    guest.qmp.execute("send-key", {"keys": [{"type": "qcode", "data": key}]})


def test_only_the_tested_devices_are_there(guest: Guest) -> None:
    (keyboard,) = guest.call("input_devices")
    assert keyboard["name"] == KEYBOARD
    assert keyboard["uniq"] == "1234"
    assert (keyboard["bustype"], keyboard["vendor"], keyboard["product"]) == (6, 0x0627, 1)
    assert KEY_A in keyboard["events"][EV_KEY]
    assert keyboard["absinfo"] == {}


def test_key_press_arrives(guest: Guest) -> None:
    guest.call("record", device=KEYBOARD)
    press(guest, "a")
    events = guest.call("wait_events", device=KEYBOARD, count=4)
    assert events == [[EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN]
    assert guest.call("stop_recording", device=KEYBOARD) == []


def test_wait_ends_at_its_deadline_and_tells_what_came(guest: Guest) -> None:
    guest.call("record", device=KEYBOARD)
    with pytest.raises(CommandFailed, match="waited in vain for 1 events"):
        guest.call("wait_events", device=KEYBOARD, count=1, timeout=0.1)
    guest.call("stop_recording", device=KEYBOARD)


def test_grab(guest: Guest) -> None:
    guest.call("record", device=KEYBOARD)
    assert not guest.call("is_grabbed", device=KEYBOARD)
    guest.call("grab", device=KEYBOARD)
    assert guest.call("is_grabbed", device=KEYBOARD)
    guest.call("ungrab", device=KEYBOARD)
    assert not guest.call("is_grabbed", device=KEYBOARD)
    guest.call("stop_recording", device=KEYBOARD)


def test_led(guest: Guest) -> None:
    guest.call("write_events", device=KEYBOARD, events=[[EV_LED, LED_CAPSL, 1], SYN])
    assert guest.call("input_state", device=KEYBOARD)["leds"] == [LED_CAPSL]
    guest.call("write_events", device=KEYBOARD, events=[[EV_LED, LED_CAPSL, 0], SYN])


def test_repeat(guest: Guest) -> None:
    assert guest.call("repeat", device=KEYBOARD, delay=400, rate=50) == [400, 50]


def test_uinput(guest: Guest) -> None:
    name = "a keyboard made in the guest"
    axes = {ABS_X: {"value": 1, "min": -5, "max": 500, "fuzz": 2, "flat": 3, "resolution": 4}}
    events = {EV_KEY: [KEY_A], EV_ABS: [ABS_X], EV_LED: [LED_CAPSL]}
    description = {"name": name, "events": events, "absinfo": axes}
    created = guest.call("uinput_create", description=description)
    assert created["absinfo"] == axes
    assert created["events"] == {EV_SYN: [EV_SYN, *events], **events}

    guest.call("record", device=name)
    guest.call("uinput_emit", name=name, events=[[EV_KEY, KEY_A, 1], SYN])
    assert guest.call("wait_events", device=name, count=2) == [[EV_KEY, KEY_A, 1], SYN]
    guest.call("write_events", device=name, events=[[EV_LED, LED_CAPSL, 1], SYN])
    assert [EV_LED, LED_CAPSL, 1] in guest.call("uinput_wait_events", name=name, count=1)

    guest.call("uinput_destroy", name=name)
    guest.call("wait_input_device", name=name, present=False)
    with pytest.raises(CommandFailed, match="the device went away"):
        guest.call("wait_events", device=name, count=100)
    guest.call("stop_recording", device=name)


def test_hardware_random_numbers(guest: Guest) -> None:
    assert guest.call("rng_current").startswith("virtio_rng")
    sample = guest.call("hwrng", count=64)
    assert len(bytes.fromhex(sample["data"])) == 64
    assert len(set(bytes.fromhex(sample["data"]))) > 16


def test_programs(guest: Guest) -> None:
    assert guest.call("run", argv=["uname", "-s"]) == {"status": 0, "output": "Linux\n"}
    pid = guest.call("start", argv=["sh", "-c", "echo up; exec sleep 1000"])
    assert guest.call("wait_output", pid=pid, text="up") == "up\n"
    guest.call("signal", pid=pid, name="SIGTERM")
    assert guest.call("finish", pid=pid) == {"status": -15, "output": "up\n"}
    with pytest.raises(CommandFailed, match="the end of sleep"):
        guest.call("run", argv=["sleep", "1000"], timeout=0.1)


def test_files_and_kernel_log(guest: Guest) -> None:
    assert "virtio" in guest.call("read_file", path="/proc/modules")
    assert any("Linux version" in line for line in guest.call("kernel_log"))


def test_unknown_command(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match="no_such_command"):
        guest.call("no_such_command")


def test_hotplug_and_unplug(guest: Guest) -> None:
    for _ in range(2):
        guest.plug("virtio-mouse-pci", "mouse")
        assert guest.call("wait_input_device", name=MOUSE)["name"] == MOUSE
        guest.unplug("mouse")
        guest.call("wait_input_device", name=MOUSE, present=False)


def test_refused_plug_leaves_the_slot_free(guest: Guest) -> None:
    for _ in range(10):
        with pytest.raises(QmpError, match="no-such-driver"):
            guest.plug("no-such-driver", "nothing")


@pytest.mark.parametrize("restart", [Guest.reboot, Guest.reset])
def test_restart(guest: Guest, restart: Callable[[Guest], None]) -> None:
    before = guest.call("read_file", path=BOOT_ID)
    restart(guest)
    assert guest.call("read_file", path=BOOT_ID) != before
    guest.call("record", device=KEYBOARD)
    press(guest, "a")
    assert guest.call("wait_events", device=KEYBOARD, count=4)[0] == [EV_KEY, KEY_A, 1]


def test_failed_start_explains_itself_and_leaves_nothing() -> None:
    guest = Guest("no-such-device")
    with pytest.raises(GuestProblem, match="'no-such-device' is not a valid device model name"):
        guest.start()
    guest.close()


def test_guest_does_not_outlive_its_test(tmp_path: Path) -> None:
    script = (
        "import os; from tests.guest.guest import Guest; g = Guest(); g.start(); print(g.pid); os._exit(0)"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    test = subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, check=True
    )
    with suppress(ProcessLookupError):  # which it is when QEMU has ended already
        qemu = os.pidfd_open(int(test.stdout))
        ended, _, _ = select.select([qemu], [], [], 60)
        os.close(qemu)
        assert ended


def test_panic_ends_the_wait_with_the_console(guest: Guest) -> None:
    """Runs last: the guest does not survive it."""
    with pytest.raises(GuestProblem, match="Kernel panic"):
        guest.call("run", argv=["sh", "-c", "echo c > /proc/sysrq-trigger"])
