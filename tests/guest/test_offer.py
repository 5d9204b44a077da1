"""Programs that offer all they have, to a front-end that takes what it likes."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.guest.backend import Backend
from tests.guest.machine import INFLIGHT_MIGRATION, disk_has, vhost_user_options
from tests.guest.test_blk import DONE_AGAIN, MIB, MIXED, Machine, interrupt_the_program
from vhostd.vhost_user.messages import ProtocolFeature

pytestmark = pytest.mark.guest

OFFER = "--offer=all"


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("offer")
    with ExitStack() as stack:
        options = []
        for name in ("rng", "gpu"):
            backend = stack.enter_context(Backend(f"vhost-user-{name}", folder, OFFER))
            options += vhost_user_options(f"vhost-user-{name}-pci", backend.path, name)
        more = f",{INFLIGHT_MIGRATION}=on" if disk_has(INFLIGHT_MIGRATION) else ""
        yield Machine(folder, stack, more, options, [OFFER, "--cache=direct"])


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
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


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_disk_s_program_may_end(machine: Machine, end: signal.Signals) -> None:
    before = machine.backend.log().count(DONE_AGAIN)
    interrupt_the_program(machine, end)
    assert end != signal.SIGKILL or machine.backend.log().count(DONE_AGAIN) > before


def test_random_bytes(machine: Machine) -> None:
    samples = {machine.guest.call("hwrng", count=4096)["data"] for _ in range(4)}
    assert len(samples) == 4
