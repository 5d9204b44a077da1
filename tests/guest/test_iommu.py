"""Devices behind an IOMMU, in a real guest: it translates what they may use, and takes it back."""

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.guest.backend import Backend
from tests.guest.guest import Guest
from tests.guest.machine import kernel_command_line
from tests.guest.test_blk import DONE_AGAIN, FIO_TIMEOUT, shell

pytestmark = pytest.mark.guest

QUEUES = 2
SIZE = 128 << 20
OFFER = "--offer=default,access-platform"
IOMMU = "intel-iommu,intremap=on,device-iotlb=on"
BEHIND = "iommu_platform=on,ats=on"
# Linux collects what it unmaps, and then has the IOMMU forget everything; or takes back each range at once.
MODES = {"DMA-FQ": "iommu.strict=0", "DMA": "iommu.strict=1"}
RINGS = {
    "DMA-FQ": "queue-size=1024,packed=on",
    "DMA": "queue-size=128",
}  # the longer lie in pages that are apart
FIO = (
    "fio --name=verified --filename=/dev/vda --direct=1 --eta=never --ioengine=libaio --iodepth=16 "
    "--numjobs=2 --bssplit=4k/80:256k/20 --offset_increment=48M --size=24M "
    "--verify=crc32c --verify_fatal=1 --do_verify=1"
)


class Machine(NamedTuple):
    guest: Guest
    disk: Backend
    entropy: Backend
    early: list[str]  # complaints of the kernel at its start: the firmware leaves a ring behind


@pytest.fixture(scope="module", params=MODES)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A guest whose disk vda, and whose source of entropy, are behind an IOMMU."""
    directory = tmp_path_factory.mktemp("iommu")
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(SIZE)
    with ExitStack() as stack:
        disk = stack.enter_context(
            Backend("vhost-user-blk", directory, f"--blk-file={image}", f"--num-queues={QUEUES}", OFFER)
        )
        entropy = stack.enter_context(Backend("vhost-user-rng", directory, OFFER))
        properties = f"num-queues={QUEUES},{RINGS[request.param]},disable-legacy=on,{BEHIND}"
        options = [
            *("-device", IOMMU, "-smp", str(QUEUES)),
            *("-append", f"{kernel_command_line()} intel_iommu=on {MODES[request.param]}"),
            *("-chardev", f"socket,id=disk,path={disk.path},reconnect-ms=50"),
            *("-device", f"vhost-user-blk-pci,chardev=disk,{properties}"),
            *("-chardev", f"socket,id=rng,path={entropy.path}"),
            *("-device", f"vhost-user-rng-pci,chardev=rng,{BEHIND}"),
        ]
        guest = stack.enter_context(Guest(options=options))
        group = shell(guest, "cat /sys/block/vda/device/../iommu_group/type")
        assert group == request.param
        yield Machine(guest, disk, entropy, complaints(guest))


def complaints(guest: Guest) -> list[str]:
    """What the guest's kernel says of its devices' faults."""
    return re.findall(r".*(?:fault addr|I/O error|is not a head).*", guest.console())


def requests(guest: Guest) -> int:
    """How many reads and writes the guest has done."""
    numbers = guest.call("read_file", path="/sys/block/vda/stat").split()
    return int(numbers[0]) + int(numbers[4])


def test_what_is_written_is_read(machine: Machine) -> None:
    shell(machine.guest, f"{FIO} --rw=randrw", FIO_TIMEOUT)


def test_entropy(machine: Machine) -> None:
    read = "dd if=/dev/hwrng bs=4k count=64 iflag=fullblock status=none | sha256sum"
    sums = {shell(machine.guest, read) for _ in range(3)}
    assert len(sums) == 3


def test_the_program_is_killed_under_load(machine: Machine) -> None:
    guest, disk = machine.guest, machine.disk
    before, seen = requests(guest), disk.log().count(DONE_AGAIN)
    fio = guest.call("start", argv=["sh", "-c", f"{FIO} --rw=randwrite"])
    for kills, done in enumerate(range(100, 2800, 100)):
        while requests(guest) < before + done:
            pass
        disk.restart("--cache=direct", end=signal.SIGKILL)  # past the page cache requests take their time
        if kills >= 5 and disk.log().count(DONE_AGAIN) > seen:  # a slow guest has often none in flight
            break
    result = guest.call("finish", pid=fio, timeout=FIO_TIMEOUT)
    assert result["status"] == 0, result["output"]
    assert disk.log().count(DONE_AGAIN) > seen
    disk.restart()


def test_the_driver_begins_anew(machine: Machine) -> None:
    guest = machine.guest
    device = shell(guest, "basename $(readlink -f /sys/block/vda/device)")
    for _ in range(3):
        shell(guest, f"echo {device} > /sys/bus/virtio/drivers/virtio_blk/unbind")
        shell(guest, f"echo {device} > /sys/bus/virtio/drivers/virtio_blk/bind")
        shell(guest, f"{FIO} --rw=randwrite --runtime=2", FIO_TIMEOUT)


def test_nothing_went_wrong(machine: Machine) -> None:
    said = machine.disk.log() + machine.entropy.log()
    assert re.findall(r".*(?:broken|refused: ).*", said) == []  # a second front-end, for a moment, is nothing
    assert complaints(machine.guest) == machine.early
