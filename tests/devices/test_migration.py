"""The state of every device goes from one of the installed programs to another, under the scripted front-end.

The programs are in their sandbox. Both have the same memory of the guest.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_gpu.test_over_the_wire import shows
from tests.devices.vhost_user_input.fakes import SYN
from tests.devices.vhost_user_input.test_over_the_wire import PRESS, RELEASE
from tests.programs import Program, connected, executable, is_quick
from vhostd.errors import RefusedRequest
from vhostd.frontend import Frontend, InputDriver, SharedMemory
from vhostd.frontend.drivers.block import BlockDriver
from vhostd.frontend.drivers.gpu import Framebuffer, GpuDriver
from vhostd.frontend.drivers.gpu_display import GpuDisplay
from vhostd.frontend.drivers.input import Event
from vhostd.vhost_user.messages import (
    CHECK_DEVICE_STATE,
    GET_CONFIG,
    GET_FEATURES,
    SET_CONFIG,
    SET_DEVICE_STATE_FD,
    ConfigSpace,
    StateTransfer,
)
from vhostd.wire.fds import Fd
from vhostd.wire.rows import Empty

MIB = 1 << 20
EXIT_LIMIT = 0.25  # seconds from SIGTERM to the end, on an idle machine
LED_ON = b"0011 0001 0001"  # in an E: line


@contextmanager
def program(name: str, *options: str) -> Iterator[tuple[Program, Frontend]]:
    """An installed program, and a front-end of it."""
    command = [executable(f"vhost-user-{name}"), "--log-level=warning", *options]
    with connected(command) as (child, sock), closing(Frontend(sock)) as frontend:
        yield child, frontend
        if child.process.poll() is None:  # else the test has looked already
            frontend.close()
            status, lines = child.ends()
            assert status == 0
            assert not any("Traceback" in line for line in lines), lines


@asynccontextmanager
async def machines(
    name: str, here: list[str], there: list[str], memory_size: int = MIB
) -> AsyncIterator[tuple[Frontend, Frontend, SharedMemory]]:
    """Front-ends of two programs; the second has not been told of the memory yet, as QEMU's."""
    with ExitStack() as stack:
        memory = stack.enter_context(closing(SharedMemory(memory_size)))
        _, source = stack.enter_context(program(name, *here))
        _, destination = stack.enter_context(program(name, *there))
        await source.negotiate()
        await source.share(memory)
        await destination.negotiate()
        yield source, destination, memory


def test_rng(run_async: Run) -> None:
    """It has none, which is checked all the same."""

    async def main() -> None:
        async with machines("rng", [], []) as (source, destination, memory):
            with closing(await source.start(memory)) as queue:
                assert len(await queue.request(room=64)) == 64
                await source.stop(queue)
            state = await source.save()
            await destination.load(state)
            await destination.share(memory)
            for frontend in (destination, source):  # which serves again if the migration is cancelled
                with closing(await frontend.start(memory)) as queue:
                    assert len(await queue.request(room=64)) == 64
                    await frontend.stop(queue)
            with pytest.raises(RefusedRequest):
                await destination.load(state + b"x")

    run_async(main)


def test_blk(run_async: Run, tmp_path: Path) -> None:
    """The write cache is as the driver wanted it, whatever the other program's is at first."""
    disk = tmp_path / "disk.img"
    disk.write_bytes(os.urandom(MIB))
    options = [f"--blk-file={disk}", "--share-rw"]

    async def main() -> None:
        async with machines("blk", options, [*options, "--cache=writeback"]) as (source, destination, memory):
            await source.call(SET_CONFIG, ConfigSpace(32, b"\0"))
            await destination.load(await source.save())
            await destination.share(memory)
            assert (await destination.call(GET_CONFIG, ConfigSpace(32, b"?"))).data == b"\0"
            with closing(await BlockDriver.start(destination, memory)) as blk:
                await blk.write(0, b"x" * 512)
                assert await blk.read(0, 512) == b"x" * 512

    run_async(main)


def test_input(run_async: Run, tmp_path: Path) -> None:
    """A key that was held is released, since nobody holds it here, and the keyboard has the guest's LEDs."""
    sockets = [tmp_path / name for name in ("here", "there")]
    here, there = ([f"--event-socket={path}"] for path in sockets)

    async def main() -> None:
        async with machines("input", here, there) as (source, destination, memory):
            with ExitStack() as stack:
                clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in sockets]
                for client, path in zip(clients, sockets, strict=True):
                    client.setblocking(False)
                    client.connect(str(path))
                clients[0].sendall(b"E: 0.0 0001 001e 1\nE: 0.0 0000 0000 0\n")
                driver = await InputDriver.start(source, memory, size=4)
                assert await driver.events(2) == [PRESS, SYN]
                await driver.send(Event(0x11, 1, 1))
                loop = asyncio.get_running_loop()
                assert LED_ON in await loop.sock_recv(clients[0], 4096)
                await driver.stop()
                await destination.load(await source.save())
                assert LED_ON in await loop.sock_recv(clients[1], 4096)
                await destination.share(memory)
                with closing(await InputDriver.start(destination, memory, size=4)) as driver:
                    assert await driver.events(2) == [RELEASE, SYN]

    run_async(main)


@pytest.mark.parametrize("is_early", [True, False])
def test_gpu(run_async: Run, is_early: bool) -> None:  # noqa: FBT001
    """A picture, a blob and a cursor are there before the driver says a word, and the driver goes on.

    The display is there before the state, or after it.
    """

    async def main() -> None:
        async with machines("gpu", ["--scanouts=2"], [], 16 * MIB) as (source, destination, memory):
            pictures = [Framebuffer(memory, 64, 64, scattered=True) for _ in range(2)]
            contents = [os.urandom(64 * 64 * 4) for _ in range(3)]
            for picture, content in zip(pictures, contents, strict=False):
                picture.write(0, content)
            gpu = await GpuDriver.start(source, memory)
            await gpu.create_2d(1, 64, 64)
            await gpu.attach_backing(1, pictures[0].ranges)
            await gpu.transfer(1, pictures[0].whole)
            await gpu.set_scanout(0, 1, pictures[0].whole)
            await gpu.create_blob(2, pictures[1].ranges, 64 * 64 * 4)
            await gpu.set_scanout_blob(1, 2, pictures[1].whole, width=64, height=64, stride=256)
            await gpu.update_cursor(0, 3, 4, 1, 5, 6)
            uuid = await gpu.assign_uuid(2)
            await gpu.stop(source)
            modes = ((64, 64), (64, 64))
            if is_early:
                display = await GpuDisplay.show(destination, modes=modes)
            await destination.load(await source.save())
            await destination.share(memory)
            if not is_early:
                display = await GpuDisplay.show(destination, modes=modes)
            with closing(display), closing(await GpuDriver.start(destination, memory)) as gpu:
                monitors = display.monitors
                await display.until(lambda: shows(display, contents[1], 1))
                assert shows(display, contents[0], 0)
                assert (monitors[0].cursor.x, monitors[0].cursor.hot_x) == (3, 5)
                assert monitors[0].cursor.shape == contents[0]
                assert await gpu.assign_uuid(2) == uuid
                pictures[0].write(0, contents[2])
                await gpu.present(1, pictures[0].whole)
                await display.until(lambda: shows(display, contents[2], 0))

    run_async(main)


@asynccontextmanager
async def painted() -> AsyncIterator[tuple[Program, Frontend]]:
    """A display whose state takes four megabytes."""
    with program("gpu") as (child, frontend), closing(SharedMemory(MIB)) as memory:
        await frontend.negotiate()
        await frontend.share(memory)
        gpu = await GpuDriver.start(frontend, memory)
        await gpu.create_2d(1, 1024, 1024)
        await gpu.stop(frontend)
        yield child, frontend


@pytest.mark.parametrize("direction", [StateTransfer.SAVE, StateTransfer.LOAD])
def test_a_program_ends_at_once_in_the_middle_of_a_transfer(run_async: Run, direction: int) -> None:
    took = []

    async def main() -> None:
        async with painted() as (child, frontend):
            with ExitStack() as stack:
                ends = [stack.enter_context(Fd(end)) for end in os.pipe()]
                theirs = ends[direction == StateTransfer.SAVE]
                await frontend.call(SET_DEVICE_STATE_FD, StateTransfer(direction, 0), theirs)
                asking = asyncio.create_task(frontend.call(CHECK_DEVICE_STATE, Empty()))
                await asyncio.sleep(0)
                took.append(child.stop())
                with pytest.raises(ConnectionError):
                    await asking

    def measure() -> float:
        run_async(main)
        return took.pop()

    assert is_quick(EXIT_LIMIT, measure)


def test_a_pipe_that_makes_who_writes_wait(run_async: Run) -> None:
    """The front-end takes O_NONBLOCK off again, and nearly never reads."""
    took = []

    async def main() -> None:
        async with painted() as (child, frontend):
            with ExitStack() as stack:
                ours, theirs = (stack.enter_context(Fd(end)) for end in os.pipe())
                await frontend.call(SET_DEVICE_STATE_FD, StateTransfer(StateTransfer.SAVE, 0), theirs)
                for _ in range(3):
                    os.read(ours.fileno(), MIB)
                    os.set_blocking(theirs.fileno(), True)
                    await frontend.call(GET_FEATURES, Empty())
                with Fd(os.open("/dev/null", os.O_RDWR)) as sink:  # another transfer, all the same
                    await frontend.call(SET_DEVICE_STATE_FD, StateTransfer(StateTransfer.SAVE, 0), sink)
                    await frontend.call(CHECK_DEVICE_STATE, Empty())
                took.append(child.stop())

    def measure() -> float:
        run_async(main)
        return took.pop()

    assert is_quick(EXIT_LIMIT, measure)
