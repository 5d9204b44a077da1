"""The installed program between a scripted guest and a scripted front-end, on real sockets."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass

import pytest

from tests.conftest import Run
from tests.programs import Program, connected, executable
from vhostd.frontend import Frontend, SharedMemory
from vhostd.frontend.drivers import gpu_display as wire
from vhostd.frontend.drivers.gpu import (
    B8G8R8A8,
    ERR_RESOURCE,
    ERR_SCANOUT,
    ERR_UNSPEC,
    PIXEL,
    R8G8B8A8,
    RESOURCE_BLOB,
    Framebuffer,
    GpuDriver,
    Rect,
    RefusedCommand,
    transfer,
)
from vhostd.frontend.drivers.gpu import HEADER as COMMAND
from vhostd.frontend.drivers.gpu_display import CURSOR_SIZE, FULL_HD, HEADER, REPLY, GpuDisplay
from vhostd.vhost_user.messages import GET_FEATURES
from vhostd.wire.rows import Empty

SIZE = (200, 100)
WHOLE: Rect = (0, 0, *SIZE)
FLUSHES = 100  # what one ring takes at once
GROWTH = 4 << 10  # KiB that a front-end that does not read may cost
GET_DISPLAY_INFO = struct.pack("<IIQII", 0x100, 0, 0, 0, 0)
TRANSFER = struct.pack("<IIQII", 0x105, 0, 0, 0, 0)
PATIENCE = 4.0  # seconds in which a guest must have an answer that no front-end gives


@dataclass
class Machine:
    """A program, and a guest with its hands on it."""

    program: Program
    frontend: Frontend
    memory: SharedMemory
    driver: GpuDriver

    def picture(self, width: int = SIZE[0], height: int = SIZE[1], *, scattered: bool = True) -> Framebuffer:
        """Guest memory for a picture, painted with noise."""
        framebuffer = Framebuffer(self.memory, width, height, scattered=scattered)
        framebuffer.write(0, noise(width, height))
        return framebuffer

    async def monitor(self, scanout: int, resource: int, picture: Framebuffer) -> None:
        """Makes a resource of a picture and shows all of it."""
        await self.driver.create_2d(resource, picture.width, picture.height)
        await self.driver.attach_backing(resource, picture.ranges)
        await self.driver.set_scanout(scanout, resource, picture.whole)
        await self.driver.present(resource, picture.whole)


@asynccontextmanager
async def machine(*options: str, features: int | None = None, fences: bool = False) -> AsyncIterator[Machine]:
    """A guest that has started its driver; the front-end shows nothing yet."""
    command = [executable("vhost-user-gpu"), "--log-level=warning", *options]
    with ExitStack() as stack:
        program, sock = stack.enter_context(connected(command))
        frontend = stack.enter_context(closing(Frontend(sock)))
        memory = stack.enter_context(closing(SharedMemory(64 << 20)))
        await frontend.negotiate(features)
        await frontend.share(memory)
        driver = stack.enter_context(closing(await GpuDriver.start(frontend, memory, fences=fences)))
        yield Machine(program, frontend, memory, driver)
        if program.process.poll() is None:  # else the test has looked already
            frontend.close()
            status, lines = program.ends()
            assert status == 0
            assert not any("Traceback" in line or "Exception" in line for line in lines), lines


@asynccontextmanager
async def shown(on: Machine, *, is_reading: bool = True) -> AsyncIterator[GpuDisplay]:
    """A front-end's display, closed in the end; nothing that it was sent may have had flags."""
    display = await GpuDisplay.show(on.frontend, is_reading=is_reading)
    try:
        yield display
        assert display.flags == 0
    finally:
        display.close()


def noise(width: int, height: int, seed: int = 1) -> bytes:
    """Pixels of which none is like another."""
    return random.Random(seed).randbytes(width * height * PIXEL)


def colours(pixels: bytes | bytearray) -> bytes:
    """Pixels without their fourth byte, which means nothing."""
    kept = bytearray(pixels)
    kept[3::PIXEL] = bytes(len(kept) // PIXEL)
    return bytes(kept)


def shows(display: GpuDisplay, pixels: bytes, scanout: int = 0) -> bool:
    return colours(display.monitors[scanout].pixels) == colours(pixels)


def part(pixels: bytes | bytearray, width: int, rect: Rect) -> bytes:
    """A rectangle of a picture of this width."""
    x, y, columns, rows = rect
    starts = range((y * width + x) * PIXEL, ((y + rows) * width + x) * PIXEL, width * PIXEL)
    return b"".join(pixels[at : at + columns * PIXEL] for at in starts)


# --- Pictures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scattered", [False, True], ids=["contiguous", "scattered"])
def test_a_pattern_arrives_as_it_was_painted(run_async: Run, scattered: bool) -> None:  # noqa: FBT001
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            await guest.monitor(0, 1, guest.picture(*FULL_HD, scattered=scattered))
            await display.until(lambda: shows(display, noise(*FULL_HD)))
            assert (display.monitors[0].width, display.monitors[0].height) == FULL_HD

    run_async(main)


def test_fences_are_named_in_every_answer(run_async: Run) -> None:
    async def main() -> None:
        async with machine(fences=True) as guest, shown(guest) as display:
            await guest.monitor(0, 1, guest.picture())
            assert (await guest.driver.display_info())[0][2:5] == (*FULL_HD, 1)
            assert await guest.driver.edid(0) == display.edid
            with pytest.raises(RefusedCommand) as refusal:
                await guest.driver.flush(2, WHOLE)
            assert refusal.value.code == ERR_RESOURCE
            await display.until(lambda: shows(display, noise(*SIZE)))

    run_async(main)


def test_only_what_is_transferred_and_flushed_changes(run_async: Run) -> None:
    spot = (7, 5, 60, 30)

    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            picture = guest.picture()
            await guest.monitor(0, 1, picture)
            await display.until(lambda: shows(display, noise(*SIZE)))
            other = noise(*SIZE, seed=2)
            picture.write(0, other)
            offset = (spot[1] * SIZE[0] + spot[0]) * PIXEL
            await guest.driver.present(1, spot, offset)
            kept = display.monitors[0].pixels
            await display.until(
                lambda: colours(part(kept, SIZE[0], spot)) == colours(part(other, SIZE[0], spot))
            )
            expected = bytearray(noise(*SIZE))
            for row in range(spot[1], spot[1] + spot[3]):
                start = (row * SIZE[0] + spot[0]) * PIXEL
                expected[start : start + spot[2] * PIXEL] = other[start : start + spot[2] * PIXEL]
            assert shows(display, bytes(expected))

    run_async(main)


def test_a_part_of_a_picture_in_its_own_coordinates(run_async: Run) -> None:
    window = (30, 40, 50, 20)

    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            await guest.monitor(0, 1, guest.picture())
            await guest.driver.set_scanout(0, 1, window)
            await guest.driver.flush(1, WHOLE)
            await display.until(lambda: shows(display, part(noise(*SIZE), SIZE[0], window)))
            assert (display.monitors[0].width, display.monitors[0].height) == window[2:]

    run_async(main)


def test_another_order_of_bytes_is_converted(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            picture = guest.picture()
            await guest.driver.create_2d(1, *SIZE, R8G8B8A8)
            await guest.driver.attach_backing(1, picture.ranges)
            await guest.driver.set_scanout(0, 1, WHOLE)
            await guest.driver.present(1, WHOLE)
            wanted = bytearray(noise(*SIZE))
            wanted[0::4], wanted[2::4] = wanted[2::4], wanted[0::4]
            await display.until(lambda: shows(display, bytes(wanted)))

    run_async(main)


def test_a_blob_is_shown_without_a_transfer(run_async: Run) -> None:
    size, stride, offset = (160, 90), SIZE[0] * PIXEL, 4 * SIZE[0] * PIXEL

    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            picture = guest.picture()
            await guest.driver.create_blob(1, picture.ranges, picture.size)
            how = {"width": size[0], "height": size[1], "stride": stride, "offset": offset}
            await guest.driver.set_scanout_blob(0, 1, (0, 0, *size), **how)
            await guest.driver.flush(1, (0, 0, *size))
            await display.until(lambda: shows(display, part(noise(*SIZE), SIZE[0], (0, 4, *size))))
            picture.write(0, noise(*SIZE, seed=2))
            await guest.driver.flush(1, (0, 0, *size))
            await display.until(lambda: shows(display, part(noise(*SIZE, 2), SIZE[0], (0, 4, *size))))

    run_async(main)


def test_a_blob_without_its_feature(run_async: Run) -> None:
    async def main() -> None:
        async with machine(features=~(1 << RESOURCE_BLOB)) as guest:
            with pytest.raises(RefusedCommand) as refusal:
                await guest.driver.create_blob(1, guest.picture().ranges, 4096)
            assert refusal.value.code == ERR_UNSPEC

    run_async(main)


def test_two_scanouts(run_async: Run) -> None:
    second = (64, 48)

    async def main() -> None:
        async with machine("--scanouts=2") as guest:
            with pytest.raises(RefusedCommand) as refusal:  # nothing but the option says how many there are
                await guest.driver.set_scanout(2, 0)
            assert refusal.value.code == ERR_SCANOUT
            async with shown(guest) as display:
                await guest.monitor(0, 1, guest.picture())
                await guest.monitor(1, 2, guest.picture(*second))
                await display.until(lambda: shows(display, noise(*SIZE)))
                await display.until(lambda: shows(display, noise(*second), scanout=1))
                await guest.driver.set_scanout(0, 0)
                await display.until(lambda: display.monitors[0].width == 0)
                assert shows(display, noise(*second), scanout=1)

    run_async(main)


def test_what_linux_asks_for_first(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest):
            with pytest.raises(RefusedCommand):
                await guest.driver.capset_info(0)
            await guest.monitor(0, 1, guest.picture())
            first = await guest.driver.assign_uuid(1)
            assert await guest.driver.assign_uuid(1) == first
            await guest.driver.detach_backing(1)
            await guest.driver.unref(1)
            with pytest.raises(RefusedCommand) as refusal:
                await guest.driver.unref(1)
            assert refusal.value.code == ERR_RESOURCE

    run_async(main)


def test_the_cursor(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            shape = guest.picture(64, 64)
            assert shape.size == CURSOR_SIZE
            await guest.driver.create_2d(1, 64, 64, B8G8R8A8)
            await guest.driver.attach_backing(1, shape.ranges)
            await guest.driver.transfer(1, shape.whole)
            cursor = display.monitors[0].cursor
            await guest.driver.update_cursor(0, 10, 20, 1, 3, 4)
            await display.until(lambda: cursor.shape == noise(64, 64))
            assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y) == (10, 20, 3, 4)
            await guest.driver.move_cursor(0, 30, 40, 1)
            await display.until(lambda: (cursor.x, cursor.y) == (30, 40))
            assert cursor.is_visible
            await guest.driver.update_cursor(0, 50, 60, 0)
            await display.until(lambda: not cursor.is_visible)
            for resource in (1, 0, 1):  # as Windows hides it, and shows it again
                await guest.driver.move_cursor(0, 50, 60, resource)
                await display.until(lambda: cursor.is_visible == bool(resource))  # noqa: B023
            assert cursor.shape == noise(64, 64)

    run_async(main)


def test_a_cursor_does_not_overtake_what_was_drawn_before_it(run_async: Run) -> None:
    """Windows' driver waits for no fence."""

    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            shape = guest.picture(64, 64)
            await guest.driver.create_2d(1, 64, 64, B8G8R8A8)
            await guest.driver.attach_backing(1, shape.ranges)
            drawing = COMMAND.pack(0x105, 0, 0, 0, 0) + transfer(1, shape.whole)
            drawn = guest.driver.post(drawing, COMMAND.size)  # of which the device is not told
            await guest.driver.update_cursor(0, 10, 20, 1)
            cursor = display.monitors[0].cursor
            await display.until(lambda: bool(cursor.shape))
            assert cursor.shape == noise(64, 64)
            await drawn

    run_async(main)


# --- The socket -----------------------------------------------------------------------------------------


def test_another_socket_while_it_runs(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as old:
            await guest.monitor(0, 1, guest.picture())
            await old.until(lambda: shows(old, noise(*SIZE)))
            async with shown(guest) as new:
                await new.until(lambda: shows(new, noise(*SIZE)))
                await old.until(lambda: old.is_over)

    run_async(main)


def test_another_socket_in_the_middle_of_painting(run_async: Run) -> None:
    """Nothing that the first one was about to be told is lost to the second."""
    heads = range(4)

    async def main() -> None:
        async with machine("--scanouts=4") as guest:
            for head in heads:
                await guest.monitor(head, head + 1, guest.picture())
            for _ in range(20):
                async with shown(guest):
                    for head in heads:
                        await guest.driver.flush(head + 1, WHOLE)
                    async with shown(guest) as second:
                        await second.until(lambda: all(shows(second, noise(*SIZE), head) for head in heads))

    run_async(main)


def test_the_end_comes_soon_however_much_is_to_be_copied(run_async: Run) -> None:
    size = (4096, 3072)

    async def main() -> None:
        async with machine("--max-memory=64M") as guest:
            picture = guest.picture(*size, scattered=False)
            await guest.driver.create_2d(1, *size)
            await guest.driver.attach_backing(1, picture.ranges)
            command = TRANSFER + transfer(1, (0, 0, *size))
            answers = [guest.driver.post(command, len(TRANSFER)) for _ in range(FLUSHES)]
            guest.driver.kick()
            await answers[0]
            guest.program.stop()
            await asyncio.wait(answers)
            assert isinstance(answers[-1].exception(), ConnectionError)  # all of them would take seconds

    run_async(main)


def test_without_a_display_and_with_one_again(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest:
            picture = guest.picture()
            async with shown(guest) as first:
                await guest.monitor(0, 1, picture)
                await first.until(lambda: shows(first, noise(*SIZE)))
            picture.write(0, noise(*SIZE, seed=2))
            await guest.driver.present(1, WHOLE)
            assert (await guest.driver.display_info())[0].enabled
            async with shown(guest) as second:
                await second.until(lambda: shows(second, noise(*SIZE, seed=2)))

    run_async(main)


@pytest.mark.parametrize("size", [SIZE, FULL_HD], ids=["small", "large"])
def test_a_front_end_that_does_not_read(run_async: Run, size: tuple[int, int]) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            picture = guest.picture(*size)
            await guest.monitor(0, 1, picture)
            await display.until(lambda: shows(display, noise(*size)))
            display.pause()
            before = guest.program.resident()
            for _ in range(5):
                await guest.driver.flushes(FLUSHES, 1, picture.whole)
            picture.write(0, noise(*size, seed=2))
            await guest.driver.present(1, picture.whole)
            assert guest.program.resident() - before < GROWTH
            display.resume()
            await display.until(lambda: shows(display, noise(*size, seed=2)))
            assert display.frames < FLUSHES
            assert guest.program.resident() - before < GROWTH

    run_async(main)


def test_a_display_that_is_closed_in_the_middle_of_a_picture(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest:
            async with shown(guest, is_reading=False):
                await guest.monitor(0, 1, guest.picture(*FULL_HD))
            await guest.driver.flush(1, (0, 0, *FULL_HD))
            async with shown(guest) as display:
                await display.until(lambda: shows(display, noise(*FULL_HD)))

    run_async(main)


# --- Questions ------------------------------------------------------------------------------------------


def test_a_front_end_that_never_answers(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            display.silent = {wire.GET_DISPLAY_INFO}
            await guest.monitor(0, 1, guest.picture())
            asked = guest.driver.post(GET_DISPLAY_INFO, 408)
            guest.driver.kick()
            await guest.driver.present(1, WHOLE)
            assert not asked.done()
            await display.until(lambda: shows(display, noise(*SIZE)))
            async with asyncio.timeout(PATIENCE):
                assert len(await asked) == 408
                assert (await guest.driver.display_info())[0].enabled
                assert await guest.driver.edid(0)

    run_async(main)


def test_what_was_known_is_told_until_a_late_answer(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            assert (await guest.driver.display_info())[0][2:4] == FULL_HD
            display.silent = {wire.GET_DISPLAY_INFO}
            async with asyncio.timeout(PATIENCE):
                assert (await guest.driver.display_info())[0][2:4] == FULL_HD
            display.silent = set()
            display.modes = [SIZE, SIZE]
            display.reply(wire.GET_DISPLAY_INFO, display.display_info())
            modes = await guest.driver.display_info()
            assert [mode[2:5] for mode in modes[:3]] == [(*SIZE, 1), (*SIZE, 1), (0, 0, 0)]

    run_async(main)


GARBAGE = {
    "a request": HEADER.pack(wire.UPDATE, 0, 0),
    "no such message": HEADER.pack(99, REPLY, 0),
    "a reply to nothing": HEADER.pack(wire.GET_DISPLAY_INFO, REPLY, 408) + bytes(408),
    "another's reply": HEADER.pack(wire.GET_EDID, REPLY, 1056) + bytes(1056),
}
WRONG_SIZES = {
    "too short": HEADER.pack(wire.GET_DISPLAY_INFO, REPLY, 407) + bytes(407),
    "huge": HEADER.pack(wire.GET_DISPLAY_INFO, REPLY, 0xFFFF_FFFF) + bytes(4096),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_that_nobody_asked_for(run_async: Run, garbage: bytes) -> None:
    async def main() -> None:
        async with machine() as guest:
            async with shown(guest) as display:
                await guest.driver.display_info()
                display.send(garbage)
                await display.until(lambda: display.is_over)
            await goes_on(guest)

    run_async(main)


@pytest.mark.parametrize("garbage", WRONG_SIZES.values(), ids=WRONG_SIZES)
def test_an_answer_of_a_wrong_size(run_async: Run, garbage: bytes) -> None:
    async def main() -> None:
        async with machine() as guest:
            async with shown(guest) as display:
                await guest.driver.display_info()
                display.silent = {wire.GET_DISPLAY_INFO}
                asked = asyncio.create_task(guest.driver.display_info())
                before = display.requests[wire.GET_DISPLAY_INFO]
                await display.until(lambda: display.requests[wire.GET_DISPLAY_INFO] > before)
                display.send(garbage)
                await display.until(lambda: display.is_over)
                async with asyncio.timeout(PATIENCE):
                    await asked
            await goes_on(guest)

    run_async(main)


def test_an_answer_with_more_behind_it(run_async: Run) -> None:
    """As in all protocols here: a peer may send the room that it has."""

    async def main() -> None:
        async with machine() as guest, shown(guest) as display:
            await guest.driver.display_info()
            display.silent = {wire.GET_DISPLAY_INFO}
            asked = asyncio.create_task(guest.driver.display_info())
            before = display.requests[wire.GET_DISPLAY_INFO]
            await display.until(lambda: display.requests[wire.GET_DISPLAY_INFO] > before)
            display.silent = set()
            display.modes = [(640, 480)]
            display.reply(wire.GET_DISPLAY_INFO, display.display_info() + b"room")
            assert (await asked)[0][2:5] == (640, 480, 1)

    run_async(main)


async def goes_on(guest: Machine) -> None:
    """The guest still has all that it had, and the program has complained in one line."""
    await guest.monitor(0, 1, guest.picture())
    await guest.frontend.call(GET_FEATURES, Empty())
    async with shown(guest) as another:
        await another.until(lambda: shows(another, noise(*SIZE)))
    await guest.driver.stop(guest.frontend)
    guest.program.send()
    status, lines = guest.program.ends()
    assert (status, len(lines)) == (0, 1), lines
