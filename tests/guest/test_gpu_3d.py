"""vhost-user-gpu --virgl in a real guest: what Mesa draws is what QEMU shows, and what llvmpipe draws.

No GPU is needed: the renderer on the host is Mesa's software rasteriser.
"""

import base64
import os
import re
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guest.backend import Backend
from tests.guest.console_text import text_picture
from tests.guest.guest import Guest
from tests.guest.machine import HOTPLUG_PORTS, KEPT_ASLEEP, vhost_user_options
from tests.guest.modules import load_modules
from tests.guest.newer_mesa import DEVICES, python_with_newer_mesa
from tests.guest.screen import PAUSE, Picture, Screen

pytestmark = pytest.mark.guest

# Not 800x600, which glmark2 checks pixels for: it would believe that its window is there already.
WIDTH, HEIGHT = 808, 606
GLMARK2 = (
    "build",
    "texture",
    "shading:shading=phong",
    "bump",
    "function:fragment-complexity=low:fragment-steps=5",
    "loop:fragment-loop=false:fragment-steps=5:vertex-steps=5",
)
SMALL = (320, 200)
SOFTWARE = ("LIBGL_ALWAYS_SOFTWARE=1",)
DRAW = [sys.executable, "-m", "tests.guest.inside.gl_draw"]
PAINT = [sys.executable, "-m", "tests.guest.inside.wayland"]
CAGE = "tests/guest/inside/cage.sh"
DRIVER = "/sys/bus/virtio/drivers/virtio_gpu"
KMSCUBE_BACKGROUND = b"\x80\x80\x80"
PATIENCE = 60.0


class Machine:
    """A guest whose display is a vhost-user-gpu with a renderer."""

    def __init__(self, backend: Backend, stack: ExitStack) -> None:
        self.backend = backend
        device = f"vhost-user-gpu-pci,xres={WIDTH},yres={HEIGHT},bus={HOTPLUG_PORTS[0]},{KEPT_ASLEEP}"
        options = vhost_user_options(device, backend.path, "gpu")
        self.guest = stack.enter_context(Guest(options=options, memory="1G", sleeps=True))
        self.screen = Screen(self.guest.qmp, "gpu")

    def run(self, *argv: str) -> str:
        """What a program in the guest prints; it has to succeed."""
        done = self.guest.call("run", argv=argv, timeout=PATIENCE)
        assert done["status"] == 0, done["output"]
        return str(done["output"])

    @contextmanager
    def showing(self, scene: str, *seeds: int) -> Iterator[int]:
        """A program in the guest that draws a scene, the next one at SIGUSR1; its process id."""
        pid = self.guest.call("start", argv=[*DRAW, "show", scene, *map(str, seeds)])
        yield pid
        assert self.guest.call("finish", pid=pid)["status"] == 0

    def await_shown(self, pid: int, seed: int) -> str:
        """Who drew a picture of `seed`, once it is shown."""
        output: str = self.guest.call("wait_output", pid=pid, text=f"shown {seed} by ", timeout=PATIENCE)
        return output.strip().rpartition(" by ")[2]

    def next(self, pid: int) -> None:
        """Lets a drawing program go on."""
        self.guest.call("signal", pid=pid, name="SIGUSR1")

    def read(self, how: str, scene: str, seed: int) -> tuple[str, Picture]:
        """A picture that was drawn off screen, and who drew it."""
        environment = SOFTWARE if how == "read-here" else ()
        return self.pixels(self.run("env", *environment, *DRAW, how, scene, str(seed), *map(str, SMALL)))

    def pixels(self, output: str) -> tuple[str, Picture]:
        """Who drew a picture that was printed, and the picture."""
        renderer, pixels = output.strip().splitlines()[-2:]
        return renderer, Picture(*SMALL, zlib.decompress(base64.b64decode(pixels)))

    def bind_again(self) -> None:
        """Takes the device from its driver, and gives it back."""
        again = (
            f"cd {DRIVER} && device=$(basename virtio[0-9]*) && echo $device > unbind && echo $device > bind"
        )
        assert self.run("sh", "-c", again) == ""

    def renderer(self) -> int:
        """The process that renders: the youngest."""
        *_, renderer = descendants(self.backend.process.pid)
        return renderer


def descendants(pid: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        yield from descendants(child)


@pytest.fixture(scope="module")
def the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with ExitStack() as stack:
        directory = tmp_path_factory.mktemp("gpu")
        yield Machine(stack.enter_context(Backend("vhost-user-gpu", directory, "--virgl")), stack)


@pytest.fixture
def machine(the_machine: Machine) -> Iterator[Machine]:
    """The machine of all tests, on which nobody paints but the console."""
    yield the_machine
    the_machine.guest.call("release")


def test_mesa_draws_with_it(machine: Machine) -> None:
    """eglinfo says so, and fails for platforms that are not there."""
    assert "EGL driver name: virtio_gpu" in machine.guest.call("run", argv=["eglinfo", "-B"])["output"]
    assert "number of cap sets: 2" in "\n".join(machine.guest.call("kernel_log"))


@pytest.mark.parametrize("scene", ["computed", "looked_up"])
def test_a_known_picture_off_screen(machine: Machine, scene: str) -> None:
    renderer, picture = machine.read("read", scene, 3)
    assert renderer.startswith("virgl")
    assert not picture.difference(Picture.of_seed(*SMALL, 3))


def test_a_cube_is_like_llvmpipes(machine: Machine) -> None:
    """They round a few pixels otherwise: the host's has other instructions."""
    renderer, picture = machine.read("read", "cube", 3)
    software, expected = machine.read("read-here", "cube", 3)
    assert (renderer[:5], software[:8]) == ("virgl", "llvmpipe")
    differences = [abs(mine - other) for mine, other in zip(picture.pixels, expected.pixels, strict=True)]
    assert max(differences) <= 1
    assert sum(map(bool, differences)) < len(differences) / 100


@pytest.mark.parametrize("scene", ["computed", "looked_up"])
def test_known_pictures_on_screen(machine: Machine, scene: str) -> None:
    with machine.showing(scene, 1, 2, 3) as pid:
        for seed in (1, 2, 3):
            assert machine.await_shown(pid, seed).startswith("virgl")
            machine.screen.wait_seed(WIDTH, HEIGHT, seed)
            machine.next(pid)


def test_pictures_without_opengl_are_shown_as_before(machine: Machine) -> None:
    machine.guest.call("show", width=WIDTH, height=HEIGHT, seed=4)
    machine.screen.wait_seed(WIDTH, HEIGHT, 4)
    machine.guest.call("flip", seed=5)
    machine.screen.wait_seed(WIDTH, HEIGHT, 5)


def test_opengl_uses_a_picture_that_was_drawn_without(machine: Machine) -> None:
    machine.guest.call("release")
    renderer, picture = machine.pixels(machine.run(*DRAW, "read-2d", "5", *map(str, SMALL)))
    assert renderer.startswith("virgl")
    assert not picture.difference(Picture.of_seed(*SMALL, 5))


def test_the_console_comes_back(machine: Machine) -> None:
    machine.guest.call("print", text="Still here.")
    with machine.showing("computed", 1) as pid:
        machine.await_shown(pid, 1)
        machine.screen.wait_seed(WIDTH, HEIGHT, 1)
        machine.next(pid)
    picture = text_picture(WIDTH, HEIGHT, "Still here.", machine.guest.call("font"))
    machine.screen.wait_picture(picture)


def test_the_guest_may_stop_and_go_on(machine: Machine) -> None:
    with machine.showing("computed", 1, 2) as pid:
        machine.await_shown(pid, 1)
        for command in ("stop", "cont"):  # perhaps before QEMU has got the picture
            machine.guest.qmp.execute(command)
        machine.screen.wait_seed(WIDTH, HEIGHT, 1)
        machine.guest.qmp.execute("stop")
        assert machine.screen.picture() == Picture.of_seed(WIDTH, HEIGHT, 1)
        machine.guest.qmp.execute("cont")
        machine.next(pid)
        machine.await_shown(pid, 2)
        machine.screen.wait_seed(WIDTH, HEIGHT, 2)
        machine.next(pid)


def test_the_guest_may_sleep(machine: Machine) -> None:
    """It is suspended to RAM while it draws. Without `KEPT_ASLEEP` Linux loses any virtio-gpu then."""
    with machine.showing("computed", 1, 2) as pid:
        machine.await_shown(pid, 1)
        machine.screen.wait_seed(WIDTH, HEIGHT, 1)
        machine.guest.sleep()
        machine.guest.wake()
        machine.screen.wait_seed(WIDTH, HEIGHT, 1)
        machine.next(pid)
        machine.await_shown(pid, 2)
        machine.screen.wait_seed(WIDTH, HEIGHT, 2)
        machine.next(pid)


def test_dmabufs_of_a_gpu(machine: Machine) -> None:
    """The guest is the host here, and has a GPU: this one."""
    check_dmabufs(machine, sys.executable, "/dev/dri/renderD128")


def test_dmabufs_of_llvmpipe(machine: Machine, tmp_path: Path) -> None:
    """They need /dev/udmabuf and a newer Mesa, which not every host has: the guest has them."""
    load_modules(machine.guest, tmp_path / "modules", "udmabuf")
    check_dmabufs(machine, str(python_with_newer_mesa(machine.guest, tmp_path)), environment=SOFTWARE)


def check_dmabufs(machine: Machine, *arguments: str, environment: Sequence[str] = ()) -> None:
    """Runs the program inside the guest, and there a front-end that looks into its dmabufs."""
    paths = f"PYTHONPATH={DEVICES}"
    command = [sys.executable, "-m", "tests.guest.inside.check_dmabuf_3d", *arguments]
    done = machine.guest.call("run", argv=["env", paths, *environment, *command], timeout=120)
    assert done["status"] == 0, done["output"]


def test_kmscube(machine: Machine) -> None:
    """Its picture, in the middle of a turn, is not known to the pixel: there is a cube on its background."""
    pid = machine.guest.call("start", argv=["sh", "-c", "exec kmscube </dev/ttyS0"])  # input would end it
    deadline = time.monotonic() + PATIENCE
    while not has_cube(machine.screen.picture().pixels):
        assert time.monotonic() < deadline
        time.sleep(PAUSE)
    machine.guest.call("signal", pid=pid, name="SIGTERM")
    machine.guest.call("finish", pid=pid)


def has_cube(pixels: bytes) -> bool:
    """Whether the corners are kmscube's background, and the middle is not."""
    middle = 3 * (HEIGHT // 2 * WIDTH + WIDTH // 2)
    return pixels[:3] == pixels[-3:] == KMSCUBE_BACKGROUND != pixels[middle : middle + 3]


def test_a_compositor_shows_its_client(machine: Machine) -> None:
    """Cage, of wlroots, puts a client's picture on the screen by OpenGL, and then another one."""
    pid = machine.guest.call("start", argv=[CAGE, *PAINT, "6", "7"])
    for seed in (6, 7):
        output = machine.guest.call("wait_output", pid=pid, text=f"painted {seed} by ", timeout=PATIENCE)
        machine.screen.wait_seed(WIDTH, HEIGHT, seed)
        machine.run("kill", "-USR1", output.split()[-1])
    assert machine.guest.call("finish", pid=pid)["status"] == 0


def test_a_compositor_s_client_draws_with_opengl(machine: Machine) -> None:
    """Its gears are red, green and blue, and turn. So no pixel is known before."""
    pid = machine.guest.call("start", argv=[CAGE, "es2gears_wayland.x86_64-linux-gnu"])
    deadline = time.monotonic() + PATIENCE
    while not has_gears(machine.screen.picture().pixels):
        assert time.monotonic() < deadline
        time.sleep(PAUSE)
    machine.guest.call("signal", pid=pid, name="SIGTERM")
    machine.guest.call("finish", pid=pid)


def has_gears(pixels: bytes) -> bool:
    """Whether red, green and blue are the strongest color of a hundredth of a picture each, or more."""
    some = list(zip(pixels[::300], pixels[1::300], pixels[2::300], strict=False))
    strongest = Counter(color.index(max(color)) for color in some if any(color))
    return len(strongest) == 3 and min(strongest.values()) >= len(some) / 100


def test_glmark2_finds_the_pixels_that_it_expects(machine: Machine) -> None:
    machine.run(sys.executable, "-m", "tests.guest.inside.few_modes", str(WIDTH), str(HEIGHT))
    machine.bind_again()
    assert machine.guest.call("display_modes")[0] == [WIDTH, HEIGHT]
    machine.guest.call("release")
    output = machine.run("glmark2-es2-drm", "--validate", *(f"-b{scene}" for scene in GLMARK2))
    assert re.search(r"GL_RENDERER: +virgl", output)
    assert re.findall(r"Validation: (\w+)", output) == ["Success"] * len(GLMARK2)


def test_many_contexts_leave_nothing(machine: Machine) -> None:
    processes = (machine.backend.process.pid, machine.renderer())
    machine.run(*DRAW, "contexts", "3")
    before = [open_fds(pid) for pid in processes]
    machine.run(*DRAW, "contexts", "8")
    assert [open_fds(pid) for pid in processes] == before


def open_fds(pid: int) -> int:
    """How many fds a process of the host has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_the_renderer_may_die(machine: Machine) -> None:
    """It costs the guest its 3D until the driver is bound again, and nothing else."""
    pid = machine.guest.call("start", argv=[*DRAW, "show", "computed", "1", "2"])
    machine.await_shown(pid, 1)
    os.kill(machine.renderer(), signal.SIGKILL)
    machine.next(pid)
    machine.guest.call("signal", pid=pid, name="SIGKILL")
    machine.guest.call("finish", pid=pid)
    test_pictures_without_opengl_are_shown_as_before(machine)
    machine.guest.call("release")
    machine.bind_again()
    test_known_pictures_on_screen(machine, "looked_up")


def test_the_guest_may_reboot(machine: Machine) -> None:
    with machine.showing("computed", 1) as pid:
        machine.await_shown(pid, 1)
        machine.next(pid)
    machine.guest.reboot()
    test_known_pictures_on_screen(machine, "computed")
    assert machine.backend.process.poll() is None
