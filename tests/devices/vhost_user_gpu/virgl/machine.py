"""The installed program with --virgl, a guest with its hands on it, and a front-end that shows it."""

import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from tests.programs import Program, connected, executable
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import Framebuffer, GpuDriver, Rect, RefusedCommand
from vhostd.frontend.drivers.gpu_3d import Color, Context, clear, create_3d
from vhostd.frontend.drivers.gpu_display import GpuDisplay
from vhostd.vhost_user.messages import SET_STATUS
from vhostd.wire.rows import U64

SIZE = (200, 100)
WHOLE: Rect = (0, 0, *SIZE)
ORANGE: Color = (1.0, 0.5, 0.0, 1.0)
BLUE: Color = (0.0, 0.0, 1.0, 1.0)
MEMORY = 96 << 20


@dataclass
class Machine:
    """A program, and a guest whose driver has started."""

    program: Program
    frontend: Frontend
    memory: SharedMemory
    driver: GpuDriver
    display: GpuDisplay

    async def context(self, number: int = 1) -> Context:
        """A new 3D context."""
        context = Context(self.driver, number)
        await context.create()
        return context

    async def monitor(self, context: Context, resource: int, scanout: int = 0) -> None:
        """Shows a new texture, in which the context may draw."""
        await create_3d(self.driver, resource, *SIZE)
        await context.attach(resource)
        await self.driver.set_scanout(scanout, resource, WHOLE)

    async def paint(self, context: Context, resource: int, color: Color) -> None:
        """Fills a texture, and has it shown where it is shown."""
        await context.submit(clear(1000 + resource, resource, color))
        await self.driver.flush(resource, WHOLE)

    async def shows(self, color: Color, scanout: int = 0) -> None:
        """Waits until a scan-out has this color all over."""
        monitor = self.display.monitors[scanout]
        await self.display.until(lambda: bytes(monitor.pixels) == pixels(color))

    async def reset(self) -> None:
        """The driver starts anew."""
        await self.driver.stop(self.frontend)
        await self.frontend.call(SET_STATUS, U64(0))
        await self.frontend.negotiate()
        self.driver = await GpuDriver.start(self.frontend, self.memory, fences=self.driver.fences)

    def picture(self) -> Framebuffer:
        """Guest memory for a picture, in pages in a random order."""
        return Framebuffer(self.memory, *SIZE, scattered=True)

    def renderer(self) -> int:
        """The renderer's pid: the program's child's child."""
        (spawner,) = children(self.program.pid)
        (renderer,) = children(spawner)
        return renderer


@asynccontextmanager
async def machine(*options: str, features: int | None = None, fences: bool = False) -> AsyncIterator[Machine]:
    """A guest that has started its driver."""
    command = [executable("vhost-user-gpu"), "--log-level=warning", "--virgl", *options]
    with ExitStack() as stack:
        program, sock = stack.enter_context(connected(command))
        frontend = stack.enter_context(closing(Frontend(sock)))
        memory = stack.enter_context(closing(SharedMemory(MEMORY)))
        await frontend.negotiate(features)
        await frontend.share(memory)
        driver = await GpuDriver.start(frontend, memory, fences=fences)
        display = stack.enter_context(closing(await GpuDisplay.show(frontend)))
        it = Machine(program, frontend, memory, driver, display)
        try:
            yield it
        finally:
            it.driver.close()
        frontend.close()
        status, lines = program.ends()
        assert status == 0
        assert not any("Traceback" in line or "Exception" in line for line in lines), lines


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def resident(pid: int) -> int:
    """A process's resident memory in KiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def pixels(color: Color) -> bytes:
    """A whole picture of one color."""
    red, green, blue, alpha = (round(255 * part) for part in color)
    return bytes((blue, green, red, alpha)) * (SIZE[0] * SIZE[1])


async def refused(command: Awaitable[object]) -> int:
    """The error with which a command is answered; 0 if with none."""
    try:
        await command
    except RefusedCommand as error:
        return error.code
    return 0
