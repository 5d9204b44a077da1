"""vhost-user-gpu in a real guest: what Linux paints is what QEMU shows, to the pixel."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.guest import gpu_commands
from tests.guest.backend import Backend
from tests.guest.console_text import text_picture
from tests.guest.dbus_display import DISPLAY_OPTION, Display
from tests.guest.guest import Guest
from tests.guest.machine import vhost_user_options
from tests.guest.pattern import pattern
from tests.guest.qemu_cursor import wait_cursor, wait_no_cursor
from tests.guest.screen import Picture, Screen

pytestmark = pytest.mark.guest

WIDTH, HEIGHT = 800, 600
DRIVER = "/sys/bus/virtio/drivers/virtio_gpu"


class Machine:
    """A guest with two screens, of which the first is plugged in, and its vhost-user-gpu program."""

    def __init__(self, backend: Backend, stack: ExitStack) -> None:
        self.backend = backend
        device = f"vhost-user-gpu-pci,max_outputs=2,xres={WIDTH},yres={HEIGHT}"
        options = vhost_user_options(device, backend.path, "gpu")
        self.guest = stack.enter_context(Guest(options=options, display=DISPLAY_OPTION))
        self.screens = [Screen(self.guest.qmp, "gpu", head) for head in range(2)]

    def show(self, seed: int, width: int = WIDTH, height: int = HEIGHT, display: int = 0) -> None:
        """Sets a mode in the guest with a picture in it, and expects to see it."""
        self.guest.call("show", width=width, height=height, seed=seed, display=display)
        self.screens[display].wait_seed(width, height, seed)

    def resize(self, width: int, height: int, display: int = 0) -> None:
        """Resizes a screen from outside and waits until the guest knows."""
        with closing(Display(self.guest.qmp)) as window:
            window.resize(width, height, display)
        self.guest.call("wait_display", width=width, height=height, display=display)


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as stack:
        backend = stack.enter_context(
            Backend("vhost-user-gpu", tmp_path_factory.mktemp("gpu"), "--scanouts=2")
        )
        yield Machine(backend, stack)


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
    """The machine of all tests, on which nobody paints but the console."""
    yield the_machine
    the_machine.guest.call("release")


def test_the_driver_binds(machine: Machine) -> None:
    first, second = machine.guest.call("displays")
    assert (first["name"], first["status"]) == ("Virtual-1", "connected")
    assert (second["name"], second["status"]) == ("Virtual-2", "disconnected")
    assert machine.guest.call("display_modes")[0] == [WIDTH, HEIGHT]


def test_a_picture(machine: Machine) -> None:
    machine.show(seed=1)


def test_painting_over_it(machine: Machine) -> None:
    machine.show(seed=1)
    machine.guest.call("paint", seed=2)
    machine.screens[0].wait_seed(WIDTH, HEIGHT, 2)


def test_page_flips(machine: Machine) -> None:
    machine.show(seed=1)
    for seed in range(2, 8):
        machine.guest.call("flip", seed=seed)
        machine.screens[0].wait_seed(WIDTH, HEIGHT, seed)


def test_text_on_the_console(machine: Machine) -> None:
    font = machine.guest.call("font")
    for text in ("What is written is seen:\n  !\"#$%&'()*+,-./0123456789", "And this instead."):
        machine.guest.call("print", text=text)
        machine.screens[0].wait_picture(text_picture(WIDTH, HEIGHT, text, font))


def test_the_console_comes_back(machine: Machine) -> None:
    machine.guest.call("print", text="Still here.")
    machine.show(seed=1, width=640, height=480)
    machine.guest.call("release")
    picture = text_picture(WIDTH, HEIGHT, "Still here.", machine.guest.call("font"))
    machine.screens[0].wait_picture(picture)


@pytest.mark.parametrize("mode", [(640, 480), (1024, 768), (1360, 768), (1440, 900), (1920, 1080)])
def test_modes(machine: Machine, mode: tuple[int, int]) -> None:
    assert list(mode) in machine.guest.call("display_modes")
    machine.show(3, *mode)


def test_the_edid_arrives_whole(machine: Machine) -> None:
    """It is QEMU's, which `edid-decode --check` finds fault with: no VCDB in its second block."""
    edid = bytes.fromhex(machine.guest.call("displays")[0]["edid"])
    assert len(edid) == 128 * (1 + edid[126])
    assert all(sum(edid[start : start + 128]) % 256 == 0 for start in range(0, len(edid), 128))
    assert f" {WIDTH}x{HEIGHT} " in preferred_timing(machine)


def preferred_timing(machine: Machine) -> str:
    """What edid-decode says of the first screen's preferred mode."""
    edid = bytes.fromhex(machine.guest.call("displays")[0]["edid"])
    done = subprocess.run(["edid-decode"], input=edid, capture_output=True, check=True)
    (timing,) = (line for line in done.stdout.decode().splitlines() if "DTD 1:" in line)
    return timing


def test_a_window_may_be_resized(machine: Machine) -> None:
    for seed, (width, height) in enumerate([(720, 500), (1000, 700), (WIDTH, HEIGHT)]):
        machine.resize(width, height)
        assert f" {width}x{height} " in preferred_timing(machine)
        machine.show(seed, width, height)


def test_two_screens(machine: Machine) -> None:
    machine.show(seed=1)
    machine.resize(640, 400, display=1)
    machine.show(seed=2, width=640, height=400, display=1)
    machine.screens[0].wait_seed(WIDTH, HEIGHT, 1)
    machine.guest.call("flip", seed=3, display=0)
    machine.guest.call("flip", seed=4, display=1)
    machine.screens[0].wait_seed(WIDTH, HEIGHT, 3)
    machine.screens[1].wait_seed(640, 400, 4)


def test_a_cursor(machine: Machine) -> None:
    machine.show(seed=1)
    pid = machine.guest.pid
    first, second = pattern(64, 64, 2, "BGRA", 0x80), pattern(64, 64, 3, "BGRA", 0xC0)
    machine.guest.call("show_cursor", seed=2, hot_x=3, hot_y=5, alpha=0x80)
    machine.guest.call("move_cursor", x=100, y=50)
    wait_cursor(pid, first, (3, 5), (100, 50))
    machine.guest.call("show_cursor", seed=3, hot_x=0, hot_y=63, alpha=0xC0)
    wait_cursor(pid, second, (0, 63), (100, 50))
    machine.guest.call("move_cursor", x=WIDTH - 1, y=HEIGHT - 1)
    wait_cursor(pid, second, (0, 63), (WIDTH - 1, HEIGHT - 1))
    machine.guest.call("hide_cursor")
    wait_no_cursor(pid, second)
    machine.screens[0].wait_seed(WIDTH, HEIGHT, 1)  # it is not part of the picture


class RawGpu:
    """The device in the guest without Linux's driver, and one resource of it on the first screen."""

    WIDTH, HEIGHT = 300, 270
    WHOLE = (0, 0, WIDTH, HEIGHT)
    RESOURCE = 7

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._memory = guest.call("raw_gpu_take")["address"]

    def request(self, command: bytes) -> None:
        """Sends a command that the device must obey."""
        response = bytes.fromhex(self._guest.call("raw_gpu_request", data=command.hex()))
        assert gpu_commands.response_type(response) == gpu_commands.OK_NODATA

    def create(self, order: str) -> None:
        """Creates the resource with this order of bytes, and backing that is in two pieces."""
        size = 4 * self.WIDTH * self.HEIGHT
        pieces = [(self._memory, 1001), (self._memory + 1001, size - 1001)]
        number = gpu_commands.FORMATS[order]
        self.request(gpu_commands.create_2d(self.RESOURCE, number, self.WIDTH, self.HEIGHT))
        self.request(gpu_commands.attach_backing(self.RESOURCE, *pieces))
        self.request(gpu_commands.set_scanout(0, self.RESOURCE, self.WHOLE))

    def paint(self, seed: int, order: str, x: int, y: int, width: int, height: int) -> None:
        """Writes a whole picture to the backing, transfers a part of it and flushes that."""
        self._guest.call("raw_gpu_draw", width=self.WIDTH, height=self.HEIGHT, seed=seed, order=order)
        offset = 4 * (y * self.WIDTH + x)
        part = (x, y, width, height)
        self.request(gpu_commands.transfer_to_host_2d(self.RESOURCE, part, offset))
        self.request(gpu_commands.flush(self.RESOURCE, part))

    def destroy(self) -> None:
        """Destroys the resource, which is still shown."""
        self.request(gpu_commands.unref(self.RESOURCE))


@pytest.fixture
def raw_gpu(machine: Machine) -> Iterator[RawGpu]:
    yield RawGpu(machine.guest)
    machine.guest.call("raw_gpu_give_back")
    machine.show(seed=9)


@pytest.mark.parametrize("order", gpu_commands.FORMATS)
def test_every_format(machine: Machine, raw_gpu: RawGpu, order: str) -> None:
    """Linux's driver only ever uses one."""
    raw_gpu.create(order)
    raw_gpu.paint(1, order, *RawGpu.WHOLE)
    machine.screens[0].wait_seed(RawGpu.WIDTH, RawGpu.HEIGHT, 1)
    raw_gpu.destroy()


@pytest.mark.parametrize("order", ["BGRX", "XRGB"])
def test_only_what_is_transferred_changes(machine: Machine, raw_gpu: RawGpu, order: str) -> None:
    raw_gpu.create(order)
    raw_gpu.paint(1, order, *RawGpu.WHOLE)
    raw_gpu.paint(2, order, x=17, y=30, width=101, height=53)
    before, after = (Picture.of_seed(RawGpu.WIDTH, RawGpu.HEIGHT, seed) for seed in (1, 2))
    machine.screens[0].wait_picture(before.with_part(after, left=17, top=30, right=118, bottom=83))


def test_dmabufs(machine: Machine) -> None:
    """They need /dev/udmabuf, which not every host has: they are tested inside the guest."""
    script = Path(__file__).parent / "inside" / "check_udmabuf.py"
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(script)]
    result = machine.guest.call("run", argv=command, timeout=120)
    assert result["status"] == 0, result["output"]
    assert " passed" in result["output"]


def test_the_guest_may_stop_and_go_on(machine: Machine) -> None:
    machine.show(seed=1)
    machine.guest.qmp.execute("stop")
    assert machine.screens[0].picture() == Picture.of_seed(WIDTH, HEIGHT, 1)
    machine.guest.qmp.execute("cont")
    assert machine.screens[0].picture() == Picture.of_seed(WIDTH, HEIGHT, 1)
    machine.guest.call("flip", seed=2)
    machine.screens[0].wait_seed(WIDTH, HEIGHT, 2)


def test_the_driver_may_be_unbound_and_bound(machine: Machine) -> None:
    device = "$(basename virtio[0-9]*)"
    for seed in (1, 2, 3):
        again = f"cd {DRIVER} && device={device} && echo $device > unbind && echo $device > bind"
        assert machine.guest.call("run", argv=["sh", "-c", again]) == {"status": 0, "output": ""}
        machine.show(seed)
        machine.guest.call("release")


@pytest.mark.parametrize("restart", [Guest.reboot, Guest.reset])
def test_the_guest_may_restart(machine: Machine, restart: Any) -> None:
    machine.show(seed=1)
    restart(machine.guest)
    machine.guest.call("print", text="Hello again.")
    font = machine.guest.call("font")
    machine.screens[0].wait_picture(text_picture(WIDTH, HEIGHT, "Hello again.", font))
    machine.show(seed=2)
    assert machine.backend.process.poll() is None


def test_another_guest_may_use_the_same_program(tmp_path: Path) -> None:
    with Backend("vhost-user-gpu", tmp_path, "--scanouts=2") as backend:
        for seed in (1, 2):
            with ExitStack() as stack:
                Machine(backend, stack).show(seed)
