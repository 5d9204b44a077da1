"""vhost-user-gpu --virgl --dmabuf, inside a guest that has /dev/udmabuf; tests/guest/test_gpu_3d.py runs it.

    check_dmabuf_3d.py PYTHON          in software: PYTHON finds a Mesa that exports what llvmpipe draws
    check_dmabuf_3d.py PYTHON NODE     on the guest's GPU, which looks into the dmabufs as well

PYTHON runs the program. A scripted front-end is the virtual machine, and gets the dmabufs.
"""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable

from tests.guest.agent_display import card_path
from tests.guest.inside.gl_import import Importer
from tests.guest.kms import Card
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import Framebuffer, GpuDriver, Rect
from vhostd.frontend.drivers.gpu_3d import Box, Color, Context, clear, create_3d
from vhostd.frontend.drivers.gpu_display import (
    DMABUF2,
    DMABUF_SCANOUT,
    DMABUF_SCANOUT2,
    DMABUF_UPDATE,
    EDID,
    SCANOUT,
    UPDATE,
    GpuDisplay,
)
from vhostd.frontend.drivers.gpu_dmabuf import Dmabuf

SIZE = (200, 100)
WHOLE: Rect = (0, 0, *SIZE)
PART: Rect = (30, 20, 100, 50)
PATIENCE = 60.0
CLEARS = 10

Look = Callable[[Dmabuf], bytes]


class Check:
    """A guest with two contexts, and a display that can `look` into dmabufs."""

    def __init__(
        self, frontend: Frontend, memory: SharedMemory, driver: GpuDriver, display: GpuDisplay, look: Look
    ) -> None:
        self.frontend = frontend
        self.look = look
        self.memory = memory
        self.driver = driver
        self.display = display
        self.contexts = [Context(driver, number) for number in (1, 2)]

    async def run(self) -> None:
        """All of it. One program is started for all, since Mesa needs ten seconds for that."""
        for context in self.contexts:
            await context.create()
        for flags in (0, 1):
            await self.upload(1 + flags, flags)
        for number in range(CLEARS):
            await self.draw(number)
        await self.show_part()
        await self.show_elsewhere()
        await self.driver.unref(2)
        await self.display.until(lambda: self.display.monitors[0].width == 0)
        assert self.display.monitors[0].dmabuf is None

    async def upload(self, resource: int, flags: int) -> None:
        """What comes from the guest's memory is in the dmabuf, the right way up."""
        await create_3d(self.driver, resource, *SIZE, flags=flags)
        for context in self.contexts:
            await context.attach(resource)
        picture = Framebuffer(self.memory, *SIZE, scattered=True)
        noise = random.Random(flags).randbytes(picture.size)
        picture.write(0, noise)
        await self.driver.attach_backing(resource, picture.ranges)
        await self.contexts[0].transfer(resource, Box(0, 0, 0, *SIZE, 1), to_host=True)
        await self.driver.set_scanout(0, resource, WHOLE)
        await self.driver.flush(resource, WHOLE)
        await self.until_shared(noise)
        dmabuf = self.display.monitors[0].dmabuf
        assert dmabuf is not None
        assert dmabuf.flags == flags

    async def draw(self, number: int) -> None:
        """What the contexts draw in turn is there when an update comes, all of it."""
        color = (20 * number / 255, 1.0, 1 - 20 * number / 255, 1.0)
        context = self.contexts[number % 2]
        await context.submit(clear(100 + number, 2, color))
        updates = self.display.requests[DMABUF_UPDATE]
        await self.driver.flush(2, WHOLE)
        await self.display.until(lambda: self.display.requests[DMABUF_UPDATE] > updates)
        assert self.shared() == solid(color, WHOLE)
        assert self.display.requests[SCANOUT] == self.display.requests[UPDATE] == 0

    async def show_part(self) -> None:
        """A part is copied, also from a texture that has been a dmabuf."""
        await self.driver.set_scanout(0, 2, PART)
        for color in ((1.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 1.0)):
            await self.contexts[0].submit(clear(300 + round(color[0]), 2, color))
            await self.driver.flush(2, WHOLE)
            wanted = solid(color, PART)
            await self.display.until(lambda wanted=wanted: self.display.monitors[0].pixels == wanted)  # type: ignore[misc]
        assert self.display.monitors[0].dmabuf is None

    async def show_elsewhere(self) -> None:
        """Another display, which has never heard of modifiers, gets the whole picture as it is."""
        await self.driver.set_scanout(0, 2, WHOLE)
        self.display.close()
        self.display = await GpuDisplay.show(self.frontend, features=EDID, modes=[SIZE])
        await self.until_shared(solid((0.0, 0.0, 1.0, 1.0), WHOLE))
        assert self.display.requests[DMABUF_SCANOUT] == 1
        assert self.display.requests[DMABUF_SCANOUT2] == 0

    async def until_shared(self, pixels: bytes) -> None:
        monitor = self.display.monitors[0]
        await self.display.until(lambda: monitor.dmabuf is not None and self.shared() == pixels)

    def shared(self) -> bytes:
        """What is in the dmabuf of the first monitor."""
        dmabuf = self.display.monitors[0].dmabuf
        assert dmabuf is not None
        return self.look(dmabuf)


def solid(color: Color, rect: Rect) -> bytes:
    """A picture of one color."""
    red, green, blue, alpha = (round(255 * part) for part in color)
    return bytes((blue, green, red, alpha)) * (rect[2] * rect[3])


async def main(ours: socket.socket, look: Look) -> None:
    """Plays the front-end, the driver and the display."""
    memory = SharedMemory(8 << 20)
    frontend = Frontend(ours)
    frontend.patience = PATIENCE
    await frontend.negotiate()
    await frontend.share(memory)
    display = await GpuDisplay.show(frontend, features=EDID | DMABUF2, modes=[SIZE])
    driver = await GpuDriver.start(frontend, memory)
    check = Check(frontend, memory, driver, display, look)
    try:
        async with asyncio.timeout(PATIENCE):
            await check.run()
    finally:
        frontend.close()
        driver.close()
        check.display.close()
        memory.close()


def play(python: str, node: str = "") -> None:
    """Starts the program, and looks at what it logs."""
    look = Importer(Card(card_path())).pixels if node else Dmabuf.pixels
    ours, theirs = socket.socketpair()
    with theirs:
        command = [python, "-m", "vhost_user_gpu", f"--fd={theirs.fileno()}", "--virgl", "--dmabuf"]
        command += [f"--render-node={node}"] if node else []
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True)
    try:
        asyncio.run(main(ours, look))
    except BaseException:
        process.terminate()
        raise
    finally:
        _, log = process.communicate(timeout=PATIENCE)
        print(log)
    assert process.returncode == 0
    assert ", shown as dmabufs" in log
    assert "no dmabuf" not in log


if __name__ == "__main__":
    play(*sys.argv[1:])
