"""The installed program with --virgl: what goes on while a renderer takes long, or when there can be none."""

import asyncio
import os
import random
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_gpu.virgl.machine import (
    BLUE,
    ORANGE,
    SIZE,
    WHOLE,
    Machine,
    children,
    machine,
    refused,
)
from vhostd.frontend.drivers.gpu import ERR_UNSPEC, Command

# Whose loop the script has does not matter to the program.
pytestmark = pytest.mark.parametrize("run_async", ["uvloop"], indirect=True)

NOISE = random.Random(1).randbytes(4 * SIZE[0] * SIZE[1])
CURSOR = (64, 64)
# Commands that do nothing, for context 1. A renderer takes less than four times as many at once.
NOTHING = struct.pack("<IIQIBxxxII", Command.SUBMIT_3D, 0, 0, 1, 0, 3 << 20, 0) + bytes(3 << 20)


@contextmanager
def busy(renderer: int) -> Iterator[None]:
    """A renderer that gets nowhere, as with a shader that loops."""
    os.kill(renderer, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(renderer, signal.SIGCONT)


async def monitor_in_2d(it: Machine, number: int, scanout: int) -> None:
    """A monitor with a 2D picture, and a front-end that shows it."""
    picture = it.picture()
    picture.write(0, NOISE)
    await it.driver.create_2d(number, *SIZE)
    await it.driver.attach_backing(number, picture.ranges)
    await it.driver.set_scanout(scanout, number, WHOLE)
    await it.driver.present(number, WHOLE)
    await it.display.until(lambda: bytes(it.display.monitors[scanout].pixels) == NOISE)


def test_2d_goes_on_beside_3d_that_takes_long(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            with busy(it.renderer()):
                drawn = asyncio.ensure_future(it.paint(context, 1, ORANGE))
                await monitor_in_2d(it, 2, scanout=1)
                assert not drawn.done()
            await drawn
            await it.shows(ORANGE)

    run_async(main)


def test_the_pointer_moves_while_commands_wait_in_their_ring(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            await it.context()
            await it.driver.create_2d(2, *CURSOR)
            await it.driver.update_cursor(0, 1, 2, 2)
            cursor = it.display.monitors[0].cursor
            with busy(it.renderer()):
                waiting = [it.driver.post(NOTHING, 24) for _ in range(5)]
                it.driver.kick()
                await it.driver.move_cursor(0, 5, 6, 2)
                await it.display.until(lambda: (cursor.x, cursor.y) == (5, 6))
                assert not any(each.done() for each in waiting)
            await asyncio.gather(*waiting)

    run_async(main)


def test_without_a_spawner_3d_lasts_until_the_reset(run_async: Run) -> None:
    """A program in its sandbox cannot start another spawner. 2D does not need one."""

    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            renderer = os.pidfd_open(it.renderer())
            (spawner,) = children(it.program.pid)
            os.kill(spawner, signal.SIGKILL)
            await it.paint(context, 1, BLUE)
            await it.shows(BLUE)
            await it.reset()
            await ended(renderer)
            assert await refused(it.context()) == ERR_UNSPEC
            await monitor_in_2d(it, 2, scanout=0)
            await it.reset()
            await monitor_in_2d(it, 2, scanout=0)

    run_async(main)


async def ended(pidfd: int) -> None:
    """Waits until a process is gone."""
    gone, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(pidfd, gone.set)
    await gone.wait()
    loop.remove_reader(pidfd)
    os.close(pidfd)
