"""3D in its unit, with the drop-in of the page."""

import asyncio
import re
from contextlib import closing
from itertools import takewhile
from pathlib import Path

from tests.systemd.manager import Manager
from tests.systemd.units import CHECKOUT
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import GpuDriver
from vhostd.frontend.drivers.gpu_3d import Context, clear, create_3d

PAGE = CHECKOUT / "docs/systemd.md"
PROGRAM = "vhost-user-gpu"


def drop_in() -> list[str]:
    """The page's drop-in for 3D, but for what takes a GPU."""
    _, _, rest = PAGE.read_text().partition("3D (`--virgl`)")
    lines = re.split("```\n", rest)[1].splitlines()
    return list(takewhile(lambda line: line != "PrivateDevices=no", lines[1:]))


async def draw(path: Path) -> None:
    """What a guest does that draws, and waits for it."""
    with closing(await Frontend.connect(path)) as frontend, closing(SharedMemory(8 << 20)) as memory:
        await frontend.negotiate()
        await frontend.share(memory)
        driver = await GpuDriver.start(frontend, memory, fences=True)
        with closing(driver):
            context = Context(driver, 1)
            await context.create()
            await create_3d(driver, 1, 64, 64)
            await context.attach(1)
            await context.submit(clear(7, 1, (1.0, 0.0, 0.0, 1.0)))
            await driver.set_scanout(0, 1, (0, 0, 64, 64))
            await driver.flush(1, (0, 0, 64, 64))


def test_a_service_draws(tmp_path: Path) -> None:
    lines = drop_in()
    assert "MemoryDenyWriteExecute=no" in lines
    with Manager(tmp_path) as manager:
        manager.configure(PROGRAM, "--virgl")
        manager.drop_in(f"{PROGRAM}@a.service", *lines)
        manager.run("start", f"{PROGRAM}@a.socket")
        for _ in range(2):  # the second one has a renderer that was started in the sandbox
            asyncio.run(asyncio.wait_for(draw(manager.socket_path(PROGRAM)), 60))
        manager.run("stop", f"{PROGRAM}@a.service")
        assert manager.show(f"{PROGRAM}@a.service", "Result") == "success"
