"""Packed rings in a real guest, in all devices at once."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.guest.backend import Backend, EventSocket
from tests.guest.guest import Guest
from tests.guest.machine import vhost_user_options
from tests.guest.test_blk import MIB, MIXED, Machine, interrupt_the_program, kill_the_program

pytestmark = pytest.mark.guest

RING_PACKED = 34
KEYBOARD = "vhostd virtual keyboard"
EV_SYN, EV_KEY, KEY_A = 0, 1, 30
SYN = [EV_SYN, 0, 0]
DEVICE_IDS = {"2": "disk", "4": "rng", "16": "gpu", "18": "input"}


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("packed")
    with ExitStack() as stack:
        others = {
            "rng": Backend("vhost-user-rng", folder),
            "input": Backend("vhost-user-input", folder, f"--event-socket={folder / 'events'}"),
            "gpu": Backend("vhost-user-gpu", folder),
        }
        options = []
        for name, backend in others.items():
            stack.enter_context(backend)
            device = "vhost-user-gpu-pci" if name == "gpu" else f"vhost-user-{name}-pci"
            options += vhost_user_options(f"{device},packed=on", backend.path, name)
        yield Machine(folder, stack, ",packed=on", options)


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
    before = the_machine.complaints()
    yield the_machine
    assert [line for line in the_machine.complaints() if line not in before] == []


def test_all_rings_are_packed(machine: Machine) -> None:
    found = machine.shell(
        "cd /sys/bus/virtio/devices; "
        "for each in *; do echo $(($(cat $each/device))) $(cat $each/features); done"
    )
    bits = dict(line.split() for line in found.splitlines())
    ours = {DEVICE_IDS[kind]: bits[kind][RING_PACKED] for kind in bits if kind in DEVICE_IDS}
    assert ours == dict.fromkeys(DEVICE_IDS.values(), "1")


def test_a_disk_under_load_on_all_queues(machine: Machine) -> None:
    machine.finish_fio(machine.start_fio(*MIXED, "--size=24M"))
    digest = machine.fill(32 * MIB, 32 * MIB)
    assert machine.file_digest(32 * MIB, 32 * MIB) == digest


def test_the_disk_s_program_may_be_replaced(machine: Machine) -> None:
    interrupt_the_program(machine, signal.SIGTERM)


def test_the_disk_s_program_may_be_killed(machine: Machine) -> None:
    kill_the_program(machine)


def test_stop_and_continue(machine: Machine) -> None:
    reads, writes = machine.requests()
    fio = machine.start_fio("--rw=randwrite", "--bs=4k", "--size=8M", "--offset_increment=8M")
    for done in range(1000, 5000, 1000):
        machine.wait_requests(reads, writes + done)
        machine.guest.qmp.execute("stop")
        machine.guest.qmp.execute("cont")
    machine.finish_fio(fio)


def test_random_bytes(machine: Machine) -> None:
    samples = {machine.guest.call("hwrng", count=4096)["data"] for _ in range(4)}
    assert len(samples) == 4


def test_events(machine: Machine) -> None:
    """Thousands, so that the ring goes round often."""
    strokes = [event for _ in range(500) for event in ([EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN)]
    machine.guest.call("record", device=KEYBOARD)
    with closing(EventSocket(machine.directory / "events")) as events:
        for start in range(0, len(strokes), 40):  # what Linux's reader has room for
            sent = strokes[start : start + 40]
            events.send(sent)
            assert machine.guest.call("wait_events", device=KEYBOARD, count=len(sent)) == sent
    machine.guest.call("stop_recording", device=KEYBOARD)


def test_the_guest_may_restart(machine: Machine) -> None:
    digest = machine.fill(0, 4 * MIB)
    Guest.reboot(machine.guest)
    assert machine.digest(0, 4 * MIB) == digest
    test_random_bytes(machine)
