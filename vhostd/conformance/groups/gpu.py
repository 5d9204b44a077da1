"""The data plane of a GPU in 2D, with the display's socket (virtio 1.3, 5.7; QEMU's vhost-user-gpu.rst).

**Errors.** The specification names an error for each cause, and no driver tells them apart. So a command that
cannot be done must get *an* error; which one is a should.
"""

import os
import struct
from collections.abc import Callable, Coroutine
from typing import Any, Self

from vhostd.conformance.check import Group, Needs
from vhostd.conformance.trial import Trial
from vhostd.conformance.verdict import Failed, expect, skip
from vhostd.frontend import Framebuffer, Frontend, GpuDisplay, GpuDriver, SharedMemory
from vhostd.frontend.drivers import gpu
from vhostd.frontend.drivers.gpu import (
    ERR_PARAMETER,
    ERR_RESOURCE,
    ERR_SCANOUT,
    HEADER,
    PIXEL,
    RefusedCommand,
)
from vhostd.frontend.drivers.gpu_display import UPDATE, Cursor
from vhostd.wire.rows import Bit

GPU = Group("GPU", "GPU, 2D", "virtio 1.3, 5.7")

IS_GPU = Needs(kinds=("gpu",))
EDID = Bit(gpu.EDID)
EDID.name = "VIRTIO_GPU_F_EDID"
WIDTH, HEIGHT = 64, 32
WHOLE = (0, 0, WIDTH, HEIGHT)
MODE = (1024, 768)
CURSOR = 2  # the id of its resource
NOWHERE = 77  # no resource has this id


class Card:
    """A GPU whose driver runs, and the display that its front-end has."""

    def __init__(
        self, frontend: Frontend, memory: SharedMemory, driver: GpuDriver, display: GpuDisplay
    ) -> None:
        self.frontend = frontend
        self.memory = memory
        self.driver = driver
        self.display = display

    @classmethod
    async def start(cls, trial: Trial, *, fences: bool = False) -> Self:
        """Connects, shows a display of one monitor, and starts both queues."""
        frontend, memory = await trial.negotiate(), trial.memory()
        await frontend.share(memory)
        display = trial.owns(await GpuDisplay.show(frontend, modes=(MODE,)))
        driver = trial.owns(await GpuDriver.start(frontend, memory, size=64, fences=fences))
        return cls(frontend, memory, driver, display)

    async def picture(self, resource: int = 1, *, scattered: bool = False) -> tuple[Framebuffer, bytes]:
        """A resource of random pixels, with its backing; nothing is shown yet."""
        picture = Framebuffer(self.memory, WIDTH, HEIGHT, scattered=scattered)
        pixels = os.urandom(picture.size)
        picture.write(0, pixels)
        await self.driver.create_2d(resource, WIDTH, HEIGHT)
        await self.driver.attach_backing(resource, picture.ranges)
        return picture, pixels

    async def show(self, resource: int = 1, *, scattered: bool = False) -> bytes:
        """A picture on the first monitor, as a driver shows it; its pixels."""
        _, pixels = await self.picture(resource, scattered=scattered)
        await self.driver.set_scanout(0, resource, WHOLE)
        await self.driver.transfer(resource, WHOLE)
        await self.driver.flush(resource, WHOLE)
        return pixels

    async def point(self) -> Cursor:
        """A cursor of random pixels at 5, 6, on a monitor that is on; what the display has of it."""
        await self.expect_shown(await self.show())
        shape = Framebuffer(self.memory, 64, 64)
        pixels = os.urandom(shape.size)
        shape.write(0, pixels)
        await self.driver.create_2d(CURSOR, 64, 64, gpu.B8G8R8A8)
        await self.driver.attach_backing(CURSOR, shape.ranges)
        await self.driver.transfer(CURSOR, shape.whole)
        await self.driver.update_cursor(0, 5, 6, CURSOR, 1, 2)
        there = self.display.monitors[0].cursor
        await self.soon(
            lambda: there.is_visible and there.shape == pixels, "the display did not get the cursor"
        )
        return there

    async def soon(self, holds: Callable[[], bool], otherwise: str) -> None:
        """Expects this of the display, after some messages."""
        try:
            await self.display.until(holds)
        except TimeoutError:
            raise Failed(otherwise) from None

    async def expect_shown(self, pixels: bytes) -> None:
        """Expects the first monitor to show these pixels soon."""
        try:
            await self.display.until(lambda: colours(self.display.monitors[0].pixels) == colours(pixels))
        except TimeoutError:
            monitor = self.display.monitors[0]
            raise Failed(
                f"the display did not get the picture: it has {monitor.width}x{monitor.height} after "
                f"{self.display.requests[UPDATE]} updates"
            ) from None


def colours(pixels: bytes | bytearray) -> bytes:
    """Pixels without their fourth byte, which means nothing."""
    kept = bytearray(pixels)
    kept[3::PIXEL] = bytes(len(kept) // PIXEL)
    return bytes(kept)


async def refused(what: str, command: Coroutine[Any, Any, Any], code: int | None = None) -> None:
    """Expects a command to be refused; with this code, if one is given."""
    try:
        await command
    except RefusedCommand as refusal:
        expect(
            code in (None, refusal.code), f"{what} was answered with {refusal.code:#x}, not {code or 0:#x}"
        )
        return
    raise Failed(f"{what} was done")


@GPU.must(1, "5.7.6.8, GET_DISPLAY_INFO", "The guest is told of the front-end's monitors.", IS_GPU)
async def display_info(trial: Trial) -> None:
    """Shows a display with one monitor of 1024x768: GET_DISPLAY_INFO has it, and no other is enabled."""
    modes = await (await Card.start(trial)).driver.display_info()
    enabled = [(index, mode.width, mode.height) for index, mode in enumerate(modes) if mode.enabled]
    expect(enabled == [(0, *MODE)], f"monitor, width, height: {enabled}, not {[(0, *MODE)]}")


@GPU.must(
    2, "5.7.6.8, GET_EDID", "With EDID the guest gets the front-end's.", IS_GPU._replace(features=(EDID,))
)
async def edid(trial: Trial) -> None:
    """Sends GET_EDID of monitor 0: the answer is what the display gives, or a block of the program's own."""
    data = await (await Card.start(trial)).driver.edid(0)
    expect(len(data) >= 128, f"{len(data)} bytes of EDID, where a block has 128")


@GPU.must(3, "5.7.6.8, RESOURCE_FLUSH", "What was transferred and flushed is shown.", IS_GPU)
async def a_picture(trial: Trial) -> None:
    """Creates a resource of random pixels, shows it, transfers and flushes: the display has those pixels.
    Then the same with other pixels.
    """
    card = await Card.start(trial)
    picture, pixels = await card.picture()
    await card.driver.set_scanout(0, 1, WHOLE)
    for _ in range(2):
        await card.driver.present(1, WHOLE)
        await card.expect_shown(pixels)
        pixels = os.urandom(picture.size)
        picture.write(0, pixels)


@GPU.must(4, "5.7.6.8, RESOURCE_ATTACH_BACKING", "Backing may lie anywhere in the guest's memory.", IS_GPU)
async def scattered_backing(trial: Trial) -> None:
    """The same with a backing of pages in a random order."""
    card = await Card.start(trial)
    await card.expect_shown(await card.show(scattered=True))


@GPU.must(5, "5.7.6.8, TRANSFER_TO_HOST_2D", "Only the rectangle is transferred, from its offset.", IS_GPU)
async def part_of_a_picture(trial: Trial) -> None:
    """Shows a picture, changes all of its backing, transfers and flushes a rectangle in its middle."""
    card = await Card.start(trial)
    picture, before = await card.picture()
    await card.driver.set_scanout(0, 1, WHOLE)
    await card.driver.present(1, WHOLE)
    after = os.urandom(picture.size)
    picture.write(0, after)
    x, y, width, height = 8, 4, 16, 8
    await card.driver.present(1, (x, y, width, height), (y * WIDTH + x) * PIXEL)
    expected = bytearray(before)
    for row in range(y, y + height):
        start = (row * WIDTH + x) * PIXEL
        expected[start : start + width * PIXEL] = after[start : start + width * PIXEL]
    await card.expect_shown(bytes(expected))


@GPU.must(6, "5.7.6.8, RESOURCE_FLUSH", "What was not flushed is not shown.", IS_GPU)
async def without_flush(trial: Trial) -> None:
    """Shows a picture, transfers another one over it, and flushes one row: the other rows stay."""
    card = await Card.start(trial)
    picture, before = await card.picture()
    await card.driver.set_scanout(0, 1, WHOLE)
    await card.driver.present(1, WHOLE)
    await card.expect_shown(before)
    after = os.urandom(picture.size)
    picture.write(0, after)
    await card.driver.transfer(1, WHOLE)
    await card.driver.flush(1, (0, 0, WIDTH, 1))
    await card.expect_shown(after[: WIDTH * PIXEL] + before[WIDTH * PIXEL :])


@GPU.must(7, "5.7.6.8, SET_SCANOUT", "Resource 0 switches a monitor off.", IS_GPU)
async def switch_off(trial: Trial) -> None:
    """Shows a picture, then sends SET_SCANOUT of resource 0: the display is told of a size of 0."""
    card = await Card.start(trial)
    await card.expect_shown(await card.show())
    await card.driver.set_scanout(0, 0)
    await card.soon(lambda: not card.display.monitors[0].width, "the monitor was not switched off")


@GPU.must(9, "5.7.6.7", "A fence is named in the answer.", IS_GPU)
async def fences(trial: Trial) -> None:
    """Shows a picture with a fence in each command: each answer has its flag, its id and its context."""
    card = await Card.start(trial, fences=True)
    await card.expect_shown(await card.show())


@GPU.must(10, "5.7.6.8", "A command on a resource that does not exist gets an error.", IS_GPU)
async def no_resource(trial: Trial) -> None:
    """Transfers, flushes, shows, unrefs and backs resource 77: each is refused."""
    driver = (await Card.start(trial)).driver
    await refused("TRANSFER_TO_HOST_2D of no resource", driver.transfer(NOWHERE, WHOLE))
    await refused("RESOURCE_FLUSH of no resource", driver.flush(NOWHERE, WHOLE))
    await refused("SET_SCANOUT of no resource", driver.set_scanout(0, NOWHERE, WHOLE))
    await refused("RESOURCE_UNREF of no resource", driver.unref(NOWHERE))
    await refused("RESOURCE_DETACH_BACKING of no resource", driver.detach_backing(NOWHERE))


@GPU.must(11, "5.7.6.8", "A rectangle outside its resource gets an error.", IS_GPU)
async def outside(trial: Trial) -> None:
    """Transfers, flushes and shows rectangles that leave the resource, also such that overflow 32 bits."""
    card = await Card.start(trial)
    await card.picture()
    for rect in (
        (0, 0, WIDTH + 1, HEIGHT),
        (0, 1, WIDTH, HEIGHT),
        (2**32 - 1, 0, 2, 1),
        (1, 0, 2**32 - 1, 1),
    ):
        await refused(f"TRANSFER_TO_HOST_2D of {rect}", card.driver.transfer(1, rect))
        await refused(f"RESOURCE_FLUSH of {rect}", card.driver.flush(1, rect))
        await refused(f"SET_SCANOUT of {rect}", card.driver.set_scanout(0, 1, rect))


@GPU.must(12, "5.7.6.8, SET_SCANOUT", "A monitor that the device does not have gets an error.", IS_GPU)
async def no_scanout(trial: Trial) -> None:
    """Shows a resource on monitor 16: it is refused."""
    card = await Card.start(trial)
    await card.picture()
    await refused("SET_SCANOUT of monitor 16", card.driver.set_scanout(16, 1, WHOLE))


@GPU.must(13, "5.7.6.8, RESOURCE_CREATE_2D", "Id 0, an id in use and an unknown format get an error.", IS_GPU)
async def bad_resources(trial: Trial) -> None:
    """Creates resource 0, resource 1 twice, and one of format 0xee."""
    driver = (await Card.start(trial)).driver
    await refused("RESOURCE_CREATE_2D of id 0", driver.create_2d(0, WIDTH, HEIGHT))
    await driver.create_2d(1, WIDTH, HEIGHT)
    await refused("RESOURCE_CREATE_2D of an id in use", driver.create_2d(1, WIDTH, HEIGHT))
    await refused("RESOURCE_CREATE_2D of format 0xee", driver.create_2d(2, WIDTH, HEIGHT, kind=0xEE))


@GPU.must(14, "5.7.6.8, RESOURCE_CREATE_2D", "A picture of absurd size gets an error.", IS_GPU)
async def absurd_sizes(trial: Trial) -> None:
    """Creates pictures of 2^32 - 1 pixels square, and of 2^15 by 2^17, whose bytes overflow 32 bits."""
    driver = (await Card.start(trial)).driver
    for width, height in ((2**32 - 1, 2**32 - 1), (2**15, 2**17)):
        await refused(f"RESOURCE_CREATE_2D of {width}x{height}", driver.create_2d(1, width, height))


@GPU.must(15, "5.7.6.8, RESOURCE_ATTACH_BACKING", "Backing outside the guest's memory is never read.", IS_GPU)
async def backing_nowhere(trial: Trial) -> None:
    """Gives a resource backing at 2^60, and transfers it: the one or the other is refused."""
    driver = (await Card.start(trial)).driver
    await driver.create_2d(1, WIDTH, HEIGHT)

    async def transfer() -> None:
        await driver.attach_backing(1, [(2**60, WIDTH * HEIGHT * PIXEL)])
        await driver.transfer(1, WHOLE)

    await refused("TRANSFER_TO_HOST_2D from outside the guest's memory", transfer())


@GPU.should(16, "5.7.6.8, TRANSFER_TO_HOST_2D", "An offset beyond the backing gets an error.", IS_GPU)
async def offset_beyond_the_backing(trial: Trial) -> None:
    """Transfers from offsets behind the end of the backing, and of 2^64 - 4: each is refused."""
    card = await Card.start(trial)
    picture, _ = await card.picture()
    for offset in (picture.size, 2**64 - PIXEL):
        what = f"TRANSFER_TO_HOST_2D from offset {offset} of {picture.size}"
        await refused(what, card.driver.transfer(1, WHOLE, offset))


@GPU.must(17, "5.7.6.7", "An unknown command gets an error.", IS_GPU)
async def unknown_command(trial: Trial) -> None:
    """Sends command 0x1ff: the answer's type is an error."""
    answer = await (await Card.start(trial)).driver.command(HEADER.pack(0x1FF, 0, 0, 0, 0), HEADER.size)
    (code,) = struct.unpack_from("<I", answer.ljust(4, b"\0"))
    expect(0x1200 <= code < 0x1300, f"command 0x1ff was answered with {code:#x}")


@GPU.must(18, "5.7.6.7", "A command that is cut costs the ring at most.", IS_GPU)
async def cut_command(trial: Trial) -> None:
    """Sends 10 bytes of a header, and RESOURCE_CREATE_2D without its body."""
    frontend, memory = await trial.negotiate(), trial.memory()
    await frontend.share(memory)
    trial.owns(await GpuDisplay.show(frontend))
    queue = await trial.start(frontend, memory)
    await trial.start(frontend, memory, 1)
    for data in (HEADER.pack(0x101, 0, 0, 0, 0)[:10], HEADER.pack(0x101, 0, 0, 0, 0)):
        queue.add(data, HEADER.size)
        queue.kick()
    await trial.provoke(frontend, queue)


@GPU.should(19, "5.7.6.7", "Errors are those of their cause.", IS_GPU)
async def causes(trial: Trial) -> None:
    """Looks for INVALID_RESOURCE_ID, INVALID_SCANOUT_ID and INVALID_PARAMETER."""
    card = await Card.start(trial)
    await card.picture()
    await refused("RESOURCE_UNREF of no resource", card.driver.unref(NOWHERE), ERR_RESOURCE)
    await refused("SET_SCANOUT of monitor 16", card.driver.set_scanout(16, 1, WHOLE), ERR_SCANOUT)
    await refused("RESOURCE_FLUSH outside", card.driver.flush(1, (0, 0, WIDTH + 1, 1)), ERR_PARAMETER)


@GPU.must(20, "5.7.6.8, RESOURCE_UNREF", "A resource may go while it is shown.", IS_GPU)
async def unref_while_shown(trial: Trial) -> None:
    """Shows a picture, unrefs it, and shows another one under its id."""
    card = await Card.start(trial)
    await card.expect_shown(await card.show())
    await card.driver.unref(1)
    await card.expect_shown(await card.show())


@GPU.must(21, "5.7.6.10", "A cursor is shown where the guest puts it.", IS_GPU)
async def cursor(trial: Trial) -> None:
    """Gives the cursor a resource of 64x64 pixels and a place, and moves it."""
    card = await Card.start(trial)
    there = await card.point()
    expect((there.x, there.y) == (5, 6), f"the cursor is at {there.x}, {there.y}, not at 5, 6")
    await card.driver.move_cursor(0, 7, 8, CURSOR)
    await card.soon(lambda: (there.x, there.y) == (7, 8), "the cursor was not moved")


@GPU.should(23, "5.7.6.10", "UPDATE_CURSOR with resource 0 hides the cursor, as Linux has it.", IS_GPU)
async def hidden_cursor(trial: Trial) -> None:
    """Shows a cursor, and updates it with resource 0: the display is told to hide it."""
    card = await Card.start(trial)
    there = await card.point()
    await card.driver.update_cursor(0, 5, 6, 0)
    await card.soon(lambda: not there.is_visible, "the cursor is still shown")


@GPU.should(
    22, "5.7.6.8, RESOURCE_CREATE_2D", "A guest cannot have memory of the host without bound.", IS_GPU
)
async def memory_is_bounded(trial: Trial) -> None:
    """Creates 1024 pictures of 4096x4096 pixels, 64 GiB: the device refuses sooner or later."""
    driver = (await Card.start(trial)).driver
    for resource in range(1, 1025):
        try:
            await driver.create_2d(resource, 4096, 4096)
        except RefusedCommand:
            if resource == 1:
                skip("it has no pictures of that size at all")
            return
    raise Failed("64 GiB of pictures were created")
