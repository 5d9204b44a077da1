"""Programs that offer all they have, to a front-end that takes what it likes, behind `vhostctl trace`."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.machine import INFLIGHT_MIGRATION, disk_has, vhost_user_options
from tests.guest.screen import Screen
from tests.guest.test_blk import MIB, MIXED, QUEUES, SERIAL, Machine, interrupt_the_program, kill_the_program
from tests.guest.traced import Trace
from tests.programs import executable
from vhostd.vhost_user.messages import ProtocolFeature

pytestmark = pytest.mark.guest

OFFER = "--offer=all"
WIDTH, HEIGHT = 1024, 768
TYPES = {"vhost-user-blk": "block", "vhost-user-gpu": "gpu"}


class TracedMachine(Machine):
    """A disk, a display, and random numbers, all of them traced."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.traces: dict[str, Trace] = {}

        def front(path: Path) -> Path:
            trace = self.traces[path.stem] = Trace(path, TYPES.get(path.stem), stack)
            return trace.front

        options = []
        for name in ("rng", "gpu"):
            backend = stack.enter_context(Backend(f"vhost-user-{name}", folder, OFFER))
            options += vhost_user_options(f"vhost-user-{name}-pci", front(backend.path), name)
        more = f",{INFLIGHT_MIGRATION}=on" if disk_has(INFLIGHT_MIGRATION) else ""
        super().__init__(folder, stack, more, options, [OFFER, "--cache=direct"], front)


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedMachine]:
    with ExitStack() as stack:
        yield TracedMachine(tmp_path_factory.mktemp("offer"), stack)


@pytest.fixture
def machine(the_machine: TracedMachine) -> Iterator[TracedMachine]:
    before = the_machine.complaints()
    yield the_machine
    assert [line for line in the_machine.complaints() if line not in before] == []


def taken(machine: Machine) -> set[str]:
    """The protocol features that QEMU has taken for the disk."""
    found = re.findall(r"< SET_PROTOCOL_FEATURES value=(0x[0-9a-f]+|\d+)", machine.backend.log())
    return {
        name
        for name, bit in vars(ProtocolFeature).items()
        if isinstance(bit, int) and int(found[-1], 0) >> bit & 1
    }


def test_what_is_taken(machine: Machine) -> None:
    """QEMU takes in-band notifications as well, and passes fds all the same."""
    expected = {"MQ", "REPLY_ACK", "CONFIG", "BACKEND_REQ", "INFLIGHT_SHMFD", "INBAND_NOTIFICATIONS"}
    if disk_has(INFLIGHT_MIGRATION):  # 11.1
        expected |= {"GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES"}
    assert taken(machine) >= expected


def test_a_disk_under_load_on_all_queues(machine: Machine) -> None:
    machine.finish_fio(machine.start_fio(*MIXED, "--size=24M"))
    digest = machine.fill(32 * MIB, 32 * MIB)
    assert machine.file_digest(32 * MIB, 32 * MIB) == digest


def test_stop_and_continue(machine: Machine) -> None:
    """Large requests are in flight then, and may wait in the inflight area meanwhile."""
    reads, writes = machine.requests()
    fio = machine.start_fio(
        "--rw=randwrite", "--bs=256k", "--size=16M", "--offset_increment=16M", "--loops=4"
    )
    for done in range(20, 220, 10):
        machine.wait_requests(reads, writes + done)
        machine.guest.qmp.execute("stop")
        machine.guest.qmp.execute("cont")
    machine.finish_fio(fio)


def test_the_disk_s_program_may_be_replaced(machine: Machine) -> None:
    interrupt_the_program(machine, signal.SIGTERM)


def test_the_disk_s_program_may_be_killed(machine: Machine) -> None:
    kill_the_program(machine)


def test_random_bytes(machine: Machine) -> None:
    samples = {machine.guest.call("hwrng", count=4096)["data"] for _ in range(4)}
    assert len(samples) == 4


def test_the_disk_was_traced(machine: TracedMachine) -> None:
    """The last front-end's messages have the same answers of another program, but for what the rings tell."""
    trace = machine.traces["vhost-user-blk"]
    lines = trace.until("<- GET_CONFIG ")
    assert re.search(r"-> SET_VRING_KICK +index=3 \[eventfd\]", lines)
    assert re.search(r"-> ADD_MEM_REG .* \[memfd 512 MiB\]|SET_MEM_TABLE .* \[memfd 512 MiB\]", lines)
    assert re.search(r"-> SET_INFLIGHT_FD .* \[memfd ", lines)
    image = machine.directory / "another"
    with image.open("wb") as file:
        file.truncate(machine.image.stat().st_size)
    program = f"{executable('vhost-user-blk')} --socket-path={{socket}} --blk-file={image} --serial={SERIAL}"
    program += f" --num-queues={QUEUES} --physical-block-size=4096 --cache=direct {OFFER}"
    last = re.findall(r"front-end (\d+) has connected", lines)[-1]
    done = trace.replay(f"--exec={program}", f"--connection={last}")
    *differences, counts = done.stdout.splitlines()
    told = ("GET_VRING_BASE ", "GET_STATUS with NEEDS_RESET")  # the rings are empty there
    assert all(line.startswith(told) for line in differences), done.stdout + done.stderr
    assert int(counts.split()[0]) > 40


def test_the_display_was_traced(machine: TracedMachine) -> None:
    machine.guest.call("show", width=WIDTH, height=HEIGHT, seed=1, display=0)
    Screen(machine.guest.qmp, "gpu", 0).wait_seed(WIDTH, HEIGHT, 1)
    trace = machine.traces["vhost-user-gpu"]
    lines = trace.until(f"<- display.SCANOUT         scanout_id=0 width={WIDTH} height={HEIGHT}")
    assert "-> GPU_SET_SOCKET" in lines
    assert re.search(r"<- display.(DMABUF_)?UPDATE +scanout_id=0", lines)
