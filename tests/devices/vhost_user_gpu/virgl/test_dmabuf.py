"""3D pictures as dmabufs: who gets one, what is in it, and who gets pixels instead."""

import asyncio
import gc
import os
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from tests.conftest import Run
from tests.devices.vhost_user_gpu.virgl.stand_in import SIZE, WHOLE, Machine, answer, machine, solid
from vhost_user_gpu.commands import ResourceCreate2d, Response
from vhost_user_gpu.dmabuf import INVALID
from vhost_user_gpu.rect import Rect
from vhost_user_gpu.virgl.texture import Texture
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

ORANGE, BLUE = 0xFFFF8000, 0xFF0000FF
WIDTH, HEIGHT = SIZE
TILED = 0x0100_0000_0000_0002  # a modifier of somebody's GPU

Scenario = Callable[[Machine], Awaitable[None]]
Play = Callable[[Scenario], None]


@pytest.fixture
def play(run_async: Run, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Runs a scenario; it must leave no fd."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            before = open_files()
            async with machine(monkeypatch) as it:
                await scenario(it)
            await asyncio.sleep(0)
            gc.collect()  # renderers are in cycles, which another process would have taken with it
            assert open_files() - before == Counter()

        run_async(main)

    return run


def open_files() -> Counter[str]:
    """What this process has open, without what has no name, such as sockets."""
    paths = Counter[str]()
    for fd in os.listdir("/proc/self/fd"):
        try:
            paths[os.readlink(f"/proc/self/fd/{fd}")] += 1
        except OSError:  # the listing's own
            continue
    return Counter({path: count for path, count in paths.items() if "memfd:" in path})


async def first_picture(it: Machine, seen: GpuDisplay) -> None:
    """Monitor 0 shows texture 1, which is orange: that is one frame."""
    await it.texture(1)
    await it.paint(1, ORANGE)
    await answer(it.show(1))
    await seen.until(lambda: seen.frames > 0)


def shared(seen: GpuDisplay, scanout: int = 0) -> bytes:
    """What the front-end finds in the dmabuf of a monitor."""
    dmabuf = seen.monitors[scanout].dmabuf
    assert dmabuf is not None
    return dmabuf.pixels()


async def until_shared(seen: GpuDisplay, pixels: bytes, scanout: int = 0) -> None:
    await seen.until(lambda: seen.monitors[scanout].dmabuf is not None and shared(seen, scanout) == pixels)


async def until_pixels(seen: GpuDisplay, pixels: bytes, scanout: int = 0) -> None:
    await seen.until(lambda: bytes(seen.monitors[scanout].pixels) == pixels)
    assert seen.monitors[scanout].dmabuf is None


@pytest.mark.parametrize(
    ("features", "message"), [(EDID | DMABUF2, DMABUF_SCANOUT2), (EDID, DMABUF_SCANOUT)], ids=["2", "1"]
)
def test_a_texture_is_shown_as_it_lies_in_the_renderer(play: Play, features: int, message: int) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect(features)
        await first_picture(it, seen)
        assert shared(seen) == solid((HEIGHT, ORANGE))
        await it.paint(1, BLUE, rows=3)
        frames = seen.requests[DMABUF_UPDATE]
        reads = it.library.reads
        await it.flush(1, Rect(0, 0, WIDTH, 3))
        await seen.until(lambda: seen.requests[DMABUF_UPDATE] > frames)
        assert shared(seen) == solid((3, BLUE), (HEIGHT - 3, ORANGE))
        assert it.library.reads == reads
        assert seen.requests[message] == 1
        assert seen.requests[SCANOUT] == seen.requests[UPDATE] == 0

    play(scenario)


def test_its_layout_is_the_renderer_s(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        it.library.modifier = TILED
        seen = await it.connect()
        await first_picture(it, seen)
        dmabuf = seen.monitors[0].dmabuf
        assert dmabuf is not None
        assert dmabuf[1:] == (*WHOLE, *SIZE, it.library.textures[1].stride, 0, 0x3432_5241, TILED)

    play(scenario)


def test_an_update_comes_when_the_picture_is_drawn(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await it.texture(2)
        it.show(2)
        await seen.until(lambda: seen.requests[DMABUF_SCANOUT2] == 2)
        frames = seen.frames
        it.library.holds_fences = True
        flush = asyncio.ensure_future(it.flush(2))
        await it.paint(1, BLUE)  # the renderer has come that far
        assert seen.frames == frames
        assert not flush.done()
        it.library.holds_fences = False
        await flush
        await seen.until(lambda: seen.frames > frames)

    play(scenario)


def test_a_slow_front_end_keeps_nobody_waiting(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        seen.silent.add(DMABUF_UPDATE)
        await first_picture(it, seen)
        for _ in range(20):
            await it.flush(1)
        assert seen.requests[DMABUF_UPDATE] == 1
        seen.silent.clear()
        seen.reply(DMABUF_UPDATE)
        await seen.until(lambda: seen.requests[DMABUF_UPDATE] == 2)

    play(scenario)


def test_two_monitors_show_one_texture(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await answer(it.show(1, scanout=3))
        await seen.until(lambda: seen.monitors[3].dmabuf is not None)
        await it.paint(1, BLUE)
        frames = seen.frames
        await it.flush(1)
        await seen.until(lambda: seen.frames >= frames + 2)
        assert shared(seen, 0) == shared(seen, 3) == solid((HEIGHT, BLUE))

    play(scenario)


def test_parts_of_a_texture_are_copied(play: Play) -> None:
    """QEMU takes no notice of where in a dmabuf a scan-out begins."""

    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await it.paint(1, BLUE, rows=5)
        for scanout, y in enumerate((0, 4)):
            await answer(it.show(1, Rect(2, y, WIDTH - 2, 6), scanout))
        await it.flush(1)
        await until_pixels(seen, solid((5, BLUE), (1, ORANGE), width=WIDTH - 2), 0)
        await until_pixels(seen, solid((1, BLUE), (5, ORANGE), width=WIDTH - 2), 1)
        for row in range(1, HEIGHT + 1):  # each frame, and the last one
            await it.paint(1, BLUE, rows=row)
            await it.flush(1, Rect(0, row - 1, WIDTH, 1))
        await until_pixels(seen, solid((6, BLUE), width=WIDTH - 2), 0)
        await until_pixels(seen, solid((6, BLUE), width=WIDTH - 2), 1)

    play(scenario)


def test_without_dmabuf2_a_tiled_picture_is_copied(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        it.library.modifier = TILED
        await first_picture(it, seen := await it.connect(EDID))
        await until_pixels(seen, solid((HEIGHT, ORANGE)))
        assert seen.requests[DMABUF_SCANOUT] == 0

    play(scenario)


def test_without_dmabuf2_nobody_names_a_modifier(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        it.library.modifier = INVALID
        await first_picture(it, seen := await it.connect(EDID))
        assert seen.requests[DMABUF_SCANOUT] == 1

    play(scenario)


def test_a_texture_that_cannot_be_exported_is_copied(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """The log says so once."""

    async def scenario(it: Machine) -> None:
        it.library.can_export = False
        await first_picture(it, seen := await it.connect())
        await until_pixels(seen, solid((HEIGHT, ORANGE)))
        await it.texture(2)
        await it.paint(2, BLUE)
        await answer(it.show(2))
        await it.flush(2)
        await until_pixels(seen, solid((HEIGHT, BLUE)))
        assert seen.requests[DMABUF_SCANOUT2] == 0

    with caplog.at_level("INFO"):
        play(scenario)
    assert [line for line in caplog.messages if "copied" in line] == [
        "3D is copied to the front-end: there is no dmabuf of a texture: Operation not supported"
    ]


def test_a_picture_that_begins_within_its_dmabuf_is_copied(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        it.library.offset = 4096
        await first_picture(it, seen := await it.connect())
        await until_pixels(seen, solid((HEIGHT, ORANGE)))

    play(scenario)


def test_a_flip_shows_the_other_texture(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await it.texture(2)
        await it.paint(2, BLUE)
        for number, color in ((2, BLUE), (1, ORANGE), (2, BLUE)):
            await answer(it.show(number))
            await it.flush(number)
            await until_shared(seen, solid((HEIGHT, color)))

    play(scenario)


def test_another_size(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await it.texture(2, (7, 3))
        await it.paint(2, BLUE, rows=3)
        frames = seen.frames
        await answer(it.show(2, Rect(0, 0, 7, 3)))  # is painted without a flush
        await seen.until(lambda: seen.frames > frames)
        assert (seen.monitors[0].width, seen.monitors[0].height) == (7, 3)
        assert shared(seen) == solid((3, BLUE), width=7)

    play(scenario)


def test_another_front_end_gets_it_too(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        await first_picture(it, await it.connect())
        seen = await it.connect()
        await seen.until(lambda: seen.frames > 0)
        assert shared(seen) == solid((HEIGHT, ORANGE))

    play(scenario)


def test_a_front_end_without_gl_gets_what_was_shown_last(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        first = await it.connect()
        await first_picture(it, first)
        await it.paint(1, BLUE, rows=4)
        await it.flush(1)
        await first.until(lambda: first.frames > 1)
        seen = await it.connect(dmabuf=False)
        await until_pixels(seen, solid((4, BLUE), (HEIGHT - 4, ORANGE)))

    play(scenario)


def test_its_pixels_are_read_for_whoever_wants_them(play: Play) -> None:
    """A screenshot does."""

    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        for rows, color in ((HEIGHT, BLUE), (2, ORANGE)):
            await it.paint(1, color, rows)
            await it.flush(1)
        texture = it.card.resources[1]
        reads = it.library.reads
        reading = texture.refresh()
        assert reading is not None
        assert texture.refresh() is reading  # for another one who wants them
        await reading.answered()
        assert texture.refresh() is None
        assert it.library.reads == reads + 1
        assert texture.copy_rows(0, 4 * WIDTH, HEIGHT, 4 * WIDTH) == solid((2, ORANGE), (HEIGHT - 2, BLUE))

    play(scenario)


def test_a_renderer_that_hangs_keeps_no_other_monitor_waiting(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        it.card.create_2d(ResourceCreate2d(9, 2, 8, 8))
        await it.texture(1)
        with it.library.hung:
            it.show(1)
            it.show(9, Rect(0, 0, 8, 8), scanout=1)
            await seen.until(lambda: seen.monitors[1].width == 8)
            await until_pixels(seen, bytes(8 * 8 * 4), scanout=1)
            assert seen.monitors[0].width == 0
        await seen.until(lambda: seen.monitors[0].dmabuf is not None)

    play(scenario)


def test_nothing_after_a_texture(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        it.unref(1)
        await seen.until(lambda: seen.monitors[0].width == 0)
        assert seen.monitors[0].dmabuf is None

    play(scenario)


def test_a_texture_may_go_before_its_dmabuf_comes(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await it.texture(1)
        it.show(1)
        it.unref(1)
        await it.texture(2)
        await it.paint(2, BLUE)
        await answer(it.show(2))
        await it.flush(2)
        await seen.until(lambda: seen.frames > 0)
        assert shared(seen) == solid((HEIGHT, BLUE))

    play(scenario)


def test_a_renderer_that_is_lost_leaves_the_last_picture(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        await it.texture(2)
        it.show(2)  # and asks for a dmabuf
        it.engine.reset()
        it.show(1)
        assert shared(seen) == solid((HEIGHT, ORANGE))
        later = await it.connect()
        await later.until(lambda: later.frames > 0)
        assert shared(later) == solid((HEIGHT, ORANGE))

    play(scenario)


def test_a_reset_closes_everything(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        texture = it.card.resources[1]
        assert isinstance(texture, Texture)
        dmabuf = texture.dmabuf
        assert dmabuf is not None
        it.card.reset()
        assert not dmabuf.fd
        assert texture.dmabuf is None
        await seen.until(lambda: seen.monitors[0].width == 0)

    play(scenario)


def test_a_texture_is_asked_for_once(play: Play) -> None:
    async def scenario(it: Machine) -> None:
        seen = await it.connect()
        await first_picture(it, seen)
        for scanout in (0, 1, 0):
            await answer(it.show(1, scanout=scanout))
            assert (await it.flush(1))[0] is Response.OK_NODATA
        assert it.library.exports == 1

    play(scenario)
