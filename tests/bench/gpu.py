"""What it costs to show what a guest paints: vhost-user-gpu beside QEMU's program of the same name, in C.

    .venv/bin/python -m tests.bench.gpu [--rounds N] [--json FILE] [--program PATH] [--baseline PATH]

The guest's driver and the front-end's display are in this process, the same for both programs, which are
children. A frame is a change of the first and of the last pixel by the guest, a TRANSFER_TO_HOST_2D and a
RESOURCE_FLUSH of the whole screen, which share a kick; it is over when both are answered and all pixels have
arrived, so nobody gains by leaving frames out. The guest's memory is in one piece, or in pages of 4 KiB in a
random order, as it is in a guest that has run for long. A blob is shown without a transfer; C has none in 2D.

"The front-end alone" is what bounds all of them: a child that does nothing but send a picture, prepared
before, whenever it is told to by one byte. No rings are involved.

Bytes copied: what a program has copied for a frame on its own side. What the socket takes is counted where it
arrives. Copies inside a program cannot be counted from outside and are taken from the sources: C's copies the
guest's pages into its picture (iov_to_buf), and that into a message (pixman_image_composite); ours does only
the former, and sends a blob from where it is. The front-end's own copy, out of the socket, is not in it.

CPU is a whole process's, user and system time; resident memory has the guest's pages in it that were touched.
"""

import argparse
import asyncio
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import uvloop

from tests.bench.measure import Figure, alternate, cpu_time, save, table
from tests.numbers import numbers
from tests.programs import Program, connected, executable
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import EDID, PIXEL, RESOURCE_BLOB, Framebuffer, GpuDriver
from vhostd.frontend.drivers.gpu_display import GpuDisplay
from vhostd.virtio.vocabulary import Feature, mask

NAME = "vhost-user-gpu"
QEMUS = "/usr/lib/qemu/vhost-user-gpu"
SIZES = ((1024, 768), (1920, 1080))
HOSTILE = "scattered pages"
BACKINGS = {"contiguous": False, HOSTILE: True}
ROUNDS = 81
FRAMES = 10  # of one program in a round: what disturbs the machine for a while is to disturb all
MIB = 1 << 20
EXTRA = 20.0  # MiB that Python may cost beyond C
FEATURES = 1 << EDID | 1 << RESOURCE_BLOB | mask(*numbers(Feature).values()) & ~mask(Feature.LOG_ALL)

SENDER = """
import socket, struct, sys
number, width, height = map(int, sys.argv[1:])
sock = socket.socket(fileno=number)
size = 4 * width * height
sock.sendall(struct.pack("=IIIIII", 7, 0, 12, 0, width, height))
update = struct.pack("=IIIIIIII", 8, 0, 20 + size, 0, 0, 0, width, height) + bytes(size)
while sock.recv(1):
    sock.sendall(update)
"""


@dataclass
class Painter:
    """A running child whose frames arrive at `display`, and what they have cost until now."""

    child: Program
    display: GpuDisplay
    frame: Callable[[], Awaitable[None]]
    copies: int = 0  # of each pixel, in the child
    frames: int = 0
    bytes: int = 0
    cpu: float = 0.0  # seconds of the child
    own_cpu: float = 0.0  # seconds of this process
    resident: list[float] = field(default_factory=list)  # MiB, with a picture set up and at last

    async def paint(self, frames: int) -> float:
        """Frames per second."""
        cpu, own_cpu, count = cpu_time(self.child.pid), time.process_time(), self.display.bytes
        start = time.perf_counter()
        for _ in range(frames):
            await self.frame()
        took = time.perf_counter() - start
        self.frames += frames
        self.cpu += cpu_time(self.child.pid) - cpu
        self.own_cpu += time.process_time() - own_cpu
        self.bytes += self.display.bytes - count
        return frames / took

    def weigh(self) -> None:
        """Notes the resident memory."""
        self.resident.append(self.child.resident() / 1024)

    @property
    def cpu_us(self) -> float:
        """Microseconds of the child's per frame."""
        return self.cpu / self.frames * 1e6

    @property
    def own_cpu_us(self) -> float:
        """Microseconds of this process's per frame."""
        return self.own_cpu / self.frames * 1e6

    @property
    def copied(self) -> float:
        """MiB that the child copies per frame."""
        monitor = self.display.monitors[0]
        pixels = monitor.width * monitor.height * PIXEL
        return (self.bytes / self.frames + self.copies * pixels) / MIB


class Screen:
    """A guest with one monitor, of a picture that is in its memory."""

    def __init__(self, driver: GpuDriver, display: GpuDisplay, picture: Framebuffer) -> None:
        self.driver = driver
        self.display = display
        self.picture = picture
        self._stamp = 0

    async def show_transferred(self) -> None:
        """Shows a resource of the host's memory."""
        await self.driver.create_2d(1, self.picture.width, self.picture.height)
        await self.driver.attach_backing(1, self.picture.ranges)
        await self.driver.set_scanout(0, 1, self.picture.whole)

    async def show_blob(self) -> None:
        """Shows the guest's memory itself."""
        width, height = self.picture.width, self.picture.height
        await self.driver.create_blob(1, self.picture.ranges, self.picture.size)
        await self.driver.set_scanout_blob(
            0, 1, self.picture.whole, width=width, height=height, stride=width * PIXEL
        )

    async def transfer(self) -> None:
        """A frame with a transfer."""
        stamp, before = self._change(), self.display.frames
        await self.driver.present(1, self.picture.whole)
        await self.display.until(lambda: self.display.frames > before and self._shows(stamp))

    async def flush(self) -> None:
        """A frame without a transfer."""
        stamp, before = self._change(), self.display.frames
        await self.driver.flush(1, self.picture.whole)
        await self.display.until(lambda: self.display.frames > before and self._shows(stamp))

    def _change(self) -> bytes:
        """Paints the first and the last pixel."""
        self._stamp = (self._stamp + 1) % (1 << 24)
        stamp = struct.pack("<I", self._stamp)
        last, size = self.picture.ranges[-1]
        self.picture.memory.map.write(self.picture.ranges[0][0], stamp)
        self.picture.memory.map.write(last + size - PIXEL, stamp)
        return stamp[:3]

    def _shows(self, stamp: bytes) -> bool:
        pixels = self.display.monitors[0].pixels
        return pixels[:3] == stamp and pixels[-PIXEL:-1] == stamp


class Bench:
    """All programs that are to paint pictures of one size; ended when the stack is closed."""

    def __init__(self, stack: ExitStack, runner: asyncio.Runner, size: tuple[int, int]) -> None:
        self.size = size
        self._stack = stack
        self._runner = runner

    def screen(self, program: str, *, scattered: bool, is_blob: bool, copies: int) -> Painter:
        """A program with a guest's picture on it."""
        return self._runner.run(self._screen(program, scattered, is_blob, copies))

    async def _screen(self, program: str, scattered: bool, is_blob: bool, copies: int) -> Painter:  # noqa: FBT001
        child, sock = self._stack.enter_context(connected([program], stderr=subprocess.DEVNULL))
        frontend = self._stack.enter_context(closing(Frontend(sock)))
        memory = self._stack.enter_context(closing(SharedMemory(16 * MIB)))
        await frontend.negotiate(FEATURES)
        await frontend.share(memory)
        display = self._stack.enter_context(closing(await GpuDisplay.show(frontend, modes=[self.size])))
        driver = self._stack.enter_context(closing(await GpuDriver.start(frontend, memory)))
        picture = Framebuffer(memory, *self.size, scattered=scattered)
        picture.write(0, os.urandom(picture.size))
        screen = Screen(driver, display, picture)
        await (screen.show_blob() if is_blob else screen.show_transferred())
        painter = Painter(child, display, screen.flush if is_blob else screen.transfer, copies)
        await painter.frame()
        painter.weigh()
        return painter

    def sender(self) -> Painter:
        """The front-end alone."""
        return self._runner.run(self._sender())

    async def _sender(self) -> Painter:
        ours, theirs = socket.socketpair()
        arguments = [str(value) for value in (theirs.fileno(), *self.size)]
        child = self._stack.enter_context(
            Program(
                [sys.executable, "-c", SENDER, *arguments], fds=[theirs.fileno()], stderr=subprocess.DEVNULL
            )
        )
        theirs.close()
        display = self._stack.enter_context(closing(GpuDisplay(ours)))

        async def frame() -> None:
            before = display.frames
            display.send(b"!")
            await display.until(lambda: display.frames > before)

        return Painter(child, display, frame)

    def rates(self, painters: Mapping[str, Painter], rounds: int) -> dict[str, float]:
        """The median frame rates."""
        for painter in painters.values():
            self._runner.run(painter.paint(FRAMES))  # the first time, memory is new
        return alternate({name: partial(self._rate, painter) for name, painter in painters.items()}, rounds)

    def _rate(self, painter: Painter) -> float:
        return self._runner.run(painter.paint(FRAMES))


def measure(program: str, baseline: str, size: tuple[int, int], rounds: int) -> list[Figure]:
    """The figures of one size."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, ExitStack() as stack:
        bench = Bench(stack, runner, size)
        theirs, ours, blobs = {}, {}, {}
        for name, scattered in BACKINGS.items():
            theirs[f"C, {name}"] = bench.screen(baseline, scattered=scattered, is_blob=False, copies=2)
            ours[name] = bench.screen(program, scattered=scattered, is_blob=False, copies=1)
            blobs[f"{name}, blob"] = bench.screen(program, scattered=scattered, is_blob=True, copies=0)
        alone = bench.sender()
        painters = {**theirs, **ours, **blobs, "alone": alone}
        rates = bench.rates(painters, rounds)
        for painter in painters.values():
            painter.weigh()
        found = [Figure("the front-end alone", f"{size[0]}x{size[1]}", "frames/s", rates["alone"])]
        for name, painter in {**ours, **blobs}.items():
            baseline = f"C, {name.removesuffix(', blob')}"
            pair = (rates[name], rates[baseline])
            what = f"{size[0]}x{size[1]}, {name}"
            found += speed(what, painter, theirs[baseline], pair)
            if size == SIZES[-1] and name.startswith(HOSTILE):
                found += weight(what, painter, theirs[baseline])
        report(size, painters)
        return found


def speed(what: str, ours: Painter, theirs: Painter, rates: tuple[float, float]) -> list[Figure]:
    """How fast one program paints beside the other; C paints a blob's picture with transfers."""
    return [
        Figure(NAME, what, "frames/s", *rates, least=1.0),
        Figure(NAME, f"{what}: CPU per frame", "µs", ours.cpu_us, theirs.cpu_us),
    ]


def weight(what: str, ours: Painter, theirs: Painter) -> list[Figure]:
    """What one program copies and keeps in memory beside the other."""
    beyond = max(mine - other for mine, other in zip(ours.resident, theirs.resident, strict=True))
    return [
        Figure(NAME, f"{what}: copied per frame", "MiB", ours.copied, theirs.copied),
        Figure(NAME, f"{what}: resident, set up", "MiB", ours.resident[0], theirs.resident[0]),
        Figure(NAME, f"{what}: resident, at last", "MiB", ours.resident[1], theirs.resident[1]),
        Figure(NAME, f"{what}: resident beyond C's at most", "MiB", beyond, limit=EXTRA),
    ]


def report(size: tuple[int, int], painters: Mapping[str, Painter]) -> None:
    """Says how much of a frame's time was this process's, of each."""
    for name, painter in painters.items():
        times = f"CPU {painter.cpu_us:.0f} µs, and the front-end's {painter.own_cpu_us:.0f} µs a frame"
        print(f"{size[0]}x{size[1]}, {name}: {times}", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of which medians are taken: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--program", default=executable(NAME), help="default: %(default)s")
    parser.add_argument("--baseline", default=QEMUS, help="what it is compared to: %(default)s")
    options = parser.parse_args()
    found = []
    for size in SIZES:
        found += measure(options.program, options.baseline, size, options.rounds)
    print(table(found))
    print(f"\nBaseline: QEMU's vhost-user-gpu, in C. Medians of {options.rounds} alternating rounds.")
    if options.json is not None:
        save(options.json, found, rounds=options.rounds, frames=FRAMES)


if __name__ == "__main__":
    main()
