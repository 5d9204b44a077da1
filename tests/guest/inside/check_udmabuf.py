"""vhost-user-gpu with dmabufs: run by tests/guest/test_gpu.py inside the guest, which has /dev/udmabuf.

A scripted front-end is the virtual machine; it gets dmabufs, and looks into them.
"""

import asyncio
import fcntl
import mmap
import random
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers.gpu import Framebuffer, GpuDriver
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

MODE = (320, 240)
STRIDE = 4 * MODE[0]
WHOLE = (0, 0, *MODE)
BLOB, PICTURE = 1, 2
PATIENCE = 20.0

Scenario = Callable[[GpuDriver, GpuDisplay, SharedMemory], Awaitable[None]]


def run(scenario: Scenario, *options: str, features: int = EDID | DMABUF2, seal: bool = True) -> str:
    """Runs a scenario against the program, which must end with status 0; returns what it logged."""

    async def main() -> None:
        memory = SharedMemory(8 << 20)
        if seal:  # as QEMU does with its memfds; udmabuf insists
            fcntl.fcntl(memory.fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        frontend = Frontend(ours)
        await frontend.negotiate()
        await frontend.share(memory)
        display = await GpuDisplay.show(frontend, features=features, modes=[MODE])
        driver = await GpuDriver.start(frontend, memory)
        await display.until(lambda: display.accepted is not None)
        try:
            async with asyncio.timeout(PATIENCE):
                await scenario(driver, display, memory)
        finally:
            frontend.close()
            driver.close()
            display.close()
            memory.close()

    ours, theirs = socket.socketpair()
    with theirs:
        program = Path(sys.executable).with_name("vhost-user-gpu")
        command = [str(program), f"--fd={theirs.fileno()}", *options]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    try:
        asyncio.run(main())
        _, log = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 0, log
    return log.decode()


def painted(memory: SharedMemory, seed: int) -> tuple[Framebuffer, bytes]:
    """A picture in scattered pages of the guest's memory, and its pixels."""
    framebuffer = Framebuffer(memory, *MODE, scattered=True)
    pixels = random.Random(seed).randbytes(framebuffer.size)
    framebuffer.write(0, pixels)
    return framebuffer, pixels


async def show_blob(driver: GpuDriver, framebuffer: Framebuffer) -> None:
    """Shows the picture; that it is shown at all paints it, and so does the flush, if not both together."""
    await driver.create_blob(BLOB, framebuffer.ranges, framebuffer.size)
    await driver.set_scanout_blob(0, BLOB, WHOLE, width=MODE[0], height=MODE[1], stride=STRIDE)
    await driver.flush(BLOB, WHOLE)


async def show_picture(driver: GpuDriver, framebuffer: Framebuffer) -> None:
    await driver.create_2d(PICTURE, *MODE)
    await driver.attach_backing(PICTURE, framebuffer.ranges)
    await driver.set_scanout(0, PICTURE, WHOLE)
    await driver.present(PICTURE, WHOLE)


def seen(display: GpuDisplay, size: int) -> bytes:
    """What is in the dmabuf of the first scan-out."""
    dmabuf = display.monitors[0].dmabuf
    assert dmabuf is not None
    with mmap.mmap(dmabuf.fileno(), -(-size // mmap.PAGESIZE) * mmap.PAGESIZE) as mapped:
        return mapped[:size]


@pytest.mark.parametrize(
    ("features", "message"), [(EDID | DMABUF2, DMABUF_SCANOUT2), (EDID, DMABUF_SCANOUT)], ids=["2", "1"]
)
def test_a_blob_is_the_guest_s_memory_itself(features: int, message: int) -> None:
    async def scenario(driver: GpuDriver, display: GpuDisplay, memory: SharedMemory) -> None:
        framebuffer, pixels = painted(memory, 1)
        await show_blob(driver, framebuffer)
        await display.until(lambda: display.requests[DMABUF_UPDATE] > 0)
        assert display.requests[message] == 1
        assert seen(display, framebuffer.size) == pixels
        framebuffer.write(STRIDE, b"\xff" * STRIDE)  # and what the guest writes later is there at once
        assert seen(display, framebuffer.size) == pixels[:STRIDE] + b"\xff" * STRIDE + pixels[2 * STRIDE :]
        assert display.requests[SCANOUT] == display.requests[UPDATE] == 0

    run(scenario, "--dmabuf", features=features)


def test_a_picture_after_a_blob_is_copied_again() -> None:
    async def scenario(driver: GpuDriver, display: GpuDisplay, memory: SharedMemory) -> None:
        await show_blob(driver, painted(memory, 1)[0])
        await display.until(lambda: display.requests[DMABUF_UPDATE] > 0)
        framebuffer, pixels = painted(memory, 2)
        await show_picture(driver, framebuffer)
        await display.until(lambda: display.monitors[0].pixels == pixels)
        assert display.monitors[0].dmabuf is None
        assert display.requests[DMABUF_SCANOUT2] == 2  # the second one says that there is none any more

    run(scenario, "--dmabuf")


def test_an_unanswered_update_holds_back_pictures_and_nothing_else() -> None:
    async def scenario(driver: GpuDriver, display: GpuDisplay, memory: SharedMemory) -> None:
        display.silent.add(DMABUF_UPDATE)
        await show_blob(driver, painted(memory, 1)[0])
        await display.until(lambda: display.requests[DMABUF_UPDATE] > 0)
        await driver.flushes(100, BLOB, WHOLE)
        assert display.requests[DMABUF_UPDATE] == 1
        display.silent.clear()
        display.reply(DMABUF_UPDATE)
        await display.until(lambda: display.requests[DMABUF_UPDATE] == 2)

    run(scenario, "--dmabuf")


def test_memory_that_may_shrink_is_copied() -> None:
    async def scenario(driver: GpuDriver, display: GpuDisplay, memory: SharedMemory) -> None:
        framebuffer, pixels = painted(memory, 1)
        await show_blob(driver, framebuffer)
        await display.until(lambda: display.monitors[0].pixels == pixels)

    assert "scan-out 0 is copied: no dmabuf: " in run(scenario, "--dmabuf", seal=False)


def test_without_the_option_a_blob_is_copied() -> None:
    async def scenario(driver: GpuDriver, display: GpuDisplay, memory: SharedMemory) -> None:
        framebuffer, pixels = painted(memory, 1)
        await show_blob(driver, framebuffer)
        await display.until(lambda: display.monitors[0].pixels == pixels)

    run(scenario)
