"""The installed program with --virgl: a scripted 3D driver, the host's real GL, and a scripted front-end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from tests.conftest import Run
from tests.programs import Program, connected, executable
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import PIXEL, Framebuffer, GpuDriver, Rect
from vhostd.frontend.drivers.gpu_3d import VIRGL, Box, Context, clear, create_3d
from vhostd.frontend.drivers.gpu_display import GpuDisplay

SIZE = (200, 100)
WHOLE: Rect = (0, 0, *SIZE)
ORANGE = (1.0, 0.5, 0.0, 1.0)
ORANGE_BYTES = bytes((0, 128, 255, 255))


@dataclass
class Machine:
    """A program, and a guest with its hands on it."""

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


@asynccontextmanager
async def machine(*options: str, features: int | None = None, fences: bool = False) -> AsyncIterator[Machine]:
    """A guest that has started its driver, and a front-end that shows what it shows."""
    command = [executable("vhost-user-gpu"), "--log-level=warning", "--virgl", *options]
    with ExitStack() as stack:
        program, sock = stack.enter_context(connected(command))
        frontend = stack.enter_context(closing(Frontend(sock)))
        memory = stack.enter_context(closing(SharedMemory(64 << 20)))
        await frontend.negotiate(features)
        await frontend.share(memory)
        driver = stack.enter_context(closing(await GpuDriver.start(frontend, memory, fences=fences)))
        display = stack.enter_context(closing(await GpuDisplay.show(frontend)))
        yield Machine(program, frontend, memory, driver, display)


def test_what_a_context_has_drawn_is_shown(run_async: Run) -> None:
    async def script() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, *SIZE)
            await context.attach(1)
            await it.driver.set_scanout(0, 1, WHOLE)
            await context.submit(clear(7, 1, ORANGE))
            await it.driver.flush(1, WHOLE)
            monitor = it.display.monitors[0]
            await it.display.until(lambda: bytes(monitor.pixels) == ORANGE_BYTES * SIZE[0] * SIZE[1])
            assert (monitor.width, monitor.height) == SIZE

    run_async(script)
