"""Our devices in a guest that libvirt runs, as docs/libvirt.md says how."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.guest import kernel
from tests.guest.backend import EventSocket
from tests.guest.initramfs import BUSYBOX
from tests.guest.machine import CHECKOUT
from tests.guest.screen import Picture
from tests.libvirt.domain import QEMU_SCHEMA, GuestDomain
from tests.libvirt.host import Host, Process, wait_until
from tests.libvirt.libvirtd import Libvirtd
from tests.programs import executable, listens_at

pytestmark = pytest.mark.guest

WIDTH, HEIGHT = 800, 600
MIB = 1 << 20
DISK_SIZE = 64 * MIB
FOLDER = "/run/vhost"  # of the sockets, as in docs/libvirt.md
FOR_QEMU = ("--socket-group=libvirt-qemu", "--socket-mode=0660")
EV_KEY, KEY_A, KEY_POWER = 1, 30, 116
SYN = [0, 0, 0]


def documented() -> ElementTree.Element:
    """The domain in docs/libvirt.md."""
    text = (CHECKOUT / "docs/libvirt.md").read_text()
    (found,) = re.findall(r"^<domain .*?^</domain>\n", text, re.DOTALL | re.MULTILINE)
    return ElementTree.fromstring(found)


@dataclass
class Services:
    """The programs at their sockets, as a service manager runs them."""

    host: Host

    def start(self, device: str, *options: str) -> Process:
        """Starts a program, and waits until it listens."""
        path = f"{FOLDER}/{device}.sock"
        program = executable(f"vhost-user-{device}")
        process = self.host.start(device, program, f"--socket-path={path}", *FOR_QEMU, *options)
        wait_until(lambda: listens_at(Path(path)), path)
        return process

    def start_disk(self) -> Process:
        """Starts the disk's."""
        return self.start("blk", f"--blk-file={FOLDER}/disk.img")


@pytest.fixture(scope="module")
def services(libvirtd: Libvirtd) -> Iterator[Services]:
    services = Services(libvirtd.host)
    folder = libvirtd.host.path(FOLDER)
    folder.mkdir()
    with (folder / "disk.img").open("wb") as image:
        image.truncate(DISK_SIZE)
    programs = [
        services.start_disk(),
        services.start("rng"),
        services.start("net", f"--stream={FOLDER}/passt.sock"),
        services.start("vsock", f"--uds-path={FOLDER}/vm3"),
        services.start("input", f"--event-socket={FOLDER}/keys.sock", "--name=typist"),
    ]
    yield services
    for program in programs:
        if program.alive:
            program.send()
            program.wait_gone()


@pytest.fixture(scope="module")
def the_guest(libvirtd: Libvirtd, services: Services) -> Iterator[GuestDomain]:
    domain = documented()
    backing = domain.find("memoryBacking")
    devices = domain.find("devices")
    assert backing is not None
    assert devices is not None
    options = [argument.attrib["value"] for argument in domain.iter(f"{{{QEMU_SCHEMA}}}arg")]
    snippets = "".join(ElementTree.tostring(device, encoding="unicode") for device in devices)
    with GuestDomain(
        libvirtd, "guest", snippets, ElementTree.tostring(backing, encoding="unicode"), options
    ) as guest:
        yield guest


@pytest.fixture
def guest(the_guest: GuestDomain) -> Iterator[GuestDomain]:
    """The guest of all tests, in which nobody paints but the console."""
    yield the_guest
    the_guest.call("release")


def show(guest: GuestDomain, seed: int) -> None:
    """Lets the guest show a picture, and expects to see it."""
    guest.call("show", width=WIDTH, height=HEIGHT, seed=seed)
    guest.wait_picture(Picture.of_seed(WIDTH, HEIGHT, seed))


def flip(guest: GuestDomain, seed: int) -> None:
    """Lets the guest flip to a picture, and expects to see it."""
    guest.call("flip", seed=seed)
    guest.wait_picture(Picture.of_seed(WIDTH, HEIGHT, seed))


def test_what_the_guest_paints_is_in_the_screenshot(guest: GuestDomain) -> None:
    show(guest, 1)
    flip(guest, 2)


def test_the_display_goes_on_after_suspend_and_resume(guest: GuestDomain) -> None:
    show(guest, 1)
    for seed in (2, 3, 4):
        before = guest.picture()
        guest.virsh("suspend")
        assert guest.picture() == before
        guest.virsh("resume")
        flip(guest, seed)


def test_entropy(guest: GuestDomain) -> None:
    assert guest.call("rng_current").startswith("virtio_rng")
    first, second = (guest.call("hwrng", count=64)["data"] for _ in range(2))
    assert first != second


def test_typing(guest: GuestDomain, libvirtd: Libvirtd) -> None:
    guest.call("wait_input_device", name="typist")
    guest.call("record", device="typist")
    stroke = [[EV_KEY, KEY_A, 1], SYN, [EV_KEY, KEY_A, 0], SYN]
    with closing(EventSocket(libvirtd.host.path(f"{FOLDER}/keys.sock"))) as keys:
        keys.send(stroke)
        assert guest.call("wait_events", device="typist", count=len(stroke)) == stroke
    guest.call("stop_recording", device="typist")


def copy_to_disk(mebibytes: int) -> list[str]:
    """The guest's command that fills the disk's beginning with random bytes, block by block."""
    count = mebibytes * MIB // 4096
    return ["dd", "if=/dev/urandom", "of=/dev/vda", "bs=4k", f"count={count}", "oflag=direct", "status=none"]


def read_from_disk(guest: GuestDomain, mebibytes: int) -> str:
    """The SHA-256 of the disk's beginning as the guest reads it."""
    command = f"dd if=/dev/vda bs=1M count={mebibytes} iflag=direct status=none | sha256sum"
    done = guest.call("run", argv=["sh", "-c", command])
    assert done["status"] == 0, done["output"]
    return str(done["output"]).split()[0]


def test_the_disks_program_may_be_restarted_under_load(
    guest: GuestDomain, libvirtd: Libvirtd, services: Services
) -> None:
    guest.call("wait_disk", name="vda", attributes={"size": str(DISK_SIZE // 512)})
    image = libvirtd.host.path(f"{FOLDER}/disk.img")
    writer = guest.call("start", argv=copy_to_disk(16))
    before = libvirtd.host.process("/run/blk.pid")
    wait_until(lambda: written(image), "the first write")
    before.send()
    before.wait_gone()
    after = services.start_disk()
    assert guest.call("finish", pid=writer)["status"] == 0
    assert read_from_disk(guest, 16) == hashlib.sha256(image.read_bytes()[: 16 * MIB]).hexdigest()
    assert after.alive


def written(image: Path) -> bool:
    """Whether something is on the disk."""
    return image.stat().st_blocks > 0


def test_the_display_goes_on_after_a_reset(guest: GuestDomain) -> None:
    program = guest.program
    show(guest, 1)
    guest.virsh("reset")
    guest.wait_ready()
    show(guest, 2)
    assert program.alive


def wait_power_button(guest: GuestDomain, libvirtd: Libvirtd) -> str:
    """Lets the guest notice its power button; the button's device."""
    for name, content in kernel.module_files(["button"]):
        path = f"/run/{name}.ko"
        libvirtd.host.path(path).write_bytes(content)
        done = guest.call("run", argv=[str(BUSYBOX), "insmod", path])
        assert done["status"] == 0, done["output"]
    device: str = guest.call("wait_input_device", name="Power Button")["path"]
    guest.call("record", device=device)
    return device


def test_the_display_goes_on_after_a_reboot_by_libvirt(guest: GuestDomain, libvirtd: Libvirtd) -> None:
    """Which presses the power button, and starts the machine again when the guest has powered it off."""
    program = guest.program
    button = wait_power_button(guest, libvirtd)
    show(guest, 1)
    guest.virsh("reboot")
    guest.call("wait_event", device=button, event=[EV_KEY, KEY_POWER, 1])
    guest.power_off()
    guest.wait_ready()
    show(guest, 2)
    assert program.alive


def test_shutdown_ends_the_display(the_guest: GuestDomain, libvirtd: Libvirtd) -> None:
    """And nothing else: the other programs are not libvirt's."""
    program = the_guest.program
    button = wait_power_button(the_guest, libvirtd)
    the_guest.virsh("shutdown")
    the_guest.call("wait_event", device=button, event=[EV_KEY, KEY_POWER, 1])
    the_guest.power_off()
    program.wait_gone()
    wait_until(lambda: the_guest.left() == [])
    assert libvirtd.syslog.lines(program.pid) == []
    for name in ("blk", "rng", "input"):
        assert libvirtd.host.process(f"/run/{name}.pid").alive
