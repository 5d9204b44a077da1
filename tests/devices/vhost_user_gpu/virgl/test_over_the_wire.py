"""The installed program with --virgl: a scripted 3D driver, the host's real GL, and a scripted front-end."""

import asyncio
import os
import random
import signal
import struct

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
    resident,
)
from vhostd.errors import RefusedRequest
from vhostd.frontend.drivers.gpu import (
    ERR_OUT_OF_MEMORY,
    ERR_PARAMETER,
    ERR_RESOURCE,
    ERR_UNSPEC,
    PIXEL,
    Command,
    Framebuffer,
)
from vhostd.frontend.drivers.gpu_3d import (
    BUFFER,
    CAPSET_VIRGL,
    CAPSET_VIRGL2,
    R8,
    VERTEX_BUFFER,
    Box,
    Context,
    clear,
    create_3d,
)

# Whose loop the script has does not matter to the program.
pytestmark = pytest.mark.parametrize("run_async", ["uvloop"], indirect=True)

ERR_CONTEXT = 0x1204
ALL = Box(0, 0, 0, *SIZE, 1)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


# --- What works -----------------------------------------------------------------------------------------


def test_what_a_context_has_drawn_is_shown(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)
            await it.paint(context, 1, BLUE)
            await it.shows(BLUE)
            assert (it.display.monitors[0].width, it.display.monitors[0].height) == SIZE

    run_async(main)


def test_the_capability_sets_are_the_library_s(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            assert await it.frontend.read_config(12, 4) == struct.pack("<I", 2)
            sets = [await it.driver.capset_info(index) for index in range(2)]
            assert [number for number, _, _ in sets] == [CAPSET_VIRGL, CAPSET_VIRGL2]
            for number, latest, size in sets:
                older = await it.driver.capset(number, 0, size)
                assert await it.driver.capset(number, latest, size) == older != bytes(size)
                assert await refused(it.driver.capset(number, latest + 1, size)) == ERR_PARAMETER
            assert await refused(it.driver.capset_info(2)) == ERR_PARAMETER
            assert await refused(it.driver.capset(3, 0, 8)) == ERR_PARAMETER

    run_async(main)


def test_pixels_go_from_the_guest_s_memory_to_the_screen_and_back(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            picture, other = it.picture(), it.picture()
            picture.write(0, noise(picture.size))
            await it.driver.attach_backing(1, picture.ranges)
            await context.transfer(1, ALL, to_host=True)
            await it.driver.flush(1, WHOLE)
            await it.display.until(lambda: bytes(it.display.monitors[0].pixels) == noise(picture.size))
            await it.driver.detach_backing(1)
            await it.driver.attach_backing(1, other.ranges)
            await context.transfer(1, ALL, to_host=False)
            assert content(it, other) == noise(picture.size)

    run_async(main)


@pytest.mark.parametrize("flags", [0, 1], ids=["y_0_bottom", "y_0_top"])
def test_a_part_of_a_texture_is_shown_where_it_is(run_async: Run, flags: int) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, *SIZE, flags=flags)
            await context.attach(1)
            await it.driver.set_scanout(0, 1, WHOLE)
            picture = it.picture()
            picture.write(0, noise(picture.size))
            await it.driver.attach_backing(1, picture.ranges)
            x, y, width, height = part = 10, 20, 30, 40
            offset = (y * SIZE[0] + x) * PIXEL
            await context.transfer(1, Box(x, y, 0, width, height, 1), to_host=True, offset=offset)
            await it.driver.flush(1, part)
            wanted = bytearray(len(noise(picture.size)))
            for row in range(y, y + height):
                here = slice((row * SIZE[0] + x) * PIXEL, (row * SIZE[0] + x + width) * PIXEL)
                wanted[here] = noise(picture.size)[here]
            await it.display.until(lambda: it.display.monitors[0].pixels == wanted)

    run_async(main)


def test_a_buffer_keeps_bytes(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            size = 10_000
            await create_3d(it.driver, 1, size, target=BUFFER, kind=R8, bind=VERTEX_BUFFER, flags=0)
            await context.attach(1)
            addr = it.memory.allocate(2 * size)
            it.memory.map.write(addr, noise(size))
            await it.driver.attach_backing(1, [(addr, size)])
            await context.transfer(1, Box(0, 0, 0, size, 1, 1), to_host=True)
            it.memory.map.write(addr, bytes(size))
            await context.transfer(1, Box(100, 0, 0, size - 200, 1, 1), to_host=False, offset=100)
            assert it.memory.map.read(addr, size) == bytes(100) + noise(size)[100:-100] + bytes(100)

    run_async(main)


def test_two_monitors_show_two_textures(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            for number, color in enumerate((ORANGE, BLUE)):
                await it.monitor(context, 1 + number, scanout=number)
                await it.paint(context, 1 + number, color)
            await it.shows(ORANGE, 0)
            await it.shows(BLUE, 1)
            await it.driver.unref(1)
            await it.display.until(lambda: it.display.monitors[0].width == 0)
            await it.shows(BLUE, 1)

    run_async(main)


def test_a_flip_shows_the_other_texture(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, ORANGE)
            await create_3d(it.driver, 2, *SIZE)
            await context.attach(2)
            await context.submit(clear(9, 2, BLUE))
            await it.driver.set_scanout(0, 2, WHOLE)
            await it.driver.flush(2, WHOLE)
            await it.shows(BLUE)

    run_async(main)


def test_a_cursor_has_a_texture_s_shape(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, 64, 64)
            await context.attach(1)
            await context.submit(clear(9, 1, ORANGE))
            await it.driver.update_cursor(0, 5, 6, 1, 1, 2)
            cursor = it.display.monitors[0].cursor
            await it.display.until(lambda: cursor.shape == pixels(ORANGE)[: 64 * 64 * PIXEL])
            assert (cursor.x, cursor.y, cursor.hot_x, cursor.hot_y, cursor.is_visible) == (5, 6, 1, 2, True)
            await it.driver.update_cursor(0, 7, 8, 0)
            await it.display.until(lambda: not cursor.is_visible)

    run_async(main)


def test_a_2d_picture_may_be_named_to_a_context(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            picture = it.picture()
            picture.write(0, noise(picture.size))
            await it.driver.create_2d(1, *SIZE)
            await it.driver.attach_backing(1, picture.ranges)
            await context.attach(1)
            await it.driver.set_scanout(0, 1, WHOLE)
            await context.transfer(1, ALL, to_host=True)
            await it.driver.flush(1, WHOLE)
            await it.display.until(lambda: bytes(it.display.monitors[0].pixels) == noise(picture.size))
            await context.detach(1)
            await it.driver.unref(1)

    run_async(main)


def test_a_2d_transfer_fills_a_texture(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            picture = it.picture()
            picture.write(0, noise(picture.size))
            await create_3d(it.driver, 1, *SIZE)
            await it.driver.attach_backing(1, picture.ranges)
            await it.driver.set_scanout(0, 1, WHOLE)
            await it.driver.present(1, WHOLE)
            await it.display.until(lambda: bytes(it.display.monitors[0].pixels) == noise(picture.size))

    run_async(main)


def test_a_driver_without_3d_finds_none(run_async: Run) -> None:
    async def main() -> None:
        async with machine(features=0) as it:
            assert await refused(it.context()) == ERR_UNSPEC
            await it.driver.create_2d(1, *SIZE)

    run_async(main)


# --- Fences ---------------------------------------------------------------------------------------------


def test_fences_are_named_in_their_order(run_async: Run) -> None:
    """A 2D command, and one that fails, do not overtake 3D commands whose fences have not signalled."""

    async def main() -> None:
        async with machine(fences=True) as it:
            context = await it.context()
            await it.monitor(context, 1)
            await it.driver.create_2d(2, *SIZE)
            order: list[int] = []
            commands = [
                context.submit(clear(10, 1, ORANGE)),
                it.driver.set_scanout(1, 2, WHOLE),
                context.submit(clear(11, 1, BLUE)),
                context.submit(b"???"),
                it.driver.flush(1, WHOLE),
                it.driver.detach_backing(2),
            ]

            async def noted(number: int) -> None:
                await refused(commands[number])
                order.append(number)

            await asyncio.gather(*map(noted, range(len(commands))))
            assert order == list(range(len(commands)))
            await it.shows(BLUE)

    run_async(main)


def test_a_context_s_ring_has_fences_of_its_own(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            await Context(it.driver, 1).create(init=CAPSET_VIRGL2)
            assert await refused(Context(it.driver, 2).create(init=77)) == ERR_PARAMETER
            for ring, expected in ((0, 0x1100), (1, 0x1100), (64, ERR_PARAMETER)):
                head = struct.pack("<IIQIBxxx", Command.SUBMIT_3D, 3, 77, 1, ring)
                answer = await it.driver.command(head + bytes(8), 24)
                assert struct.unpack("<IIQIBxxx", answer) == (expected, 3, 77, 1, ring)

    run_async(main)


def test_a_context_s_fences_end_with_it(run_async: Run) -> None:
    """Nobody waits for what a destroyed context had still to draw."""

    async def main() -> None:
        async with machine() as it:
            context = Context(it.driver, 1)
            await context.create(init=CAPSET_VIRGL2)
            await create_3d(it.driver, 1, 2000, 2000)
            await context.attach(1)
            stream = 3 * clear(9, 1, ORANGE)
            body = struct.pack("<II", len(stream), 0) + stream
            commands = [
                struct.pack("<IIQIBxxx", Command.SUBMIT_3D, 3, number, 1, number % 3) + body
                for number in range(20)
            ]
            commands.append(struct.pack("<IIQIBxxx", Command.CTX_DESTROY, 1, 99, 1, 0))
            posted = [it.driver.post(command, 24) for command in commands]
            it.driver.kick()
            answers = [struct.unpack_from("<II", answer) for answer in await asyncio.gather(*posted)]
            assert answers == [(0x1100, 3)] * 20 + [(0x1100, 1)]

    run_async(main)


# --- Hostile guests -------------------------------------------------------------------------------------


def test_ids_are_checked(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context, nobody = await it.context(), Context(it.driver, 99)
            await create_3d(it.driver, 1, *SIZE)
            assert await refused(context.create()) == ERR_CONTEXT
            assert await refused(Context(it.driver, 0).create()) == ERR_CONTEXT
            for command in (nobody.destroy(), nobody.attach(1), nobody.submit(b""), nobody.detach(1)):
                assert await refused(command) == ERR_CONTEXT
            for number in (0, 99):
                assert await refused(context.attach(number)) == ERR_RESOURCE
                assert await refused(context.transfer(number, ALL, to_host=True)) == ERR_RESOURCE
            for number in (0, 1):
                assert await refused(create_3d(it.driver, number, *SIZE)) == ERR_RESOURCE
            assert await refused(context.transfer(1, ALL, to_host=True)) == ERR_UNSPEC  # no backing
            await context.destroy()
            assert await refused(context.destroy()) == ERR_CONTEXT

    run_async(main)


def test_sizes_are_checked(run_async: Run) -> None:
    async def main() -> None:
        async with machine("--max-memory=8M") as it:
            make = it.driver
            assert await refused(create_3d(make, 1, 0, 10)) == ERR_PARAMETER
            assert await refused(create_3d(make, 1, 10, 1 << 17)) == ERR_PARAMETER
            assert await refused(create_3d(make, 1, 10, 10, depth=1 << 31)) == ERR_PARAMETER
            assert await refused(create_3d(make, 1, 10, 10, nr_samples=64)) == ERR_PARAMETER
            assert await refused(create_3d(make, 1, 10, 10, last_level=99)) == ERR_PARAMETER
            assert await refused(create_3d(make, 1, 1 << 31, target=BUFFER)) == ERR_OUT_OF_MEMORY
            assert await refused(create_3d(make, 1, 2000, 2000)) == ERR_OUT_OF_MEMORY
            assert await refused(create_3d(make, 1, 10, 10, target=77)) == ERR_UNSPEC  # says the library
            await create_3d(make, 1, 1000, 1000)
            assert await refused(create_3d(make, 2, 1100, 1000)) == ERR_OUT_OF_MEMORY
            await make.unref(1)
            await create_3d(make, 2, 1100, 1000)

    run_async(main)


def test_transfers_stay_inside(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, *SIZE)
            await context.attach(1)
            picture = it.picture()
            await it.driver.attach_backing(1, picture.ranges)
            most = 0xFFFF_FFFF
            for box in (
                Box(0, 0, 0, SIZE[0] + 1, 1, 1),
                Box(most, 0, 0, 2, 1, 1),
                Box(0, most, 0, 1, 1, 1),
                Box(0, 0, 1, 1, 1, 1),
                Box(0, 0, 0, most, most, most),
            ):
                for to_host in (True, False):
                    assert await refused(context.transfer(1, box, to_host=to_host)) == ERR_UNSPEC
            for to_host in (True, False):
                assert await refused(context.transfer(1, ALL, to_host=to_host, offset=1 << 40)) == ERR_UNSPEC
                assert await refused(context.transfer(1, ALL, to_host=to_host, level=1)) == ERR_PARAMETER
            await context.transfer(1, ALL, to_host=True)

    run_async(main)


def test_commands_have_a_length(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            assert await refused(context.submit(bytes(3))) == ERR_PARAMETER
            too_long = struct.pack("<II", (4 << 20) + 4, 0)
            assert await refused(context.do(Command.SUBMIT_3D, too_long)) == ERR_PARAMETER
            cut = struct.pack("<II", 64, 0) + bytes(32)
            assert await refused(context.do(Command.SUBMIT_3D, cut)) == ERR_PARAMETER
            await context.submit(b"")

    run_async(main)


def test_textures_that_are_shown_are_limited(run_async: Run) -> None:
    """Each takes an fd."""

    async def main() -> None:
        async with machine() as it:
            whole = (0, 0, 8, 8)
            for number in range(1, 258):
                await create_3d(it.driver, number, 8, 8)
            for number in range(1, 257):
                await it.driver.set_scanout(0, number, whole)
            assert await refused(it.driver.set_scanout(0, 257, whole)) == ERR_OUT_OF_MEMORY
            fds = len(it.program.fds())
            await it.driver.unref(7)
            await it.driver.set_scanout(0, 257, whole)
            assert len(it.program.fds()) <= fds < 256 + 64

    run_async(main)


def test_a_resource_that_cannot_be_made_leaves_nothing(run_async: Run) -> None:
    """Its driver has already said more about it when the renderer refuses it."""

    async def main() -> None:
        async with machine() as it:
            picture = it.picture()
            commands = [
                create_3d(it.driver, 1, *SIZE, target=77),
                it.driver.attach_backing(1, picture.ranges),
                it.driver.flush(1, WHOLE),
            ]
            errors = [await command for command in map(refused, commands)]
            assert errors[0] == ERR_UNSPEC
            assert await refused(it.driver.unref(1)) == ERR_RESOURCE
            await create_3d(it.driver, 1, *SIZE)

    run_async(main)


def test_contexts_are_limited(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            for number in range(1, 257):
                await it.context(number)
            assert await refused(it.context(257)) == ERR_OUT_OF_MEMORY
            await Context(it.driver, 7).destroy()
            await it.context(257)

    run_async(main)


@pytest.mark.parametrize("seed", range(3))
def test_commands_of_random_words_hurt_nobody_else(run_async: Run, seed: int) -> None:
    """The renderer may end; the program, its 2D, and after a reset its 3D, go on."""
    dice = random.Random(seed)

    def words() -> bytes:
        stream = b""
        for _ in range(dice.randrange(1, 20)):
            body = [dice.choice((0, 1, 2, 7, 64, dice.getrandbits(32))) for _ in range(dice.randrange(12))]
            head = dice.randrange(60) | dice.randrange(12) << 8 | len(body) << 16
            stream += struct.pack(f"<{1 + len(body)}I", head, *body)
        return stream

    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            for _ in range(200):
                await refused(context.submit(words()))
            await it.driver.create_2d(50, *SIZE)
            await it.driver.set_scanout(0, 50, WHOLE)
            await it.reset()
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)

    run_async(main)


def test_commands_of_random_fields_are_answered(run_async: Run) -> None:
    """Each field is one that exists, one that could, or anything; with fences of all kinds."""
    dice = random.Random(4)
    numbers = [*range(0x100, 0x10E), *range(0x200, 0x20A)]
    sizes = {0x200: 72, 0x204: 48, 0x205: 48, 0x206: 48, 0x10D: 72, 0x10C: 32}

    def field() -> int:
        return dice.choice((0, 1, 1, 2, 2, 3, 16, 64, 200, dice.getrandbits(16), dice.getrandbits(32)))

    def packed() -> bytes:
        number = dice.choice(numbers)
        head = struct.pack(
            "<IIQIBxxx", number, dice.randrange(4), dice.getrandbits(64), field(), field() & 0xFF
        )
        words = sizes.get(number, 32) // 4 + dice.choice((0, 0, 0, -1, 4, 64))
        return head + struct.pack(f"<{words}I", *(field() for _ in range(words)))

    async def main() -> None:
        async with machine() as it:
            for _ in range(40):
                answers = [it.driver.post(packed(), 24 + 1400) for _ in range(50)]
                it.driver.kick()
                for answer in await asyncio.gather(*answers):
                    assert struct.unpack_from("<I", answer)[0] in range(0x1100, 0x1206)
            await it.reset()
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)

    run_async(main)


def test_many_long_commands_at_once_wait_for_one_another(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            nothing = struct.pack("<I", 0 | (255 << 16)) + bytes(4 * 255)  # NOP
            stream = nothing * 1024 + clear(9, 1, ORANGE)
            await asyncio.gather(*(refused(context.submit(stream)) for _ in range(40)))
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)

    run_async(main)


# --- What comes to an end -------------------------------------------------------------------------------


def test_a_renderer_that_is_killed_costs_the_3d_until_a_reset(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, ORANGE)
            await it.shows(ORANGE)
            renderer = it.renderer()
            os.kill(renderer, signal.SIGSTOP)
            waiting = [asyncio.ensure_future(refused(context.submit(clear(9, 1, BLUE)))) for _ in range(3)]
            await it.driver.create_2d(2, *SIZE)  # is not kept waiting
            os.kill(renderer, signal.SIGKILL)
            assert await asyncio.gather(*waiting) == [ERR_UNSPEC] * 3
            assert await refused(create_3d(it.driver, 3, *SIZE)) == ERR_UNSPEC
            assert await refused(it.driver.flush(1, WHOLE)) == ERR_UNSPEC
            await it.shows(ORANGE)  # the last picture stays
            await it.driver.set_scanout(1, 2, WHOLE)
            await it.driver.flush(2, WHOLE)
            await it.display.until(lambda: it.display.monitors[1].width == SIZE[0])
            await it.driver.unref(1)
            await it.reset()
            context = await it.context()
            await it.monitor(context, 1)
            await it.paint(context, 1, BLUE)
            await it.shows(BLUE)
            assert it.renderer() != renderer

    run_async(main)


def test_guest_memory_that_vanishes_ends_the_renderer_alone(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            context = await it.context()
            await create_3d(it.driver, 1, *SIZE)
            await it.driver.create_2d(2, *SIZE)
            await context.attach(1)
            rest = it.memory.allocate(1 << 20, 4096) + (1 << 20)
            picture = Framebuffer(it.memory, *SIZE)
            await it.driver.attach_backing(1, picture.ranges)
            os.ftruncate(it.memory.fd.fileno(), rest - it.memory.guest_addr)
            assert await refused(context.transfer(1, ALL, to_host=True)) == ERR_UNSPEC
            os.ftruncate(it.memory.fd.fileno(), it.memory.size)
            await it.driver.set_scanout(0, 2, WHOLE)

    run_async(main)


def test_a_reset_leaves_nothing(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            await it.monitor(await it.context(), 1)
            first = it.renderer()
            await it.reset()
            await it.monitor(await it.context(), 1)
            assert it.renderer() != first

    run_async(main)


def test_contexts_do_not_leak(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            sizes, fds = [], []
            for number in range(1, 1001):
                context = await it.context(number)
                await it.monitor(context, 1)
                await it.paint(context, 1, ORANGE)
                await it.driver.unref(1)
                await context.destroy()
                if number % 500 == 0:
                    sizes.append((resident(it.renderer()), resident(it.program.pid)))
                    fds.append((open_fds(it.renderer()), len(it.program.fds())))
            (renderer, program), (renderer_later, program_later) = sizes
            assert renderer_later - renderer < 500 * 4
            assert program_later - program < 500
            assert fds[0] == fds[1]

    run_async(main)


def test_a_state_with_3d_is_not_saved(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            await it.driver.create_2d(5, *SIZE)
            await create_3d(it.driver, 1, *SIZE)
            await it.driver.stop(it.frontend)
            with pytest.raises(RefusedRequest):
                await it.frontend.save()

    run_async(main)


def test_a_state_of_2d_alone_is_saved(run_async: Run) -> None:
    async def main() -> None:
        async with machine() as it:
            await it.driver.create_2d(5, *SIZE)
            await it.driver.stop(it.frontend)
            assert len(await it.frontend.save()) > SIZE[0] * SIZE[1] * PIXEL

    run_async(main)


def open_fds(pid: int) -> int:
    """How many fds a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def content(it: Machine, picture: Framebuffer) -> bytes:
    """The pixels in a guest's memory."""
    return b"".join(it.memory.map.read(addr, size) for addr, size in picture.ranges)
