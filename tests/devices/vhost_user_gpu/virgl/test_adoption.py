"""The installed program with --virgl: contexts that use 2D pictures."""

import os
import random
import signal

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_gpu.virgl.machine import (
    BLUE,
    ORANGE,
    SIZE,
    WHOLE,
    Machine,
    machine,
    pixels,
    refused,
)
from vhostd.frontend.drivers.gpu import B8G8R8A8, ERR_OUT_OF_MEMORY, ERR_RESOURCE, ERR_UNSPEC, Framebuffer
from vhostd.frontend.drivers.gpu_3d import Box, clear, copy, create_3d

# Whose loop the script has does not matter to the program.
pytestmark = pytest.mark.parametrize("run_async", ["uvloop"], indirect=True)

ALL = Box(0, 0, 0, *SIZE, 1)
NOISE = random.Random(1).randbytes(4 * SIZE[0] * SIZE[1])


async def picture(it: Machine, number: int, content: bytes = NOISE, kind: int = B8G8R8A8) -> Framebuffer:
    """A 2D picture with this content, and its backing."""
    backing = it.picture()
    backing.write(0, content)
    await it.driver.create_2d(number, *SIZE, kind)
    await it.driver.attach_backing(number, backing.ranges)
    await it.driver.transfer(number, WHOLE)
    return backing


async def shows(it: Machine, content: bytes, scanout: int = 0) -> None:
    await it.display.until(lambda: bytes(it.display.monitors[scanout].pixels) == content)


def test_a_context_looks_a_picture_up(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, *SIZE, flags=0)  # with the first row first, as the picture
            await context.attach(1)
            await it.driver.set_scanout(0, 1, WHOLE)
            await picture(it, 2)
            await context.attach(2)
            await context.submit(copy(1, 2, ALL))
            await it.driver.flush(1, WHOLE)
            await shows(it, NOISE)

    run_async(main)


def test_a_context_draws_in_a_picture_that_is_shown(run_async: Run) -> None:
    """It is shown as before until then, and a driver may go on to fill it."""

    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            backing = await picture(it, 1)
            await it.driver.set_scanout(0, 1, WHOLE)
            await it.driver.flush(1, WHOLE)
            await shows(it, NOISE)
            await context.attach(1)
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)
            backing.write(0, NOISE[::-1])
            await it.driver.present(1, WHOLE)
            await shows(it, NOISE[::-1])
            await it.paint(context, 1, BLUE)
            await it.shows(BLUE)
            await it.driver.unref(1)
            await it.display.until(lambda: it.display.monitors[0].width == 0)

    run_async(main)


def test_what_was_drawn_in_a_picture_comes_back_to_its_backing(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            backing = await picture(it, 1)
            await context.attach(1)
            await context.submit(clear(9, 1, ORANGE))
            await context.transfer(1, ALL, to_host=False)
            assert b"".join(it.memory.map.read(addr, size) for addr, size in backing.ranges) == pixels(ORANGE)

    run_async(main)


def test_all_contexts_have_it_that_were_told_of_it(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            first, second = await it.context(1), await it.context(2)
            await it.monitor(second, 1)
            await picture(it, 2)
            for context in (first, second):
                await context.attach(2)
            await first.submit(clear(9, 2, BLUE))
            await second.submit(copy(1, 2, ALL))
            await it.driver.flush(1, WHOLE)
            await it.shows(BLUE)

    run_async(main)


def test_a_picture_that_is_only_named_outlives_the_renderer(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            await picture(it, 2)
            await context.attach(2)
            await it.paint(context, 1, ORANGE)
            os.kill(it.renderer(), signal.SIGKILL)
            assert await refused(context.submit(clear(9, 1, BLUE))) == ERR_UNSPEC
            assert await refused(context.submit(copy(1, 2, ALL))) == ERR_UNSPEC
            await it.driver.set_scanout(0, 2, WHOLE)
            await it.driver.flush(2, WHOLE)
            await shows(it, NOISE)

    run_async(main)


def test_a_picture_that_went_is_not_used(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            await picture(it, 2)
            await context.attach(2)
            await context.detach(2)
            await picture(it, 3)
            await context.attach(3)
            await it.driver.unref(3)
            await context.submit(copy(1, 3, ALL))  # what the library thinks of it is its own affair
            assert await refused(it.driver.unref(3)) == ERR_RESOURCE
            await it.driver.set_scanout(1, 2, WHOLE)
            await it.driver.flush(2, WHOLE)
            await shows(it, NOISE, 1)

    run_async(main)


def test_pictures_count_as_textures(run_async: Run) -> None:
    """One that is shown needs room for its pixels beside the texture."""

    async def main() -> None:
        async with machine("--max-memory=8M", "--resolution=100x100") as it:
            context = await it.context()
            size = (1200, 1000)
            await it.driver.create_2d(1, *size)
            await it.driver.set_scanout(0, 1, (0, 0, *size))
            await context.attach(1)
            assert await refused(context.submit(clear(9, 1, BLUE))) == ERR_OUT_OF_MEMORY
            await it.driver.flush(1, (0, 0, *size))
            await it.driver.unref(1)

    run_async(main)


def test_pictures_that_contexts_are_told_of_are_limited(run_async: Run) -> None:
    """Those beyond the limit are textures at once."""

    async def main() -> None:
        async with machine() as it:
            contexts = [await it.context(number) for number in range(1, 66)]
            for number in range(1, 65):
                await it.driver.create_2d(number, 8, 8)
                for context in contexts:
                    await context.attach(number)
            await create_3d(it.driver, 100, 8, 8)
            await contexts[0].attach(100)
            await contexts[0].submit(copy(100, 64, Box(0, 0, 0, 8, 8, 1)))

    run_async(main)
